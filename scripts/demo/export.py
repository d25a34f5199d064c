#!/usr/bin/env python3
"""A checkpoint of train_demo.py as a GGUF: matrices in F16, norms and routers in F32.

    scripts/demo/export.py --train build/demo/train --out build/demo/demo-f16.gguf
"""

import argparse
import json
import pathlib
import sys

import gguf
import numpy
import torch

CONTEXT = 512  # what training saw


def tokenizer_keys(writer: gguf.GGUFWriter, path: pathlib.Path) -> None:
    tokenizer = json.loads(path.read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda entry: entry[1])
    special = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    if [number for _, number in vocabulary] != list(range(len(vocabulary))):
        raise ValueError(f"{path}: the ids of the vocabulary have gaps")
    kinds = [gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL
             for text, _ in vocabulary]
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    end, = special.values()
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def model_keys(writer: gguf.GGUFWriter, shape: dict, tokens: int) -> None:
    writer.add_name("Offstage demo")
    writer.add_description(f"trained on {tokens / 1e6:.2f} M tokens by scripts/train_demo.py")
    writer.add_license("apache-2.0")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["width"] * shape["used"])
    writer.add_expert_feed_forward_length(shape["width"])
    writer.add_expert_count(shape["experts"])
    writer.add_expert_used_count(shape["used"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_size"])
    writer.add_value_length(shape["head_size"])
    writer.add_rope_freq_base(shape["rotary_base"])
    writer.add_layer_norm_rms_eps(shape["epsilon"])
    writer.add_vocab_size(shape["vocabulary"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def tensors(net: dict, shape: dict):
    """Name in the file, values, in the order of computation."""
    yield "token_embd.weight", net["embedding.weight"]
    for layer in range(shape["layers"]):
        attention, mixture = f"attention.{layer}", f"mixture.{layer}"
        gate, up = net[f"{mixture}.gate_up"].chunk(2, dim=1)
        for name, value in {
            "attn_norm": net[f"attention_norm.{layer}.weight"],
            "attn_q": net[f"{attention}.q.weight"],
            "attn_k": net[f"{attention}.k.weight"],
            "attn_v": net[f"{attention}.v.weight"],
            "attn_q_norm": net[f"{attention}.q_norm.weight"],
            "attn_k_norm": net[f"{attention}.k_norm.weight"],
            "attn_output": net[f"{attention}.output.weight"],
            "ffn_norm": net[f"mixture_norm.{layer}.weight"],
            "ffn_gate_inp": net[f"{mixture}.router.weight"],
            "ffn_gate_exps": gate,
            "ffn_up_exps": up,
            "ffn_down_exps": net[f"{mixture}.down"],
        }.items():
            yield f"blk.{layer}.{name}.weight", value
    yield "output_norm.weight", net["final_norm.weight"]
    yield "output.weight", net["output.weight"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    kept = torch.load(args.train / "last.pt", mmap=True)
    writer = gguf.GGUFWriter(args.out, "qwen3moe")
    model_keys(writer, kept["shape"], kept["tokens"])
    tokenizer_keys(writer, args.train / "tokenizer.json")
    for name, value in tensors(kept["net"], kept["shape"]):
        plain = value.dim() == 1 or name.endswith("ffn_gate_inp.weight")
        data = value.contiguous().numpy()
        writer.add_tensor(name, data if plain else data.astype(numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
