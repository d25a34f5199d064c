"""Rotary scalings of the golden models, as transformers' rope_parameters."""

import math

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def yarn(factor, original_context):
    """llama.cpp rounds the bounds of the mixed frequencies to whole numbers whatever the checkpoint
    says, hence "truncate"."""
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original_context,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,
    }


def longrope(original_context, context, head_dim):
    """The converter derives one magnitude from the two contexts; the checkpoint says the same."""
    magnitude = math.sqrt(1 + math.log(context / original_context) / math.log(original_context))
    half = head_dim // 2
    return {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(half)],
        "long_factor": [1.0 + 1.5 * i for i in range(half)],
        "short_mscale": magnitude,
        "long_mscale": magnitude,
        "original_max_position_embeddings": original_context,
    }
