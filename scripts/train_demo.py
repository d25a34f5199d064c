#!/usr/bin/env python3
"""Trains the demo model on CPU to a budget of minutes or tokens; stops, resumes, extends.

    scripts/demo/corpus.py --out build/demo/corpus
    scripts/train_demo.py --corpus build/demo/corpus --out build/demo/train --tokens 4.7e6

The learning rate warms up, stays, and falls linearly over the last part of the budget. A run that
was killed goes on from its last checkpoint with the same command. To train a finished model for
longer, give `--extend` and a larger budget: it goes on from where the rate began to fall.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import sys
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from demo import data, model  # noqa: E402

CLIP = 1.0
# Embedding and output start fitted, and a router that moves fast sends everything to few experts.
SLOW = 0.25


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="checkpoints and log")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget of wall time, over all resumes")
    budget.add_argument("--tokens", type=float, help="budget of training tokens")
    parser.add_argument("--extend", action="store_true", help="go on from before the rate fell")
    parser.add_argument("--decay", type=float, default=0.4, help="part in which the rate falls")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--balance", type=float, default=0.25,
                        help="weight of the balance loss; at 0.05 experts died")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--bigram-steps", type=int, default=150, help="of the warm start")
    parser.add_argument("--batch", type=int, default=8, help="windows in a step")
    parser.add_argument("--length", type=int, default=256, help="tokens in a window")
    parser.add_argument("--workers", type=int, default=2, help="each does a part of the batch")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument("--layers", type=int, default=model.Shape.layers)
    parser.add_argument("--experts", type=int, default=model.Shape.experts)
    parser.add_argument("--vocabulary", type=int, default=model.Shape.vocabulary)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Worker:
    """A thread with its own part of the batch, its own gradients and a share of the parameters to
    update. Coarse parts of work on one core each, because two threads inside every small product
    wait for each other whenever the machine has something else to do."""

    def __init__(self, net: model.Demo, dtype):
        self.net, self.dtype = net, dtype
        self.sinks = [(torch.zeros_like(m.gate_up, dtype=dtype),
                       torch.zeros_like(m.down, dtype=dtype)) for m in net.mixture]
        self.small = [p for n, p in net.named_parameters() if not is_expert(n)]

    def gradients(self, rows: torch.Tensor, balance_weight: float):
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits, balance, use = self.net(rows[:, :-1], self.sinks)
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        grads = torch.autograd.grad(loss + balance_weight * balance, self.small)
        return loss.item(), balance.item(), grads, use


def is_expert(name: str) -> bool:
    return name.endswith((".gate_up", ".down"))


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        args.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        torch.manual_seed(args.seed)
        self.tokenizer = self._tokenizer()
        self.shape = model.Shape(vocabulary=self.tokenizer.get_vocab_size(), layers=args.layers,
                                 experts=args.experts)
        self.net = model.Demo(self.shape)
        self.dtype = getattr(torch, args.dtype)
        self.workers = [Worker(self.net, self.dtype) for _ in range(args.workers)]
        self.pool = concurrent.futures.ThreadPoolExecutor(args.workers)
        load = lambda split: {  # noqa: E731
            d: data.tokens_of(args.corpus, d, split, self.tokenizer, args.out)
            for d in data.DOMAINS}
        self.mixture, self.valid = data.Mixture(load("train"), args.seed), load("valid")
        self.optimizers = self._optimizers()
        self.step = self.tokens = 0
        self.spent = 0.0  # seconds in earlier runs
        self.started = time.monotonic()
        self.stable_saved = False

    def _tokenizer(self) -> Tokenizer:
        path = self.args.out / "tokenizer.json"
        if not path.exists():
            data.train_tokenizer(self.args.corpus, self.args.vocabulary).save(str(path))
        return Tokenizer.from_file(str(path))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """One for each worker: the experts' stacks dealt out in turn, the rest to the first."""
        shares = [[] for _ in self.workers]
        self.experts = []
        for layer, mixture in enumerate(self.net.mixture):
            for part, parameter in enumerate((mixture.gate_up, mixture.down)):
                self.experts.append((parameter, layer, part))
                shares[layer % len(shares)].append(parameter)
        decay = self.args.weight_decay
        flat = [p for p in self.workers[0].small if p.dim() == 1]
        named = [(n, p) for n, p in self.net.named_parameters()
                 if p.dim() > 1 and not is_expert(n)]
        slow = [p for n, p in named if n.startswith(("embedding", "output")) or ".router" in n]
        fast = [p for n, p in named if "attention." in n]
        groups = [[{"params": share, "weight_decay": decay, "scale": 1.0}] for share in shares]
        groups[0] += [{"params": fast, "weight_decay": decay, "scale": 1.0},
                      {"params": slow, "weight_decay": 0.0, "scale": SLOW},
                      {"params": flat, "weight_decay": 0.0, "scale": SLOW}]
        return [torch.optim.AdamW(g, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=True)
                for g in groups]

    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def progress(self) -> float:
        if self.args.tokens:
            return self.tokens / self.args.tokens
        return self.seconds() / 60 / self.args.minutes

    def rate(self) -> float:
        falling = min(1.0, max(0.0, (1 - self.progress()) / self.args.decay))
        return self.args.rate * min(1.0, (self.step + 1) / self.args.warmup) * falling

    def train_step(self) -> dict:
        rows = torch.from_numpy(self.mixture.batch(self.args.batch, self.args.length))
        parts = rows.chunk(len(self.workers))
        self.net.refresh(self.dtype)
        results = list(self.pool.map(lambda w, r: w.gradients(r, self.args.balance),
                                     self.workers, parts))
        share = [len(part) / len(rows) for part in parts]
        for i, parameter in enumerate(self.workers[0].small):
            parameter.grad = sum(s * r[2][i] for s, r in zip(share, results, strict=True))
        norm, rate = self._expert_gradients(share), self.rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
        list(self.pool.map(lambda o: o.step(), self.optimizers))
        self.step += 1
        self.tokens += rows.shape[0] * self.args.length
        mean = lambda i: sum(s * r[i] for s, r in zip(share, results, strict=True))  # noqa: E731
        return {"step": self.step, "tokens": self.tokens, "minutes": round(self.seconds() / 60, 2),
                "loss": mean(0), "balance": mean(1), "norm": norm, "rate": rate}

    def _expert_gradients(self, share) -> float:
        """Sums the workers' gradients, then clips all gradients together; returns their norm."""
        def gather(entry):
            parameter, layer, part = entry
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(self.workers[0].sinks[layer][part]).mul_(share[0])
            for worker, weight in zip(self.workers[1:], share[1:], strict=True):
                parameter.grad.add_(worker.sinks[layer][part], alpha=weight)

        list(self.pool.map(gather, self.experts))
        gradients = [p.grad for p in self.net.parameters()]
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g) for g in gradients])).item()
        if norm > CLIP:
            for gradient in gradients:
                gradient.mul_(CLIP / norm)
        return norm

    @torch.no_grad()
    def validate(self, windows: int = 8, length: int = 512) -> dict:
        """Loss by domain and use of the experts on windows spread over the validation split."""
        self.net.refresh(self.dtype)

        def one(domain):
            tokens = torch.from_numpy(self.valid[domain].astype("int64"))
            starts = torch.linspace(0, len(tokens) - length - 1, windows).long().tolist()
            rows = torch.stack([tokens[s:s + length + 1] for s in starts])
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                logits, _, use = self.net(rows[:, :-1])
            return F.cross_entropy(logits.float().flatten(0, 1),
                                   rows[:, 1:].flatten()).item(), use

        results = list(self.pool.map(one, data.DOMAINS))
        use = sum(r[1] for r in results).double()
        share = use / use.sum(1, keepdim=True)
        entropy = -(share * share.clamp_min(1e-12).log()).sum(1) / math.log(self.shape.experts)
        losses = {d: r[0] for d, r in zip(data.DOMAINS, results, strict=True)}
        return {"valid": losses, "mean": sum(losses.values()) / len(losses),
                "entropy": entropy.tolist(),
                "least_used": (share.min(1).values * self.shape.experts).tolist()}

    def save(self, name: str) -> None:
        path = self.args.out / name
        torch.save({"shape": dataclasses.asdict(self.shape), "net": self.net.state_dict(),
                    "optimizers": [o.state_dict() for o in self.optimizers],
                    "mixture": self.mixture.state(), "step": self.step, "tokens": self.tokens,
                    "seconds": self.seconds()}, f"{path}.part")
        os.replace(f"{path}.part", path)

    def resume(self) -> bool:
        path = self.args.out / ("stable.pt" if self.args.extend else "last.pt")
        if not path.exists():
            return False
        kept = torch.load(path)
        if kept["shape"] != dataclasses.asdict(self.shape):
            sys.exit(f"{path}: expected shape {self.shape}, found {kept['shape']}")
        self.net.load_state_dict(kept["net"])
        for optimizer, state in zip(self.optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.mixture.load(kept["mixture"])
        self.step, self.tokens, self.spent = kept["step"], kept["tokens"], kept["seconds"]
        print(f"resumed {path} at step {self.step}", flush=True)
        return True

    def warm_start(self) -> None:
        """Fits embedding and output alone to the corpus's pair counts, all pairs in every step.

        Without its layers the model is a bigram model of rank `hidden`; starting from there, what
        the layers learn is context. A step costs as much as one on 2000 tokens and sees all.
        """
        counts = data.pair_counts(self.mixture, self.shape.vocabulary)
        goal = torch.from_numpy(counts)
        weight = goal.sum(1)
        goal = goal / weight.clamp_min(1e-12)[:, None]
        parameters = [self.net.embedding.weight, self.net.output.weight]
        optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        for step in range(self.args.bigram_steps):
            left = 1 - step / self.args.bigram_steps
            optimizer.param_groups[0]["lr"] = 3e-2 * min(left, (step + 1) / 10)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                logits = self.net.output(self.net.final_norm(self.net.embedding.weight))
            logits = torch.log_softmax(logits.float(), dim=1)
            loss = -(weight * (goal * logits).sum(1)).sum()
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            if (step + 1) % 10 == 0:
                print(f"bigram warm start: step {step + 1}, loss {loss.item():.4f}", flush=True)

    def log(self, entry: dict) -> None:
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v
                           for k, v in entry.items()})
        print(line, flush=True)
        with open(self.args.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def run(self) -> None:
        if not self.resume():
            self.warm_start()
            self.log({"step": 0, "tokens": 0, "minutes": 0.0} | self.validate())
            self.save("last.pt")
        self.started = time.monotonic()
        saved = time.monotonic()
        while self.progress() < 1:
            entry = self.train_step()
            if self.step % 10 == 0 or self.step < 4:
                self.log(entry)
            if not self.stable_saved and self.progress() > 1 - self.args.decay:
                self.save("stable.pt")
                self.stable_saved = True
            if time.monotonic() - saved > self.args.save_minutes * 60:
                self.log(entry | self.validate())
                self.save("last.pt")
                saved = time.monotonic()
        self.log({"step": self.step, "tokens": self.tokens,
                  "minutes": round(self.seconds() / 60, 2)} | self.validate(windows=32))
        self.save("last.pt")


if __name__ == "__main__":
    run = Trainer(arguments())
    run.run()
