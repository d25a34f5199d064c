#!/usr/bin/env python3
"""Writes the demo's card and training curve from what measure.py and the training left.

    scripts/demo/card.py --corpus build/demo/corpus --train build/demo/train \\
        --figures build/demo/figures.json --out src/app/demo
"""

import argparse
import json
import math
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

# What `offstage trace stats` and `trace replay` say of recorded routing of real models: reuse at lags
# 1, 8 and 64, LRU's and Belady's hit rates at 10, 25, 50 and 75 % of the experts.
REAL = {
    "gpt-oss-20b, 108,664 tokens": ("32, top-4", (.436, .352, .332), (.436, .656, .899, .981),
                                    (.609, .809, .955, .993)),
    "OLMoE-1B-7B, 299 tokens": ("64, top-8", (.435, .304, .237), (.434, .598, .794, .932),
                                (.590, .757, .904, .962)),
    "Qwen3-30B-A3B, 128 tokens": ("128, top-6", (.380, .267, .243), (.550, .807, .912, .917),
                                  (.726, .885, .916, .917)),
}
BLUE, ORANGE, GREY = "#2a6fb0", "#d9822b", "#888888"


def read_log(path: pathlib.Path):
    """Training losses and validation means by step; a resumed stretch replaces what it repeats."""
    entries = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        for step in [s for s in entries if s > entry["step"]]:
            del entries[step]
        entries[entry["step"]] = entries.get(entry["step"], {}) | entry
    train = [(e["tokens"], e["loss"]) for e in entries.values() if "loss" in e]
    valid = [(e["tokens"], e["mean"]) for e in entries.values() if "mean" in e]
    return train, valid


def curve(log: pathlib.Path, figures: dict, out: pathlib.Path) -> None:
    train, valid = read_log(log)
    bigram = [loss["bigram"] for loss in figures["loss"].values()]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([t / 1e6 for t, _ in train], [v for _, v in train], color=BLUE, alpha=0.5,
              linewidth=1, label="training, a batch")
    axes.plot([t / 1e6 for t, _ in valid], [v for _, v in valid], "o-", color=ORANGE,
              markersize=4, label="validation, mean of the domains")
    axes.axhline(sum(bigram) / len(bigram), color=GREY, linestyle="--", linewidth=1,
                 label="bigram model, on the card's validation text")
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Offstage demo: training")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(out, dpi=110)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def losses(figures: dict) -> str:
    names = list(next(iter(figures["loss"].values())))
    ppl = lambda nats: f"{math.exp(nats):.2f}"  # noqa: E731
    rows = [[domain, *(ppl(loss[name]) for name in names)]
            for domain, loss in figures["loss"].items()]
    mean = {n: sum(loss[n] for loss in figures["loss"].values()) / len(rows) for n in names}
    rows.append(["*mean loss*", *(f"{mean[n]:.4f}" for n in names)])
    return table(["domain", *names], rows)


def verdict(figures: dict) -> str:
    below = {d: loss["bigram"] - loss["F16"] for d, loss in figures["loss"].items()}
    mean = sum(below.values()) / len(below)
    side = "below" if mean > 0 else "above"
    return (f"The F16 file's loss is on average {abs(mean):.2f} nats {side} the bigram model's on "
            f"the same tokens, from {min(below.values()):+.2f} to {max(below.values()):+.2f} by "
            "domain (positive: the model is better).")


def sources(corpus: pathlib.Path, figures: dict) -> str:
    facts = json.loads((corpus / "sources.json").read_text())
    packages = table(["package", "version", "licence of what is taken"],
                     [[f"`{name}`", entry["version"], entry["licence"]]
                      for name, entry in facts["packages"].items()])
    size = lambda part: f"{part['documents']} / {part['bytes'] / 1e6:.2f} MB"  # noqa: E731
    domains = table(["domain", "training documents / text", "training tokens",
                     "validation documents / text"],
                    [[d, size(parts["train"]), f"{figures['train_tokens'][d] / 1e6:.2f} M",
                      size(parts["valid"])] for d, parts in facts["domains"].items()])
    return packages + "\n\n" + domains


def locality(figures: dict) -> str:
    facts, shape = figures["locality"], figures["shape"]
    percent = lambda values: " ".join(f"{100 * v:.1f}" for v in values)  # noqa: E731
    rows = {f"this one, {facts['tokens']} tokens": (
        f"{shape['experts']}, top-{shape['used']}",
        [facts["reuse"][lag] for lag in ("1", "8", "64")], *facts["hit_rate"].values())} | REAL
    return table(["model", "experts", "reuse at lag 1, 8, 64 (%)",
                  "LRU at 10, 25, 50, 75 % of the experts", "Belady"],
                 [[name, experts, percent(reuse), percent(lru), percent(belady)]
                  for name, (experts, reuse, lru, belady) in rows.items()])


def card(corpus: pathlib.Path, figures: dict) -> str:
    shape, gate = figures["shape"], figures["locality"]["gate"]
    experts = table(["layer", "entropy of use", "least used expert"],
                    [[str(i), f"{e:.3f}", f"{least:.2f}"] for i, (e, least) in
                     enumerate(zip(figures["entropy"], figures["least_used"], strict=True))])
    dead = sum(least < 0.2 for least in figures["least_used"])
    sizes = ", ".join(f"{n} {b / 2**20:.2f} MiB" for n, b in figures["bytes"].items())
    positions = sum(m["positions"] for m in figures["measured"].values())
    facts = ", ".join([
        f"{shape['layers']} layers", f"{shape['experts']} experts of width {shape['width']}",
        f"top-{shape['used']}", f"hidden {shape['hidden']}",
        f"{shape['heads']} heads of {shape['head_size']} over {shape['kv_heads']} KV heads"])
    budget = (f"{figures['step']} steps, {figures['tokens'] / 1e6:.2f} M tokens, "
              f"{figures['minutes']:.0f} minutes of wall time")
    return f"""# Offstage demo: model card

The model of `offstage run` without `-m`: a small Mixture-of-Experts model trained from scratch on
freely licensed text, so that a fresh clone has text, routing and quality loss to look at. It
knows five kinds of text and nothing of the world; its answers are never facts.

`qwen3moe`: {facts},
byte-level BPE of {shape['vocabulary']} tokens (`gpt-2` pre-tokenizer), context 512.
Shipped: Q4_K, with output, embedding and attention values in Q6_K. Sizes: {sizes}.

## Training

{budget} on two CPU cores that had other work too
(`scripts/train_demo.py`; AdamW, bfloat16 products, load-balancing loss). Embedding and output were
first fitted alone to the pair counts of the training split: at 0 tokens the model is a bigram model
of rank {shape['hidden']}, and what it learns after that is context. The balance loss had a weight of
0.05 for the first 0.9 M tokens, when the least used expert of a layer fell to 0.01 to 0.15 of an even
share, and 0.25 (now the default) from then on, when all came back.

![loss over training tokens](curve.png)

## Perplexity on validation text

{positions} positions of documents that training never saw, in windows of 512; `offstage eval` for the
files, PyTorch in float32 for the checkpoint; the bigram model has all pairs of the training split,
smoothed as suits this very text best (weight {figures['smoothing']}).

{losses(figures)}

{verdict(figures)}
Part of that is by heart: licence heads and manual page frames recur from file to file, in `c` and
`man` most of all.

## Use of the experts

On the same text. Entropy 1 is even use; the least used expert's share is in units of an even
share (1/{shape['experts']}), and below 0.2 counts as dead: {dead} of {shape['layers']} layers have one.

{experts}

## Locality of the routing

Recorded over the same text (`offstage trace record --gate-accuracy`, then `trace stats` and
`trace replay`), beside recorded routing of real models (sources: src/ARCHITECTURE.md, item 11):

{locality(figures)}

A small model's locality carries over in kind, not in size. Calls do come back sooner than chance
({100 * shape['used'] / shape['experts']:.1f} %) would have it, most of all at the very next token, but about half as often as a
real model's do, and little of it is topic: what is left at lag 64 is near chance, because a strong
balance loss spreads every domain over all experts. A cache that does well here does better on a
real model; how much RAM a real model needs can't be learned here.

The next layer's gate, run on this layer's stream, names {100 * gate['1']:.0f} % of the next layer's experts, and
{100 * gate['2']:.0f} % of those two layers on: as in real models, for which 72 to 89 % are reported.

## Text it was trained on

Debian packages, downloaded and unpacked by `scripts/demo/corpus.py`; every sixteenth document, by
the hash of its name, is validation.

{sources(corpus, figures)}

## Made with

```sh
scripts/demo/corpus.py --out build/demo/corpus
scripts/train_demo.py --corpus build/demo/corpus --out build/demo/train --tokens 4.7e6
scripts/demo/export.py --train build/demo/train --out build/demo/demo-f16.gguf
scripts/quantize.py build/demo/demo-f16.gguf src/app/demo/offstage-demo.gguf Q4_K
scripts/demo/measure.py … && scripts/demo/card.py …    # this page
```
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("corpus", "train", "figures", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text())
    curve(args.train / "log.jsonl", figures, args.out / "curve.png")
    (args.out / "CARD.md").write_text(card(args.corpus, figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
