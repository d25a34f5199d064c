#!/usr/bin/env python3
"""Streams a random-weight MoE GGUF of a real shape. Needs numpy only; at most 1 GiB of memory
whatever the size.

  make_model.py --shape qwen3-30b-a3b --quant Q4_K --out model.gguf
                [--seed N] [--shards N] [--router-skew S]

The weights are random but not careless: every block adds a share of the residual that keeps it of
order one, logits are spread (standard deviation 3), and the router has a stated popularity skew.
For that, residual channel 0 holds the same value for every token: the embedding's column 0 is
constant, and row 0 of attn_output and of every ffn_down (and of their biases) is zero, so that
router weight [e, 0] is a bias of expert e.
"""

import argparse
import math
import os
import sys
import time
import zlib

import numpy as np

from modelgen import gguf_stream, router, shapes, tensors as recipes, vocab
from modelgen.blocks import BLOCK, fix_first_value, random_blocks, zero_blocks

CHUNK_BYTES = 16 << 20
SILU_RMS = 0.6  # rms of silu(g) * u for g, u ~ N(0, 1)
ACTIVATION_RMS = {"gpt-oss": 0.93}  # the same of g * sigmoid(1.702 g) * (u + 1)
LOGIT_STD = 3.0
# Of q and k each: attention scores of standard deviation 2, so heads look at a few positions.
HEAD_GAIN = 1.4
ATTN_SHARE, FFN_SHARE = (
    1.0,
    1.2,
)  # what all layers together add to the residual's mean square, embedding = 1
# What averaging over positions leaves of it; with it the measured reuse meets the expected one.
ATTN_KEPT = 0.3


class Weights:
    """Draws every tensor. Each has a generator of its own, so sharding and order change nothing."""

    def __init__(self, shape, seed, skew, embedding_type):
        self.shape, self.seed, self.skew = shape, seed, skew
        block = random_blocks(embedding_type, 1, 1.0, np.random.default_rng(0))
        self.channel0 = fix_first_value(embedding_type, block, 1.0)

    def _rng(self, name):
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def _std(self, t):
        s, fan_in = self.shape, t.ne[0]
        if t.role == "embedding":
            return 1.0
        if t.role == "output":
            return LOGIT_STD / math.sqrt(fan_in)
        if t.role == "attn_out":
            return math.sqrt(ATTN_SHARE / s.layers / fan_in)
        if t.role == "down":
            return math.sqrt(FFN_SHARE / s.layers / fan_in) / ACTIVATION_RMS.get(s.arch, SILU_RMS)
        if any(f".attn_{role}." in t.name for role in ("q", "q_b", "k", "k_b")):
            return HEAD_GAIN / math.sqrt(fan_in)
        return 1.0 / math.sqrt(fan_in)

    def _small(self, t, rng):
        """The F32 tensors: norms, biases, routers."""
        if t.role in ("norm", "head_norm"):
            x = 1 + 0.05 * rng.standard_normal(t.ne[0])
            x = x * HEAD_GAIN if t.role == "head_norm" else x
            if t.role == "norm":
                x[0] = 1.0
        elif t.role in ("bias", "bias_out"):
            x = 0.1 * rng.standard_normal((t.rows, t.ne[0]))
            if t.role == "bias_out":
                x[:, 0] = 0.0
        elif t.role == "sinks":
            x = rng.standard_normal(t.ne[0])
        elif t.role == "shared_gate":
            x = rng.standard_normal(t.ne[0]) / math.sqrt(t.ne[0])
        else:
            # norm(h)[0] = channel0 / rms of the residual here; the rest of norm(h) has rms 1.
            n_hidden, n_experts = t.ne
            x = rng.standard_normal((n_experts, n_hidden)) / math.sqrt(n_hidden)
            per_layer = (
                ATTN_SHARE * ATTN_KEPT + FFN_SHARE * self._experts_kept()
            ) / self.shape.layers
            rms = math.sqrt(1 + t.layer * per_layer + ATTN_SHARE * ATTN_KEPT / self.shape.layers)
            x[:, 0] = router.popularity_bias(n_experts, self.skew, rng) * rms / self.channel0
        return x.astype("<f4").tobytes()

    def _experts_kept(self):
        """Mean square of a layer's weighted experts, one expert's = 1: the sum of squared gates."""
        return 0.4 if self.shape.shared_ff or self.shape.deepseek else 0.15 + 0.9 / self.shape.top_k

    def chunks(self, t):
        rng = self._rng(t.name)
        if t.role in recipes.SMALL_ROLES:
            yield self._small(t, rng)
            return
        blocks_per_row, std = t.ne[0] // BLOCK[t.qtype][0], self._std(t)
        step = max(1, CHUNK_BYTES // t.row_bytes)
        if t.qtype.name in ("F32", "F16", "BF16"):
            step = max(1, step // 4)
        for first in range(0, t.rows, step):
            n = min(step, t.rows - first)
            blocks = random_blocks(t.qtype, n * blocks_per_row, std, rng)
            rows = blocks.reshape(n, blocks_per_row, -1)
            if t.role == "embedding":
                heads = rows[:, 0, :].copy()
                fix_first_value(t.qtype, heads, std)
                rows[:, 0, :] = heads
            elif t.role in ("attn_out", "down"):
                for row in range(-first % t.ne[1], n, t.ne[1]):
                    zero_blocks(t.qtype, rows[row])
            yield rows.reshape(-1).data


def human(n_bytes):
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def describe(name, shape, quant, tensors, skew, reuse):
    expert_bytes = sum(t.bytes for t in tensors if "_exps" in t.name)
    per_expert = expert_bytes // (shape.moe_layers * shape.experts)
    table = sum(t.bytes for t in tensors if t.role == "embedding")
    total = sum(t.bytes for t in tensors)
    active = total - expert_bytes - table + per_expert * shape.top_k * shape.moe_layers
    print(
        f"{name} {quant}: {shape.arch}, {shape.moe_layers} layers x {shape.experts} experts, "
        f"top {shape.top_k}; "
        f"{human(total)}, experts {human(expert_bytes)}, {human(per_expert)} each, "
        f"{human(active)} active a token"
    )
    print(
        f"router: skew {skew:.3f}, expected reuse at lag 1 {reuse:.3f} "
        f"(chance {shape.top_k / shape.experts:.3f})"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", required=True, choices=list(shapes.SHAPES))
    parser.add_argument("--quant", required=True, choices=recipes.QUANTS)
    parser.add_argument(
        "--out", required=True, help="x.gguf; with --shards N: x-00001-of-0000N.gguf and so on"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument(
        "--router-skew", type=float, help="0 = uniform; default: what gives the reuse below"
    )
    parser.add_argument(
        "--reuse", type=float, default=0.41, help="expected reuse at lag 1 (default %(default)s)"
    )
    args = parser.parse_args()

    shape = shapes.SHAPES[args.shape]
    tensors = recipes.tensors_of(shape, args.quant)
    skew = args.router_skew
    if skew is None:
        skew = router.skew_for(shape.experts, shape.top_k, args.reuse)
    describe(
        args.shape,
        shape,
        args.quant,
        tensors,
        skew,
        router.expected_reuse(shape.experts, shape.top_k, skew),
    )
    total = sum(t.bytes for t in tensors)
    folder = os.path.dirname(os.path.abspath(args.out))
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if free < total * 1.01:
        sys.exit(f"{folder}: {human(free)} free, {human(total)} needed")

    weights = Weights(shape, args.seed, skew, tensors[0].qtype)
    metadata = recipes.metadata_of(shape, args.quant, f"{args.shape} random seed {args.seed}")
    metadata.update(vocab.metadata_of(shape))
    started, done = time.monotonic(), 0

    def progress(n):
        nonlocal done
        done += n
        if sys.stderr.isatty():
            rate = done / max(time.monotonic() - started, 1e-3)
            print(f"\r{100 * done / total:5.1f} %  {rate / 1e6:.0f} MB/s ", end="", file=sys.stderr)

    paths = gguf_stream.shard_paths(args.out, args.shards)
    for i, (path, run) in enumerate(zip(paths, gguf_stream.split_evenly(tensors, args.shards))):
        meta = dict(metadata) if i == 0 else {}
        if args.shards > 1:
            meta.update(
                {
                    "split.no": ("u16", i),
                    "split.count": ("u16", args.shards),
                    "split.tensors.count": ("i32", len(tensors)),
                }
            )
        gguf_stream.write(path, meta, run, weights.chunks, progress)
    seconds = time.monotonic() - started
    print(
        f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {seconds:.1f} s, "
        f"{total / seconds / 1e6:.0f} MB/s"
    )


if __name__ == "__main__":
    main()
