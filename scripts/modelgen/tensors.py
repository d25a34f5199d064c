"""The tensors of a shape, and which ggml type each takes under a quantisation recipe.

A tensor is (name, ne, role): ne in GGUF order (fastest first), names and shapes as GGUF readers of
the architectures expect them. Roles say how weights are drawn (make_model.py) and which recipe
applies.
"""

from dataclasses import dataclass, field

from .blocks import BLOCK, T

QUANTS = [
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "MXFP4",
    "IQ4_NL",
    "IQ4_XS",
    "IQ3_S",
    "IQ3_XXS",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
    "Q4_K_M",
]
# general.file_type, as llama.cpp numbers it; informative only.
FILE_TYPE = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q4_K_M": 15,
    "Q5_K": 16,
    "Q6_K": 18,
    "BF16": 32,
    "MXFP4": 38,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ2_S": 28,
    "IQ4_XS": 30,
    "IQ1_M": 31,
}


# Always F32, as in every published file.
SMALL_ROLES = ("norm", "head_norm", "bias", "bias_out", "sinks", "router", "shared_gate")


@dataclass
class Tensor:
    name: str
    ne: tuple
    # embedding output norm head_norm bias bias_out sinks router shared_gate in attn_v attn_k
    # attn_out down
    role: str
    layer: int = -1
    qtype: T = T.F32
    bytes: int = field(default=0)

    @property
    def rows(self):
        n = 1
        for extent in self.ne[1:]:
            n *= extent
        return n

    @property
    def row_bytes(self):
        per_block, block_bytes = BLOCK[self.qtype]
        return self.ne[0] // per_block * block_bytes


def _gpt_oss_extras(s, b, i):
    """Sinks, and the biases that no other architecture has."""
    yield Tensor(b + "attn_output.bias", (s.hidden,), "bias_out", i)
    yield Tensor(b + "attn_sinks.weight", (s.heads,), "sinks", i)
    yield Tensor(b + "ffn_gate_inp.bias", (s.experts,), "bias", i)
    yield Tensor(b + "ffn_gate_exps.bias", (s.expert_ff, s.experts), "bias", i)
    yield Tensor(b + "ffn_up_exps.bias", (s.expert_ff, s.experts), "bias", i)
    yield Tensor(b + "ffn_down_exps.bias", (s.hidden, s.experts), "bias_out", i)


def _deepseek_tensors(s, i):
    d, b = s.deepseek, f"blk.{i}."
    yield Tensor(b + "attn_norm.weight", (s.hidden,), "norm", i)
    if d.q_rank:
        yield Tensor(b + "attn_q_a.weight", (s.hidden, d.q_rank), "in", i)
        yield Tensor(b + "attn_q_a_norm.weight", (d.q_rank,), "norm", i)
        yield Tensor(b + "attn_q_b.weight", (d.q_rank, s.heads * d.head), "in", i)
    else:
        yield Tensor(b + "attn_q.weight", (s.hidden, s.heads * d.head), "in", i)
    yield Tensor(b + "attn_kv_a_mqa.weight", (s.hidden, d.kv_rank + d.rope), "in", i)
    yield Tensor(b + "attn_kv_a_norm.weight", (d.kv_rank,), "norm", i)
    yield Tensor(b + "attn_k_b.weight", (d.nope, d.kv_rank, s.heads), "in", i)
    yield Tensor(b + "attn_v_b.weight", (d.kv_rank, d.v, s.heads), "attn_v", i)
    yield Tensor(b + "attn_output.weight", (s.heads * d.v, s.hidden), "attn_out", i)
    yield Tensor(b + "ffn_norm.weight", (s.hidden,), "norm", i)
    if i < d.dense_layers:
        yield from _ffn(b, "", s.hidden, s.dense_ff, i)
        return
    yield Tensor(b + "ffn_gate_inp.weight", (s.hidden, s.experts), "router", i)
    if d.sigmoid:
        yield Tensor(b + "exp_probs_b.bias", (s.experts,), "bias", i)
    yield from _experts(s, b, i)
    yield from _ffn(b, "_shexp", s.hidden, d.shared_experts * s.expert_ff, i)


def _ffn(b, suffix, hidden, width, i):
    yield Tensor(f"{b}ffn_gate{suffix}.weight", (hidden, width), "in", i)
    yield Tensor(f"{b}ffn_up{suffix}.weight", (hidden, width), "in", i)
    yield Tensor(f"{b}ffn_down{suffix}.weight", (width, hidden), "down", i)


def _experts(s, b, i):
    yield Tensor(b + "ffn_gate_exps.weight", (s.hidden, s.expert_ff, s.experts), "in", i)
    yield Tensor(b + "ffn_up_exps.weight", (s.hidden, s.expert_ff, s.experts), "in", i)
    yield Tensor(b + "ffn_down_exps.weight", (s.expert_ff, s.hidden, s.experts), "down", i)


def _layer_tensors(s, i):
    if s.deepseek:
        yield from _deepseek_tensors(s, i)
        return
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    b = f"blk.{i}."
    yield Tensor(b + "attn_norm.weight", (s.hidden,), "norm", i)
    for name, width, role in (("q", q, "in"), ("k", kv, "attn_k"), ("v", kv, "attn_v")):
        yield Tensor(f"{b}attn_{name}.weight", (s.hidden, width), role, i)
        if s.arch in ("qwen2moe", "gpt-oss"):
            yield Tensor(f"{b}attn_{name}.bias", (width,), "bias", i)
    yield Tensor(b + "attn_output.weight", (q, s.hidden), "attn_out", i)
    if s.arch == "gpt-oss":
        yield from _gpt_oss_extras(s, b, i)
    if s.arch in ("olmoe", "qwen3moe"):  # QK-norm over the whole row, or per head
        yield Tensor(
            b + "attn_q_norm.weight", (q if s.arch == "olmoe" else s.head_dim,), "head_norm", i
        )
        yield Tensor(
            b + "attn_k_norm.weight", (kv if s.arch == "olmoe" else s.head_dim,), "head_norm", i
        )
    norm = "post_attention_norm" if s.arch == "gpt-oss" else "ffn_norm"
    yield Tensor(f"{b}{norm}.weight", (s.hidden,), "norm", i)
    yield Tensor(b + "ffn_gate_inp.weight", (s.hidden, s.experts), "router", i)
    yield from _experts(s, b, i)
    if s.shared_ff:
        yield Tensor(b + "ffn_gate_inp_shexp.weight", (s.hidden,), "shared_gate", i)
        yield from _ffn(b, "_shexp", s.hidden, s.shared_ff, i)


def _more_bits(layer, n_layers):
    """The layers that Q4_K_M gives more bits: the first and last eighth, and every third
    between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _type_of(t, s, quant):
    if t.role in SMALL_ROLES:
        return T.F32
    if quant == "MXFP4":  # the published files of this kind keep all but the experts at 8 bits
        return T.MXFP4 if "_exps" in t.name else T.Q8_0
    if quant.startswith("IQ"):  # and those of this kind give both ends of the model more bits
        return T.Q6_K if t.role in ("embedding", "output") else T[quant]
    if quant != "Q4_K_M":
        return T[quant]
    if t.role == "output":
        return T.Q6_K
    if s.experts == 8 and t.role in ("attn_v", "attn_k"):
        return T.Q8_0
    if s.experts == 8 and t.role == "attn_out":
        return T.Q5_K
    if t.role in ("attn_v", "down") and _more_bits(t.layer, s.layers):
        return T.Q6_K
    return T.Q4_K


# For rows that superblocks of 256 don't divide: what the published deepseek2 files take.
NARROW_ROWS = {
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q8_0,
    T.Q6_K: T.Q8_0,
}


def tensors_of(shape, quant):
    """All tensors in file order, with types and sizes."""
    out = [Tensor("token_embd.weight", (shape.hidden, shape.vocab), "embedding")]
    for i in range(shape.layers):
        out.extend(_layer_tensors(shape, i))
    out.append(Tensor("output_norm.weight", (shape.hidden,), "norm"))
    out.append(Tensor("output.weight", (shape.hidden, shape.vocab), "output"))
    for t in out:
        t.qtype = _type_of(t, shape, quant)
        if t.qtype in NARROW_ROWS and t.ne[0] % 256 and shape.deepseek:
            t.qtype = NARROW_ROWS[t.qtype]
        if t.ne[0] % BLOCK[t.qtype][0]:
            raise ValueError(
                f"{t.name}: rows of {t.ne[0]} do not divide into {t.qtype.name} blocks"
            )
        t.bytes = t.row_bytes * t.rows
    return out


def _deepseek_metadata(shape):
    d = shape.deepseek
    meta = {
        "expert_feed_forward_length": ("u32", shape.expert_ff),
        "expert_shared_count": ("u32", d.shared_experts),
        "leading_dense_block_count": ("u32", d.dense_layers),
        "attention.kv_lora_rank": ("u32", d.kv_rank),
        "attention.key_length": ("u32", d.kv_rank + d.rope),
        "attention.value_length": ("u32", d.kv_rank),
        "attention.key_length_mla": ("u32", d.head),
        "attention.value_length_mla": ("u32", d.v),
        "rope.dimension_count": ("u32", d.rope),
        "rope.scaling.type": ("str", "yarn"),
        "rope.scaling.factor": ("f32", d.yarn_factor),
        "rope.scaling.original_context_length": ("u32", d.context_original),
        "rope.scaling.yarn_log_multiplier": ("f32", 0.1 * d.mscale),
        "expert_gating_func": ("u32", 2 if d.sigmoid else 1),
        "expert_weights_norm": ("bool", d.sigmoid),
        "expert_weights_scale": ("f32", d.weights_scale),
    }
    if d.q_rank:
        meta["attention.q_lora_rank"] = ("u32", d.q_rank)
    if d.groups > 1:
        meta["expert_group_count"] = ("u32", d.groups)
        meta["expert_group_used_count"] = ("u32", d.groups_used)
    return {f"deepseek2.{key}": value for key, value in meta.items()}


def metadata_of(shape, quant, name):
    """Key → (GGUF value type name, value), without the tokenizer's."""
    a = shape.arch
    meta = {
        "general.architecture": ("str", a),
        "general.type": ("str", "model"),
        "general.name": ("str", name),
        "general.file_type": ("u32", FILE_TYPE[quant]),
        "general.quantization_version": ("u32", 2),
        f"{a}.block_count": ("u32", shape.layers),
        f"{a}.context_length": ("u32", shape.context),
        f"{a}.embedding_length": ("u32", shape.hidden),
        f"{a}.feed_forward_length": ("u32", shape.dense_ff or shape.expert_ff),
        f"{a}.attention.head_count": ("u32", shape.heads),
        f"{a}.attention.head_count_kv": ("u32", shape.kv_heads),
        f"{a}.rope.freq_base": ("f32", shape.rope_base),
        f"{a}.attention.layer_norm_rms_epsilon": ("f32", shape.norm_eps),
        f"{a}.expert_count": ("u32", shape.experts),
        f"{a}.expert_used_count": ("u32", shape.top_k),
    }
    if a in ("qwen2moe", "qwen3moe", "gpt-oss"):
        meta[f"{a}.expert_feed_forward_length"] = ("u32", shape.expert_ff)
    if shape.shared_ff:
        meta[f"{a}.expert_shared_feed_forward_length"] = ("u32", shape.shared_ff)
    if a in ("llama", "qwen3moe", "gpt-oss"):
        meta[f"{a}.attention.key_length"] = ("u32", shape.head_dim)
        meta[f"{a}.attention.value_length"] = ("u32", shape.head_dim)
    if a == "gpt-oss":
        meta["gpt-oss.attention.sliding_window"] = ("u32", shape.window)
        meta["gpt-oss.rope.scaling.type"] = ("str", "yarn")
        meta["gpt-oss.rope.scaling.factor"] = ("f32", 32.0)
        meta["gpt-oss.rope.scaling.original_context_length"] = ("u32", 4096)
    if shape.deepseek:
        meta.update(_deepseek_metadata(shape))
    if a == "llama":
        meta["llama.vocab_size"] = ("u32", shape.vocab)
        meta["llama.rope.dimension_count"] = ("u32", shape.head_dim)
    return meta
