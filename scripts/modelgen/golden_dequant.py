"""Dequantisation goldens: raw blocks beside the float32 values that PyPI gguf's
`gguf.quants.dequantize` gives.

File, little-endian: 8 bytes "OFSDEQ01" | u32 ggml type | u32 n_elements | u64 n_raw_bytes | raw
blocks | n_elements f32. 16 rows of 256 elements. Most blocks are random; the edges below come
first, one block each.
"""

import struct

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from . import blocks as B
from .blocks import T

ROWS, COLUMNS = 16, 256
MAGIC = b"OFSDEQ01"

# f16 bit patterns: ±0, least and greatest subnormal and their negatives, least normal, ±1, a large
# one.
F16_EDGES = [0x0000, 0x8000, 0x0001, 0x03FF, 0x8001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7000]
F16_VALUES = F16_EDGES + [0x7BFF, 0xFBFF]
BF16_VALUES = [0x0000, 0x8000, 0x0001, 0x007F, 0x8001, 0x0080, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F]


def edge_blocks(qtype, rng):
    """Random blocks whose first ones carry edge values. Always finite after dequantisation."""
    per_block, block_bytes = B.block_size(qtype)
    n = ROWS * COLUMNS // per_block
    raw = B.random_blocks(qtype, n, 0.05, rng).copy()
    if qtype in (T.F16, T.BF16):
        values = np.array(F16_VALUES if qtype == T.F16 else BF16_VALUES, np.uint16)
        raw[: len(values)] = values.reshape(-1, 1).view(np.uint8)
        return raw
    if qtype == T.MXFP4:
        for i, e in enumerate(
            [0, 1, 2, 3, 120, 127, 128, 200, 250]
        ):  # 0 and 1 make subnormal scales
            raw[i, 0] = e
        raw[9, 1:], raw[10, 1:] = 0xFF, 0x00
        return raw
    # Scales that are not f16 take every bit pattern in the random half, so unpacking cannot lean on
    # small values.
    n_extra = n // 4
    wild = (
        np.frombuffer(rng.bytes(n_extra * block_bytes), np.uint8)
        .reshape(n_extra, block_bytes)
        .copy()
    )
    for at in B.F16_FIELDS[qtype]:
        wild[:, at : at + 2] = raw[-n_extra:, at : at + 2]
    if qtype == T.IQ1_M:
        B.set_iq1_m_scale(wild, rng.integers(0, 0x7C00, n_extra))
    raw[-n_extra:] = wild
    # n is 16 for the K-quants: the edges share blocks 0..9, the fills take 10 and 11, wild ones the
    # last quarter.
    for i, bits in enumerate(F16_EDGES):
        if qtype == T.IQ1_M:
            B.set_iq1_m_scale(raw[i : i + 1], [bits])
        for field, at in enumerate(B.F16_FIELDS[qtype]):
            pattern = bits if field == 0 else F16_EDGES[(i + 3) % len(F16_EDGES)]
            raw[i, at : at + 2] = np.array([pattern], np.uint16).view(np.uint8)
    for row, fill in (
        (10, 0xFF),
        (11, 0x00),
    ):  # every quant and every small scale at its maximum, then at zero
        keep = [raw[row, at : at + 2].copy() for at in B.F16_FIELDS[qtype]]
        raw[row] = fill
        for at, value in zip(B.F16_FIELDS[qtype], keep):
            raw[row, at : at + 2] = value
        if qtype == T.IQ1_M:
            B.set_iq1_m_scale(raw[row : row + 1], [0x3C00])
    return raw


def write_all(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for qtype in B.SUPPORTED:
        if qtype == T.F32:
            continue
        raw = edge_blocks(qtype, np.random.default_rng([2, int(qtype)]))
        values = dequantize(raw, GGMLQuantizationType(int(qtype))).astype(np.float32).reshape(-1)
        assert values.size == ROWS * COLUMNS and np.isfinite(values).all(), qtype
        header = MAGIC + struct.pack("<IIQ", int(qtype), values.size, raw.nbytes)
        (folder / f"{qtype.name}.bin").write_bytes(
            header + raw.tobytes() + values.astype("<f4").tobytes()
        )
        print(
            f"{qtype.name:7} type {int(qtype):2}  {raw.nbytes:6} raw bytes  "
            f"|max| {np.abs(values).max():.6g}"
        )
