"""The deepseek2 golden cases: what a DeepSeek V2 or V3 checkpoint has that golden_models.py doesn't
draw for the other families.

Two places where llama.cpp, whose files people have, decides:

- V2's group_limited_greedy scores a group by its best expert in `transformers`; llama.cpp sums the
  two best, as V3 does. The checkpoint's router is made to do the latter (`sum_of_two_best`).
- llama.cpp knows a checkpoint without q_lora by its 26 or 27 layers, or by a rank of 0: the
  config that the converter reads says 0 (`extras`).
"""

import types

import torch

from .golden_rope import yarn

# 1e-6: V2's inner norms take no other in `transformers`.
COMMON = dict(rms_norm_eps=1e-6)
V2 = dict(
    **COMMON,
    num_experts_per_tok=3,
    norm_topk_prob=False,
    moe_intermediate_size=16,
    first_k_dense_replace=1,
)
V3 = dict(**COMMON, num_key_value_heads=4, norm_topk_prob=True, num_mtp_layers=0)


def yarn_mscale(factor, original_context, mscale):
    """One mscale for angles and scores: llama.cpp's files state mscale_all_dim alone. beta_fast and
    beta_slow are 32 and 1, the only ones that llama.cpp computes with in this family."""
    return {**yarn(factor, original_context), "mscale": mscale, "mscale_all_dim": mscale}


def extras(rope, scoring="softmax", **more):
    """What published configs say and transformers doesn't write."""
    config = {"scoring_func": scoring, **more.pop("config", {})}
    return dict(rope=rope, config=config, **more)


# What could be silently wrong is on: more than one group, a bias for the choice, a factor on the
# weights, an mscale that shows, an original context shorter than the prompts, head sizes that all
# differ.
CASES = {
    "deepseek2-v2-s1": (  # as V2-Lite: no q_lora, no groups
        "DeepseekV2",
        dict(
            **V2,
            num_hidden_layers=3,
            intermediate_size=48,
            n_routed_experts=8,
            n_shared_experts=2,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
            q_lora_rank=None,
            kv_lora_rank=32,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=24,
            vocab_size=300,
            theta=1e4,
        ),
        extras(yarn_mscale(40.0, 48, 0.707), config={"q_lora_rank": 0}),
    ),
    "deepseek2-v2-s2": (  # as V2
        "DeepseekV2",
        dict(
            **V2,
            num_hidden_layers=2,
            intermediate_size=40,
            n_routed_experts=12,
            n_shared_experts=1,
            topk_method="group_limited_greedy",
            n_group=3,
            topk_group=2,
            routed_scaling_factor=4.0,
            q_lora_rank=24,
            kv_lora_rank=40,
            qk_nope_head_dim=24,
            qk_rope_head_dim=8,
            v_head_dim=16,
            vocab_size=304,
            theta=100.0,
        ),
        extras(yarn_mscale(8.0, 64, 0.9), groups_by_two_best=True),
    ),
    "deepseek2-v3-s1": (
        "DeepseekV3",
        dict(
            **V3,
            num_hidden_layers=3,
            first_k_dense_replace=1,
            intermediate_size=48,
            moe_intermediate_size=16,
            n_routed_experts=12,
            n_shared_experts=1,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
            q_lora_rank=24,
            kv_lora_rank=48,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=20,
            vocab_size=300,
            theta=1e4,
        ),
        extras(yarn_mscale(40.0, 48, 1.0), "sigmoid"),
    ),
    "deepseek2-v3-s2": (
        "DeepseekV3",
        dict(
            **V3,
            num_hidden_layers=3,
            first_k_dense_replace=2,
            intermediate_size=32,
            moe_intermediate_size=24,
            n_routed_experts=16,
            n_shared_experts=2,
            num_experts_per_tok=3,
            n_group=2,
            topk_group=1,
            routed_scaling_factor=1.8,
            q_lora_rank=32,
            kv_lora_rank=32,
            qk_nope_head_dim=32,
            qk_rope_head_dim=8,
            v_head_dim=16,
            vocab_size=304,
            tie_word_embeddings=True,
            theta=5e4,
        ),
        extras(yarn_mscale(4.0, 32, 1.3), "sigmoid"),
    ),
}


def take_groups_by_two_best(model):
    """V2's routers choose groups as llama.cpp does."""
    for name, router in model.named_modules():
        if name.endswith("mlp.gate"):
            router.forward = types.MethodType(sum_of_two_best, router)


def _choice(router, x):
    """(logits, what weights an expert, what chooses it)."""
    logits = torch.nn.functional.linear(x.float(), router.weight.float())
    if hasattr(router, "e_score_correction_bias"):
        scores = logits.sigmoid()
        return logits, scores, scores + router.e_score_correction_bias
    scores = logits.softmax(dim=-1)
    return logits, scores, scores


def _groups(router, choice):
    """(scores of the groups, choice with the experts of the groups not taken at -inf)."""
    groups = choice.view(choice.shape[0], router.num_group, -1)
    scores = groups.topk(2, dim=-1).values.sum(dim=-1)
    taken = scores.topk(router.topk_group, dim=-1).indices
    mask = torch.ones_like(scores, dtype=torch.bool).scatter(1, taken, False)
    return scores, groups.masked_fill(mask.unsqueeze(-1), float("-inf")).flatten(1)


def sum_of_two_best(self, hidden_states):
    """DeepseekV2TopkRouter.forward with a group's score as llama.cpp has it."""
    logits, scores, choice = _choice(self, hidden_states.view(-1, self.hidden_dim))
    indices = _groups(self, choice)[1].topk(self.top_k, dim=-1).indices
    return logits, scores.gather(1, indices) * self.routed_scaling_factor, indices


def choice_gap(router, x):
    """The least distance between taken and not taken, of experts and of groups."""
    choice = _choice(router, x)[2]

    def gap(values, k):
        best = values.sort(dim=-1, descending=True).values
        return (best[:, k - 1] - best[:, k]).min().item()

    if (router.num_group or 1) == 1:
        return gap(choice, router.top_k)
    scores, allowed = _groups(router, choice)
    return min(gap(scores, router.topk_group), gap(allowed, router.top_k))
