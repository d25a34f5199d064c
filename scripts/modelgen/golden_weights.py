"""Tiny random checkpoints for the golden models: weights of a scale at which every part matters.

In: a family of transformers, configuration fields, a torch generator. Out: a float32 model, and
for gpt-oss its experts as the MXFP4 blocks that their values came from.
"""

import math

import torch
import transformers

from . import golden_deepseek
from .golden_cases import COMMON

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
SENTENCEPIECE = ("Mixtral", "Llama", "Phimoe")  # families that get a SentencePiece tokenizer


def softmax_router(scores, jitter_eps, training, top_k=2):
    """Phi-MoE as llama.cpp computes it from the files people have: a softmax over all experts, the
    best top_k, renormalised. (transformers runs SparseMixer's masked softmaxes.)"""
    weights, experts = torch.softmax(scores, dim=-1).topk(top_k, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), experts


def round_to_mxfp4(rows):
    """[..., n] → (nearest values of MXFP4 blocks of 32, nibbles uint8, scales uint8)."""
    blocks = rows.reshape(*rows.shape[:-1], -1, 32)
    top = blocks.abs().amax(dim=-1, keepdim=True)
    exponent = torch.floor(torch.log2(top / 6)).clamp(-20, 20) + 1
    scale = torch.exp2(exponent)
    nibbles = (blocks.unsqueeze(-1) / scale.unsqueeze(-1) - E2M1).abs().argmin(dim=-1)
    values = (E2M1[nibbles] * scale).reshape(rows.shape)
    return values, nibbles.to(torch.uint8), (exponent.squeeze(-1) + 127).to(torch.uint8)


def round_experts(model):
    """gpt-oss: experts become values of MXFP4 blocks. Returns those blocks as a published
    checkpoint's tensors; blocks run along the input dimension, even elements in the low nibbles."""
    tensors = {}
    for name, p in model.named_parameters():
        if not name.endswith(("gate_up_proj", "down_proj")) or p.dim() != 3:
            continue
        values, nibbles, scales = round_to_mxfp4(p.detach().transpose(1, 2).contiguous())
        p.data.copy_(values.transpose(1, 2))
        tensors[name + "_blocks"] = (nibbles[..., ::2] | (nibbles[..., 1::2] << 4)).contiguous()
        tensors[name + "_scales"] = scales.contiguous()
    return tensors


def _init(name, p, tied, generator):
    """One parameter's draw."""
    noise = torch.randn(p.shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + 0.2 * noise
    if name.endswith("sinks"):
        return 1 + noise
    if name.endswith("bias"):
        return 0.3 * noise
    fan_in, gain = p.shape[-1], 1.5
    if "embed_tokens" in name:
        fan_in, gain = 1, 0.4 if tied else 1.0
    elif name.endswith(("gate.weight", "router.weight")):
        gain = 2.0
    elif "lm_head" in name:
        gain = 3.0
    return gain / math.sqrt(fan_in) * noise


def _init_gpt_oss(name, p, generator):
    """Experts are [expert][in][out]; gates wide enough to meet the clamp at 7."""
    gain = 4.0 if name.endswith("gate_up_proj") else 0.4
    return gain / math.sqrt(p.shape[1]) * torch.randn(p.shape, generator=generator)


def _centre(model):
    """What is added to the residual loses its mean over the hidden dimension."""
    for name, p in model.named_parameters():
        if "embed_tokens" in name:
            p.sub_(p.mean(dim=-1, keepdim=True))
        elif name.endswith(("o_proj.weight", "experts.down_proj", "o_proj.bias")):
            dim = 0 if p.dim() == 1 else p.dim() - 2
            p.sub_(p.mean(dim=dim, keepdim=True))


def make_config(family, fields, extras, eos):
    fields = {**COMMON, **fields}
    theta = fields.pop("theta")
    config = getattr(transformers, family + "Config")(
        **fields,
        rope_parameters={"rope_theta": theta, **extras.get("rope", {"rope_type": "default"})},
        eos_token_id=eos,
        pad_token_id=None,
        bos_token_id=1 if family in SENTENCEPIECE else None,
    )
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def make_model(family, fields, extras, eos, generator):
    """Returns (model, MXFP4 tensors or {})."""
    config = make_config(family, fields, extras, eos)
    if family == "Phimoe":
        from transformers.models.phimoe import modeling_phimoe

        modeling_phimoe.sparsemixer = softmax_router
    model = getattr(transformers, family + "ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if family == "GptOss" and p.dim() == 3:
                p.copy_(_init_gpt_oss(name, p, generator))
            else:
                p.copy_(_init(name, p, config.tie_word_embeddings, generator))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
        if extras.get("centred"):
            _centre(model)
        if extras.get("groups_by_two_best"):
            golden_deepseek.take_groups_by_two_best(model)
        return model, round_experts(model) if extras.get("mxfp4") else {}


class RouterGaps:
    """Watches every router: the least gap between the k-th and the next score of the choice, over
    all positions and layers; infinite where there is no router."""

    def __init__(self, model):
        self.least, self.k = math.inf, getattr(model.config, "num_experts_per_tok", 0)
        for name, module in model.named_modules():
            if name.endswith(("mlp.gate", "block_sparse_moe.gate", "router")) and self.k:
                module.register_forward_hook(self._see)

    def _see(self, module, inputs, output):
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        if type(module).__name__.startswith("Deepseek"):  # groups have gaps too
            self.least = min(self.least, golden_deepseek.choice_gap(module, x))
            return
        scores = x @ module.weight.T
        if getattr(module, "bias", None) is not None:
            scores = scores + module.bias
        bias = inputs[1] if len(inputs) > 1 else getattr(module, "e_score_correction_bias", None)
        if bias is not None:
            scores = scores.sigmoid() + bias
        scores, _ = torch.sort(scores, dim=-1, descending=True)
        self.least = min(self.least, (scores[:, self.k - 1] - scores[:, self.k]).min().item())
