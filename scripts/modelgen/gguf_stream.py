"""GGUF v3 written as a stream: header and tensor table first, then data in order; never a whole
tensor in memory.

Little-endian: "GGUF" | u32 3 | u64 n_tensors | u64 n_kv | key-values | tensor infos (string name,
u32 n_dims, u64 ne[n_dims], u32 type, u64 offset) | padding to 32 | tensor data, each padded to 32.
Shards are numbered from 1 in the name (`x-00001-of-00003.gguf`); the first holds the metadata, all
hold split.no, split.count and split.tensors.count.
"""

import os
import struct

ALIGNMENT = 32
SCALARS = {
    "u16": (2, "<H"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
}
STRING, ARRAY = 8, 9
FLUSH_BYTES = 256 << 20  # written pages are dropped from the page cache in steps of this


def _string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind, value):
    if kind == "str":
        return struct.pack("<I", STRING) + _string(value)
    if kind in SCALARS:
        code, layout = SCALARS[kind]
        return struct.pack("<I", code) + struct.pack(layout, value)
    element = kind[1:-1]  # "[str]", "[f32]", "[i32]"
    if element == "str":
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    code, layout = SCALARS[element]
    return struct.pack("<IIQ", ARRAY, code, len(value)) + struct.pack(
        f"<{len(value)}{layout[1]}", *value
    )


def _padded(n):
    return -(-n // ALIGNMENT) * ALIGNMENT


def shard_paths(path, n_shards):
    if n_shards == 1:
        return [path]
    stem = path[:-5] if path.endswith(".gguf") else path
    return [f"{stem}-{i + 1:05}-of-{n_shards:05}.gguf" for i in range(n_shards)]


def split_evenly(tensors, n_shards):
    """Consecutive runs of tensors of about equal bytes, each with at least one."""
    total, runs, seen = sum(t.bytes for t in tensors), [[] for _ in range(n_shards)], 0
    for i, t in enumerate(tensors):
        at = min(int((seen + t.bytes / 2) * n_shards / total), n_shards - 1)
        at = max(at, n_shards - (len(tensors) - i))  # leave one for every shard that follows
        runs[at].append(t)
        seen += t.bytes
    if not all(runs):
        raise ValueError(f"{len(tensors)} tensors do not fill {n_shards} shards")
    return runs


def write(path, metadata, tensors, chunks_of, progress=lambda n: None):
    """Writes one file. chunks_of(tensor) yields its bytes in order."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        header += _string(key) + _value(kind, value)
    at = 0
    infos = []
    for t in tensors:
        infos.append(
            _string(t.name) + struct.pack(f"<I{len(t.ne)}QIQ", len(t.ne), *t.ne, int(t.qtype), at)
        )
        at += _padded(t.bytes)
    header += b"".join(infos)
    with open(path, "wb", buffering=0) as f:
        f.write(header + bytes(_padded(len(header)) - len(header)))
        dirty = 0
        for t in tensors:
            written = 0
            for chunk in chunks_of(t):
                f.write(chunk)
                written += len(chunk)
                dirty += len(chunk)
                progress(len(chunk))
                if dirty >= FLUSH_BYTES:
                    os.fdatasync(f.fileno())
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    dirty = 0
            if written != t.bytes:
                raise AssertionError(f"{t.name}: {written} bytes written, {t.bytes} expected")
            f.write(bytes(_padded(written) - written))
