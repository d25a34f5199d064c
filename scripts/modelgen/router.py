"""The router's logits as a model of their own: popularity per expert plus a part that differs from
token to token.

A logit is bias[e] + N(0, 1) per token, and bias[e] = -skew * ln(rank of e), ranks permuted anew in
every layer. Tokens are taken as independent, so reuse comes from popularity alone. Real traces
reuse 0.38–0.44 of a token's experts at the next token; part of theirs comes from the conversation,
so ours holds at every lag and needs a stronger skew.
"""

import numpy as np


def popularity_bias(n_experts, skew, rng):
    """float64 [n_experts], mean 0."""
    bias = -skew * np.log(1.0 + rng.permutation(n_experts))
    return bias - bias.mean()


def expected_reuse(n_experts, top_k, skew, seed=0, n_tokens=4000):
    """Share of a token's experts that the next token calls again: a Monte-Carlo estimate, ±
    0.005."""
    rng = np.random.default_rng([7, seed])
    logits = popularity_bias(n_experts, skew, rng) + rng.standard_normal((n_tokens, n_experts))
    used = np.zeros((n_tokens, n_experts), bool)
    np.put_along_axis(used, np.argpartition(-logits, top_k - 1, axis=1)[:, :top_k], True, axis=1)
    return float((used[1:] & used[:-1]).sum() / (top_k * (n_tokens - 1)))


def skew_for(n_experts, top_k, reuse):
    """The skew whose expected reuse is `reuse`, by bisection."""
    low, high = 0.0, 8.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if expected_reuse(n_experts, top_k, middle) < reuse else (low, middle)
        )
    return round((low + high) / 2, 3)
