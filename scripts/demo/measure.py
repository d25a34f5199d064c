#!/usr/bin/env python3
"""Measures the demo: by domain, PyTorch, `offstage eval` of each file, and a bigram model; and the
locality of its routing.

    scripts/demo/measure.py --corpus build/demo/corpus --train build/demo/train \\
        --offstage build/release/offstage --out build/demo/figures.json \\
        F16=build/demo/demo-f16.gguf Q4_K=build/demo/demo-q4_k.gguf

All on the same text: the first documents of the validation split, in windows of the training's
length whose first token nothing predicts, as `offstage eval -c` cuts them. `--sample FILE` writes
the beginning of each text with the losses that the tests hold the shipped file against.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import numpy
import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from demo import data, model  # noqa: E402
from demo.export import CONTEXT  # noqa: E402

CAPACITIES = ("10%", "25%", "50%", "75%")
SAMPLE = 160  # tokens of each domain
SMOOTHING = (1, 3, 10, 30, 100, 300)  # of the bigram model; the best on the text itself is taken


def validation_text(corpus: pathlib.Path, domain: str, tokenizer: Tokenizer, tokens: int):
    """Whole documents, in a shuffled order, until there are enough tokens; cut there."""
    texts = data.documents(corpus, domain, "valid")
    text = ""
    for index in data.shuffled(len(texts), seed=2):
        text += texts[index].rstrip("\n") + "\n\n"
        if len(tokenizer.encode(text).ids) >= tokens:
            break
    encoded = tokenizer.encode(text)
    end = encoded.offsets[min(tokens, len(encoded.ids)) - 1][1]
    return text[:end]


def windows(ids: list[int]):
    return [ids[i:i + CONTEXT] for i in range(0, len(ids), CONTEXT) if len(ids[i:i + CONTEXT]) > 1]


@torch.no_grad()
def torch_nll(net: model.Demo, ids: list[int]):
    """Sum of the losses, how many, and use [layer, expert]; all in float32."""
    net.refresh(torch.float32)
    total, count, use = 0.0, 0, 0
    for window in windows(ids):
        row = torch.tensor([window])
        logits, _, used = net(row[:, :-1])
        total += torch.nn.functional.cross_entropy(logits[0], row[0, 1:], reduction="sum").item()
        count += len(window) - 1
        use = use + used
    return total, count, use


def offstage(program: str, *arguments) -> dict:
    return json.loads(subprocess.run([program, *map(str, arguments), "--json"], check=True,
                                     capture_output=True, text=True).stdout)


def offstage_nll(program: str, file: str, text: pathlib.Path, ids: list[int]):
    answer = offstage(program, "eval", "-m", file, "-f", text, "-c", CONTEXT)
    if answer["tokens"] != ids:
        raise ValueError(f"{text}: offstage's token ids differ from PyPI tokenizers'")
    return sum(answer["nll"]), len(answer["nll"])


def locality(program: str, file: str, texts: list[pathlib.Path], folder: pathlib.Path) -> dict:
    """Of the routing over all texts: reuse by lag, caches' hit rates, how well the next layer's gate
    names its experts one and two layers ahead."""
    text, trace = folder / "all.valid.txt", folder / "all.trace"
    text.write_bytes(b"".join(path.read_bytes() for path in texts))
    record = offstage(program, "trace", "record", "-m", file, "-f", text, "-c", CONTEXT,
                      "--out", trace, "--gate-accuracy")
    stats = offstage(program, "trace", "stats", trace)
    rates = {policy: [offstage(program, "trace", "replay", trace, "--policy", policy,
                               "--capacity", share)["hit_rate"] for share in CAPACITIES]
             for policy in ("lru", "belady")}
    return {"tokens": record["tokens"], "hit_rate": rates,
            "reuse": {entry["lag"]: entry["value"] for entry in stats["reuse_at_lag"]},
            "gate": {entry["layers_ahead"]: entry["recall"] for entry in record["gate_accuracy"]}}


class Bigram:
    """Pairs of the whole training split, all domains weighing the same, smoothed by the single
    tokens' frequencies (themselves by a uniform share)."""

    def __init__(self, streams: dict, vocabulary: int):
        mixture = data.Mixture(streams, seed=0)
        tokens = sum(len(stream) for stream in streams.values())
        self.pairs = data.pair_counts(mixture, vocabulary) * tokens
        single = self.pairs.sum(0) + 0.01
        self.single = single / single.sum()

    def nll(self, ids: list[int], smoothing: float):
        total, count = 0.0, 0
        for window in windows(ids):
            before, after = numpy.array(window[:-1]), numpy.array(window[1:])
            seen = self.pairs[before, after] + smoothing * self.single[after]
            chance = seen / (self.pairs[before].sum(1) + smoothing)
            total -= float(numpy.log(chance).sum())
            count += len(after)
        return total, count


def sample(net: model.Demo, bigram: Bigram, smoothing: float, tokenizer: Tokenizer, texts: dict):
    """The first SAMPLE tokens of each domain as text, with two models' mean losses."""
    entries = {}
    for domain, ids in texts.items():
        text = tokenizer.decode(ids[:SAMPLE])
        again = tokenizer.encode(text).ids
        total, count, _ = torch_nll(net, again)
        pairs, _ = bigram.nll(again, smoothing)
        entries[domain] = {"text": text, "tokens": len(again), "pytorch": round(total / count, 4),
                           "bigram": round(pairs / count, 4)}
    return entries


def entropy(use: torch.Tensor):
    """Of each layer, as a share of what even use has."""
    share = use.double() / use.sum(1, keepdim=True)
    bits = -(share * share.clamp_min(1e-12).log()).sum(1) / math.log(use.shape[1])
    return bits.tolist(), (share.min(1).values * use.shape[1]).tolist()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--offstage", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, default=12_000, help="of each domain")
    parser.add_argument("--sample", type=pathlib.Path, help="what tests/app/demo_test.cc reads")
    parser.add_argument("files", nargs="+", metavar="NAME=GGUF",
                        help="of the last one, the routing too")
    args = parser.parse_args()
    kept = torch.load(args.train / "last.pt", mmap=True)
    net = model.Demo(model.Shape(**kept["shape"]))
    net.load_state_dict(kept["net"])
    tokenizer = Tokenizer.from_file(str(args.train / "tokenizer.json"))
    streams = {d: data.tokens_of(args.corpus, d, "train", tokenizer, args.train)
               for d in data.DOMAINS}
    bigram = Bigram(streams, kept["shape"]["vocabulary"])
    files = dict(entry.split("=", 1) for entry in args.files)
    figures = {"step": kept["step"], "tokens": kept["tokens"], "minutes": kept["seconds"] / 60,
               "shape": kept["shape"], "loss": {}, "measured": {},
               "train_tokens": {d: len(s) for d, s in streams.items()},
               "bytes": {name: pathlib.Path(file).stat().st_size for name, file in files.items()}}
    use, texts = 0, {}
    for domain in data.DOMAINS:
        text = args.out.with_name(f"{domain}.valid.txt")
        text.write_bytes(validation_text(args.corpus, domain, tokenizer, args.tokens).encode())
        texts[domain] = ids = tokenizer.encode(text.read_bytes().decode()).ids
        total, count, used = torch_nll(net, ids)
        use = use + used
        loss = figures["loss"][domain] = {"PyTorch": total / count}
        for name, file in files.items():
            total, counted = offstage_nll(args.offstage, file, text, ids)
            if counted != count:
                raise ValueError(f"{name}: expected {count} positions, found {counted}")
            loss[name] = total / counted
        figures["measured"][domain] = {"positions": count, "bytes": text.stat().st_size}
        print(domain, {k: round(v, 4) for k, v in loss.items()}, flush=True)
    best = min(SMOOTHING, key=lambda s: sum(bigram.nll(ids, s)[0] for ids in texts.values()))
    for domain, ids in texts.items():
        total, count = bigram.nll(ids, best)
        figures["loss"][domain]["bigram"] = total / count
    figures["smoothing"] = best
    figures["locality"] = locality(
        args.offstage, list(files.values())[-1],
        [args.out.with_name(f"{domain}.valid.txt") for domain in data.DOMAINS], args.out.parent)
    figures["entropy"], figures["least_used"] = entropy(use)
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    if args.sample:
        entries = sample(net, bigram, best, tokenizer, texts)
        args.sample.write_text(json.dumps(entries, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
