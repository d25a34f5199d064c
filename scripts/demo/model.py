"""The demo model in PyTorch: a `qwen3moe` as the GGUF's readers compute it.

Grouped-query attention with an RMS norm per head of queries and keys, rotary by halves, then a
mixture of SwiGLU experts: softmax over all experts, the best few renormalised to 1.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Shape:
    vocabulary: int = 4096
    layers: int = 6
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    experts: int = 32
    used: int = 4
    width: int = 256
    rotary_base: float = 10000.0
    epsilon: float = 1e-6


# An expert's rows are padded to a multiple, so that few shapes of product occur: each new shape
# costs the CPU's matrix library more than the product itself.
ROWS = 32


def group(chosen: torch.Tensor, experts: int):
    """Places of a layer's calls, expert by expert, each expert's part padded.

    Returns for each padded place its row and its flat index into `chosen` (one past the end for
    padding), and each expert's padded count.
    """
    calls = chosen.reshape(-1)
    counts = torch.bincount(calls, minlength=experts)
    padded = (counts + ROWS - 1) // ROWS * ROWS
    begin = padded.cumsum(0) - padded - (counts.cumsum(0) - counts)
    order = torch.argsort(calls, stable=True)
    place = torch.arange(len(calls)) + begin[calls[order]]
    flat = torch.full((int(padded.sum()),), len(calls))
    flat[place] = order
    return flat // chosen.shape[1], flat, padded.tolist()


class GroupedExperts(torch.autograd.Function):
    """sum over a row's chosen experts of weight * down(silu(gate(x)) * up(x)), expert by expert.

    The weights are bfloat16 copies that autograd doesn't see: each expert's gradient goes straight
    into `sink` (one buffer for each worker), so that nothing of the size of all experts is made in
    a step. An expert without rows gets zeros.
    """

    @staticmethod
    def forward(ctx, x, weights, chosen, gate_up, down, sink):
        source, flat, counts = group(chosen, gate_up.shape[0])
        grouped = with_zero(x).index_select(0, source)
        scale = with_zero(weights.reshape(-1)).index_select(0, flat).unsqueeze(1)
        inner = grouped.new_empty(len(source), gate_up.shape[1])
        outer = torch.empty_like(grouped)
        for expert, part in parts(counts):
            torch.mm(grouped[part], gate_up[expert].t(), out=inner[part])
        gate, up = inner.chunk(2, dim=1)
        active = F.silu(gate) * up
        for expert, part in parts(counts):
            torch.mm(active[part], down[expert].t(), out=outer[part])
        result = torch.zeros(len(x) + 1, x.shape[1])
        result.index_add_(0, source, outer * scale)
        ctx.save_for_backward(grouped, inner, active, outer, scale, source, flat, gate_up, down)
        ctx.counts, ctx.sink, ctx.shape = counts, sink, weights.shape
        return result[:-1]

    @staticmethod
    def backward(ctx, d_result):
        grouped, inner, active, outer, scale, source, flat, gate_up, down = ctx.saved_tensors
        d_rows = with_zero(d_result).index_select(0, source)
        d_scale = (d_rows * outer).sum(1)
        d_outer = (d_rows * scale).to(grouped.dtype)
        d_gate_up, d_down = ctx.sink
        d_active, d_grouped = torch.empty_like(active), torch.empty_like(grouped)
        for expert, part in parts(ctx.counts):
            torch.mm(d_outer[part], down[expert], out=d_active[part])
            torch.mm(d_outer[part].t(), active[part], out=d_down[expert])
        gate, up = inner.chunk(2, dim=1)
        d_inner = torch.cat([torch.ops.aten.silu_backward(d_active * up, gate),
                             d_active * F.silu(gate)], dim=1)
        for expert, part in parts(ctx.counts):
            torch.mm(d_inner[part], gate_up[expert], out=d_grouped[part])
            torch.mm(d_inner[part].t(), grouped[part], out=d_gate_up[expert])
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                d_gate_up[expert].zero_()
                d_down[expert].zero_()
        d_x = torch.zeros(ctx.shape[0] + 1, grouped.shape[1])
        d_x.index_add_(0, source, d_grouped.float())
        d_weights = torch.zeros(ctx.shape.numel() + 1).index_copy_(0, flat, d_scale)
        return d_x[:-1].to(grouped.dtype), d_weights[:-1].view(ctx.shape), None, None, None, None


def with_zero(x: torch.Tensor) -> torch.Tensor:
    """x and a zero, for the padding to point at."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])


def parts(counts):
    at = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(at, at + count)
        at += count


class RmsNorm(nn.Module):
    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x):
        x = x.float()
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.epsilon) * self.weight


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.q = nn.Linear(shape.hidden, queries, bias=False)
        self.k = nn.Linear(shape.hidden, keys, bias=False)
        self.v = nn.Linear(shape.hidden, keys, bias=False)
        self.output = nn.Linear(queries, shape.hidden, bias=False)
        self.q_norm = RmsNorm(shape.head_size, shape.epsilon)
        self.k_norm = RmsNorm(shape.head_size, shape.epsilon)

    def forward(self, x, rotary):
        batch, length, _ = x.shape
        split = (batch, length, -1, self.shape.head_size)
        q = rotate(self.q_norm(self.q(x).view(split)), rotary)
        k = rotate(self.k_norm(self.k(x).view(split)), rotary)
        v = self.v(x).view(split)
        q, k, v = (part.to(v.dtype).transpose(1, 2) for part in (q, k, v))
        repeat = self.shape.heads // self.shape.kv_heads
        mixed = F.scaled_dot_product_attention(
            q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, -1))


def rotate(x, rotary):
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Mixture(nn.Module):
    """The master weights of a layer's experts are float32; `copies` are what the kernels read."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.router = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(shape.experts, 2 * shape.width, shape.hidden))
        self.down = nn.Parameter(torch.empty(shape.experts, shape.hidden, shape.width))
        self.copies = None

    def refresh(self, dtype) -> None:
        if self.copies is None or self.copies[0].dtype != dtype:
            self.copies = (self.gate_up.detach().to(dtype), self.down.detach().to(dtype))
        else:
            self.copies[0].copy_(self.gate_up.detach())
            self.copies[1].copy_(self.down.detach())

    def forward(self, x, sink):
        flat = x.view(-1, x.shape[-1])
        # Routing in float32, as the runtime does: a rounded logit would choose other experts.
        with torch.autocast("cpu", enabled=False):
            chances = torch.softmax(F.linear(flat.float(), self.router.weight), dim=1)
        weights, chosen = chances.topk(self.shape.used, dim=1)
        weights = weights / weights.sum(1, keepdim=True)
        mixed = GroupedExperts.apply(flat.to(self.copies[0].dtype), weights, chosen, *self.copies,
                                     sink)
        use = torch.bincount(chosen.reshape(-1), minlength=self.shape.experts)
        share = use.float() / use.sum()
        balance = self.shape.experts * (share * chances.mean(0)).sum()
        return mixed.view_as(x), balance, use


class Demo(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        layers = range(shape.layers)
        self.attention = nn.ModuleList([Attention(shape) for _ in layers])
        self.mixture = nn.ModuleList([Mixture(shape) for _ in layers])
        self.attention_norm = nn.ModuleList([RmsNorm(shape.hidden, shape.epsilon) for _ in layers])
        self.mixture_norm = nn.ModuleList([RmsNorm(shape.hidden, shape.epsilon) for _ in layers])
        self.final_norm = RmsNorm(shape.hidden, shape.epsilon)
        self.output = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights; what writes to the residual stream starts small beside the embedding."""
        scale = 1 / math.sqrt(self.shape.hidden)
        residual = 0.3 * scale / math.sqrt(2 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                small = name.endswith((".output.weight", ".down"))
                nn.init.normal_(parameter, std=residual if small else scale)
        nn.init.normal_(self.embedding.weight, std=0.7)
        nn.init.normal_(self.output.weight, std=0.02)

    def rotary(self, length: int):
        half = self.shape.head_size // 2
        rates = self.shape.rotary_base ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(length, dtype=torch.float32)[:, None, None] * rates
        return angles.cos(), angles.sin()

    def refresh(self, dtype) -> None:
        for mixture in self.mixture:
            mixture.refresh(dtype)

    def forward(self, tokens, sinks=None):
        """Logits [batch, length, vocabulary], the mean balance loss, use [layer, expert]."""
        x = self.embedding(tokens)
        rotary = self.rotary(tokens.shape[1])
        balances, uses = [], []
        for layer in range(self.shape.layers):
            x = x + self.attention[layer](self.attention_norm[layer](x), rotary)
            mixed, balance, use = self.mixture[layer](
                self.mixture_norm[layer](x), sinks[layer] if sinks else None)
            x = x + mixed
            balances.append(balance)
            uses.append(use)
        return self.output(self.final_norm(x)), torch.stack(balances).mean(), torch.stack(uses)
