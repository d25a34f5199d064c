"""The golden models' shapes: one row per case, as data.

A case is (family, fields of its transformers configuration[, what else]). vocab_size is the
model's; the tokenizer may have fewer tokens (padded rows, as the real ones have). "What else":

  rope        rope_parameters beside rope_theta; default {"rope_type": "default"}
  config      what the checkpoint's config.json says on top of what transformers writes
  mxfp4       a second GGUF with the experts as MXFP4 blocks; the checkpoint's experts are the
              values of those blocks, so that both files hold the same weights
  prediction  a further layer for multi-token prediction, which nobody computes
  groups_by_two_best  V2's routers score a group as llama.cpp does
  centred     everything added to the residual has mean zero, so that RMS norm and layer norm agree
"""

from . import golden_deepseek
from .golden_rope import LLAMA3_ROPE, longrope, yarn

COMMON = dict(
    hidden_size=64, num_attention_heads=4, max_position_embeddings=512, attention_dropout=0.0
)
# Of the families that came later: half as wide, to keep the files small.
SMALL = dict(hidden_size=32, max_position_embeddings=512)
PHIMOE_CONFIG = {"architectures": ["PhiMoEForCausalLM"]}
LONG_ROPE = longrope(8, 512, 8)

CASES = {
    "mixtral-s1": (
        "Mixtral",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=16,
            head_dim=16,
            num_local_experts=8,
            num_experts_per_tok=2,
            vocab_size=320,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            theta=1e6,
        ),
    ),
    "mixtral-s2": (
        "Mixtral",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=1,
            intermediate_size=20,
            head_dim=16,
            num_local_experts=6,
            num_experts_per_tok=3,
            vocab_size=327,
            rms_norm_eps=1e-6,
            theta=1e4,
        ),
    ),
    "olmoe-s1": (
        "Olmoe",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=4,
            intermediate_size=16,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            vocab_size=300,
            rms_norm_eps=1e-5,
            theta=1e4,
        ),
    ),
    "olmoe-s2": (
        "Olmoe",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=4,
            intermediate_size=20,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            vocab_size=304,
            rms_norm_eps=1e-5,
            theta=5e5,
        ),
    ),
    "qwen2moe-s1": (
        "Qwen2Moe",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=48,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=40,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            vocab_size=300,
            rms_norm_eps=1e-6,
            theta=1e6,
        ),
    ),
    "qwen2moe-s2": (
        "Qwen2Moe",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=4,
            intermediate_size=64,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=32,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            vocab_size=304,
            rms_norm_eps=1e-6,
            theta=1e4,
        ),
    ),
    "qwen3moe-s1": (
        "Qwen3Moe",
        dict(
            num_hidden_layers=2,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            vocab_size=300,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            theta=1e6,
        ),
    ),
    "qwen3moe-s2": (
        "Qwen3Moe",
        dict(
            num_hidden_layers=3,
            num_key_value_heads=1,
            head_dim=24,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            vocab_size=304,
            rms_norm_eps=1e-6,
            theta=1e7,
        ),
    ),
    **{
        f"llama-s{s}": (
            "Llama",
            dict(
                **SMALL,
                num_hidden_layers=s + 1,
                num_key_value_heads=3 - s,
                intermediate_size=40 + 8 * s,
                head_dim=16,
                vocab_size=320 + 7 * (s - 1),
                rms_norm_eps=1e-5,
                tie_word_embeddings=s == 1,
                theta=1e4 if s == 1 else 5e5,
            ),
            dict(rope={"rope_type": "default"} if s == 1 else LLAMA3_ROPE),
        )
        for s in (1, 2)
    },
    **{
        f"qwen2-s{s}": (
            "Qwen2",
            dict(
                **SMALL,
                num_hidden_layers=s + 1,
                num_key_value_heads=3 - s,
                intermediate_size=40 + 8 * s,
                vocab_size=300 + 4 * (s - 1),
                rms_norm_eps=1e-6,
                tie_word_embeddings=s == 1,
                theta=1e6,
            ),
        )
        for s in (1, 2)
    },
    **{
        f"qwen3-s{s}": (
            "Qwen3",
            dict(
                **SMALL,
                num_hidden_layers=s + 1,
                num_key_value_heads=3 - s,
                intermediate_size=40 + 8 * s,
                head_dim=8 * (s + 1),
                vocab_size=300 + 4 * (s - 1),
                rms_norm_eps=1e-6,
                tie_word_embeddings=s == 1,
                theta=1e6,
            ),
        )
        for s in (1, 2)
    },
    # The window is shorter than the prompts, and YaRN's original context than the long one.
    "gpt-oss-s1": (
        "GptOss",
        dict(
            **SMALL,
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=32,
            head_dim=16,
            num_local_experts=6,
            num_experts_per_tok=2,
            sliding_window=8,
            vocab_size=300,
            rms_norm_eps=1e-5,
            theta=1.5e5,
        ),
        dict(rope=yarn(4.0, 32), mxfp4=True),
    ),
    "gpt-oss-s2": (
        "GptOss",
        dict(
            **SMALL,
            num_hidden_layers=3,
            num_key_value_heads=1,
            intermediate_size=64,
            head_dim=24,
            num_local_experts=5,
            num_experts_per_tok=3,
            sliding_window=5,
            vocab_size=304,
            rms_norm_eps=1e-5,
            theta=1e4,
        ),
        dict(rope=yarn(8.0, 24), mxfp4=True),
    ),
    # -s1 like GLM-4.5-Air (no QK-norm), -s2 like GLM-4.5 with its prediction layer.
    "glm4moe-s1": (
        "Glm4Moe",
        dict(
            **SMALL,
            num_hidden_layers=3,
            num_key_value_heads=2,
            intermediate_size=48,
            head_dim=16,
            moe_intermediate_size=16,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_shared_experts=1,
            first_k_dense_replace=1,
            routed_scaling_factor=1.5,
            norm_topk_prob=True,
            attention_bias=True,
            use_qk_norm=False,
            num_mtp_layers=0,
            vocab_size=304,
            rms_norm_eps=1e-5,
            theta=1e6,
        ),
        dict(rope={"rope_type": "default", "partial_rotary_factor": 0.5}),
    ),
    "glm4moe-s2": (
        "Glm4Moe",
        dict(
            **SMALL,
            num_hidden_layers=3,
            num_key_value_heads=1,
            intermediate_size=40,
            head_dim=24,
            moe_intermediate_size=16,
            n_routed_experts=6,
            num_experts_per_tok=3,
            n_shared_experts=2,
            first_k_dense_replace=2,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            attention_bias=True,
            use_qk_norm=True,
            num_mtp_layers=0,
            vocab_size=306,
            rms_norm_eps=1e-5,
            theta=1e4,
        ),
        dict(rope={"rope_type": "default", "partial_rotary_factor": 0.5}, prediction=True),
    ),
    "minimax-m2-s1": (
        "MiniMaxM2",
        dict(
            **SMALL,
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=16,
            head_dim=16,
            num_local_experts=8,
            num_experts_per_tok=2,
            vocab_size=300,
            rms_norm_eps=1e-6,
            theta=5e6,
        ),
        dict(
            rope={"rope_type": "default", "partial_rotary_factor": 0.5},
            config={"scoring_func": "sigmoid", "rotary_dim": 8},
        ),
    ),
    "minimax-m2-s2": (
        "MiniMaxM2",
        dict(
            **SMALL,
            num_hidden_layers=3,
            num_key_value_heads=1,
            intermediate_size=20,
            head_dim=24,
            num_local_experts=6,
            num_experts_per_tok=3,
            vocab_size=304,
            rms_norm_eps=1e-6,
            theta=1e4,
        ),
        dict(
            rope={"rope_type": "default", "partial_rotary_factor": 0.75},
            config={"scoring_func": "sigmoid", "rotary_dim": 18},
        ),
    ),
    "granitemoe-s1": (
        "GraniteMoe",
        dict(
            **SMALL,
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=16,
            num_local_experts=8,
            num_experts_per_tok=2,
            embedding_multiplier=3.0,
            logits_scaling=1.6,
            residual_multiplier=0.6,
            attention_multiplier=0.2,
            vocab_size=300,
            rms_norm_eps=1e-6,
            theta=1e4,
        ),
    ),
    "granitemoe-s2": (  # with the shared expert of Granite 3.x
        "GraniteMoeShared",
        dict(
            **SMALL,
            num_hidden_layers=3,
            num_key_value_heads=1,
            intermediate_size=20,
            shared_intermediate_size=24,
            num_local_experts=6,
            num_experts_per_tok=3,
            embedding_multiplier=2.0,
            logits_scaling=0.5,
            residual_multiplier=0.4,
            attention_multiplier=0.5,
            vocab_size=304,
            rms_norm_eps=1e-6,
            theta=1e6,
        ),
    ),
    # -s1 takes the long factors, -s2 the short ones (contexts of 256 here, 1024 in llama.cpp).
    # transformers' Phi-MoE takes the short ones always: for -s1 it is given the long ones as such,
    # and the checkpoint says which is which.
    "phimoe-s1": (
        "Phimoe",
        dict(
            **SMALL,
            num_hidden_layers=2,
            num_key_value_heads=2,
            intermediate_size=16,
            num_local_experts=8,
            num_experts_per_tok=2,
            attention_bias=True,
            lm_head_bias=True,
            vocab_size=320,
            rms_norm_eps=1e-5,
            theta=1e4,
        ),
        dict(
            rope={**LONG_ROPE, "short_factor": LONG_ROPE["long_factor"]},
            centred=True,
            config={**PHIMOE_CONFIG, "rope_parameters": {**LONG_ROPE, "rope_theta": 1e4}},
        ),
    ),
    "phimoe-s2": (
        "Phimoe",
        dict(
            **{**SMALL, "max_position_embeddings": 4096},
            num_hidden_layers=3,
            num_key_value_heads=1,
            intermediate_size=20,
            num_local_experts=6,
            num_experts_per_tok=2,
            attention_bias=True,
            lm_head_bias=True,
            vocab_size=327,
            rms_norm_eps=1e-5,
            theta=1e4,
        ),
        dict(rope=longrope(1024, 4096, 8), config=PHIMOE_CONFIG),
    ),
    **golden_deepseek.CASES,
}
