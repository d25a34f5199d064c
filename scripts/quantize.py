#!/usr/bin/env python3
"""Quantises a GGUF in F32, F16 or BF16 to Q8_0 or a K-quant; numpy and PyPI gguf.

    scripts/quantize.py model-f16.gguf model-q4_k.gguf Q4_K

Norms, routers, biases and other vectors stay as they are. The output matrix, the embedding and the
attention's values get Q6_K where the type asked for is smaller: they are few, and many lean on
them. A row that isn't a multiple of the block gets Q8_0, or stays, and is named.
"""

import argparse
import concurrent.futures
import os
import pathlib
import sys

import gguf
import numpy
from gguf.quants import dequantize

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from demo import kquants  # noqa: E402

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
SOURCES = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16,
           gguf.GGMLQuantizationType.BF16)
BETTER = ("output", "token_embd", "attn_v")


def type_of(name: str, shape: tuple, asked: str) -> str | None:
    """The type a tensor gets; None: it stays as it is."""
    if len(shape) < 2 or "_norm" in name or "ffn_gate_inp" in name or not name.endswith(".weight"):
        return None
    wanted = asked
    if name.split(".")[-2] in BETTER and TYPES.index(asked) > TYPES.index("Q6_K"):
        wanted = "Q6_K"
    if wanted != "Q8_0" and shape[-1] % 256:
        wanted = "Q8_0"
    return None if shape[-1] % 32 else wanted


def copy_keys(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, asked: str) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture",
                                                           "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    names = {"Q8_0": "MOSTLY_Q8_0", "Q6_K": "MOSTLY_Q6_K", "Q5_K": "MOSTLY_Q5_K_S",
             "Q4_K": "MOSTLY_Q4_K_S", "Q3_K": "MOSTLY_Q3_K_S", "Q2_K": "MOSTLY_Q2_K_S"}
    writer.add_file_type(gguf.LlamaFileType[names[asked]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def encode(tensor, asked: str):
    """Raw bytes, their type and the relative RMS error; None for a tensor that stays."""
    shape = tuple(int(n) for n in reversed(tensor.shape))
    kind = type_of(tensor.name, shape, asked)
    if kind is None:
        return None
    if tensor.tensor_type not in SOURCES:
        raise ValueError(f"{tensor.name}: expected F32, F16 or BF16, "
                         f"found {tensor.tensor_type.name}")
    values = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(numpy.float32)
    raw = kquants.quantize(values, kind)
    back = dequantize(raw, gguf.GGMLQuantizationType[kind])
    return raw, kind, float(numpy.sqrt(((back - values) ** 2).mean() / (values**2).mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("type", choices=TYPES)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.source)
    architecture = reader.fields["general.architecture"].contents()
    part = args.out.with_name(args.out.name + ".part")
    writer = gguf.GGUFWriter(part, architecture)
    copy_keys(reader, writer, args.type)
    with concurrent.futures.ThreadPoolExecutor(args.threads) as pool:
        encoded = pool.map(lambda tensor: encode(tensor, args.type), reader.tensors)
        for tensor, result in zip(reader.tensors, encoded, strict=True):
            if result is None:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
                if len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name:
                    print(f"{tensor.name}: stays {tensor.tensor_type.name}, rows of "
                          f"{tensor.shape[0]}")
                continue
            raw, kind, error = result
            writer.add_tensor(tensor.name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
            print(f"{tensor.name:32} {kind:5} error {error:.5f}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
