#include "model/tensors.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <unordered_set>

#include "model/spec_family.h"

namespace offstage {
namespace {

using Shape = std::vector<uint64_t>;  // as GGUF lists dims: K first

class RoleFinder {
 public:
  explicit RoleFinder(const GgufModel& gguf) : gguf_(gguf) {}

  Result<const GgufTensor*> matrix(const std::string& name, const Shape& shape) const {
    OFFSTAGE_TRY(const GgufTensor* tensor, gguf_.tensor(name));
    OFFSTAGE_TRY_VOID(check_shape(*tensor, shape));
    return tensor;
  }

  // Norm weights, biases and gates are read as floats, never as quantised rows.
  Result<const GgufTensor*> vector(const std::string& name, uint64_t width) const {
    OFFSTAGE_TRY(const GgufTensor* tensor, matrix(name, {width}));
    return unquantised(tensor);
  }

  // One such vector per expert.
  Result<const GgufTensor*> vectors(const std::string& name, uint64_t width, uint64_t n) const {
    OFFSTAGE_TRY(const GgufTensor* tensor, matrix(name, {width, n}));
    return unquantised(tensor);
  }

  bool exists(const std::string& name) const { return gguf_.find_tensor(name) != nullptr; }

  Result<const GgufTensor*> unquantised(const GgufTensor* tensor) const {
    if (is_quantised(tensor->type))
      return make_error(ErrorCode::kUnsupported,
                        "{}: tensor '{}' at offset {}: expected F32, F16 or BF16, found {}",
                        file_of(*tensor), tensor->name, tensor->offset,
                        tensor_type_traits(tensor->type).name);
    return tensor;
  }

  Status check_shape(const GgufTensor& tensor, const Shape& shape) const {
    bool same = tensor.n_dims >= 1;
    for (size_t i = 0; i < tensor.dims.size(); ++i)
      same = same && tensor.dims[i] == (i < shape.size() ? shape[i] : 1);
    if (same) return {};
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor '{}' at offset {}: expected shape [{}], found [{}]",
                      file_of(tensor), tensor.name, tensor.info_offset, fmt::join(shape, ", "),
                      fmt::join(tensor.dims.begin(), tensor.dims.begin() + tensor.n_dims, ", "));
  }

  const std::string& file_of(const GgufTensor& tensor) const {
    return gguf_.shards()[tensor.shard].path;
  }

 private:
  const GgufModel& gguf_;
};

Status find_norm(const RoleFinder& find, const std::string& name, const ModelSpec& spec,
                 const GgufTensor*& weight, const GgufTensor*& bias) {
  OFFSTAGE_TRY(weight, find.vector(name + ".weight", spec.hidden));
  if (spec.norm == NormKind::kLayer) {
    OFFSTAGE_TRY(bias, find.vector(name + ".bias", spec.hidden));
  }
  return {};
}

Status find_attention_biases(const RoleFinder& find, const std::string& block,
                             const ModelSpec& spec, LayerTensors& layer) {
  if (spec.attention.qkv_bias) {
    OFFSTAGE_TRY(layer.q_bias, find.vector(block + "attn_q.bias", spec.q_width()));
    OFFSTAGE_TRY(layer.k_bias, find.vector(block + "attn_k.bias", spec.k_width()));
    OFFSTAGE_TRY(layer.v_bias, find.vector(block + "attn_v.bias", spec.v_width()));
  }
  if (spec.attention.o_bias) {
    OFFSTAGE_TRY(layer.o_bias, find.vector(block + "attn_output.bias", spec.hidden));
  }
  if (spec.attention.sinks) {
    OFFSTAGE_TRY(layer.sinks, find.vector(block + "attn_sinks.weight", spec.attention.n_heads));
  }
  return {};
}

Status find_attention(const RoleFinder& find, const std::string& block, const ModelSpec& spec,
                      LayerTensors& layer) {
  OFFSTAGE_TRY_VOID(
      find_norm(find, block + "attn_norm", spec, layer.attn_norm, layer.attn_norm_bias));
  OFFSTAGE_TRY(layer.q, find.matrix(block + "attn_q.weight", {spec.hidden, spec.q_width()}));
  OFFSTAGE_TRY(layer.k, find.matrix(block + "attn_k.weight", {spec.hidden, spec.k_width()}));
  OFFSTAGE_TRY(layer.v, find.matrix(block + "attn_v.weight", {spec.hidden, spec.v_width()}));
  OFFSTAGE_TRY(layer.o, find.matrix(block + "attn_output.weight", {spec.o_width(), spec.hidden}));
  if (spec.attention.qk_norm != QkNorm::kNone) {
    const bool whole = spec.attention.qk_norm == QkNorm::kWhole;
    const uint64_t q_width = whole ? spec.q_width() : spec.attention.head_dim_k;
    const uint64_t k_width = whole ? spec.k_width() : spec.attention.head_dim_k;
    OFFSTAGE_TRY(layer.q_norm, find.vector(block + "attn_q_norm.weight", q_width));
    OFFSTAGE_TRY(layer.k_norm, find.vector(block + "attn_k_norm.weight", k_width));
  }
  return find_attention_biases(find, block, spec, layer);
}

Status find_mla(const RoleFinder& find, const std::string& block, const ModelSpec& spec,
                LayerTensors& layer) {
  const MlaSpec& mla = spec.attention.mla;
  const uint64_t n_heads = spec.attention.n_heads, hidden = spec.hidden;
  const uint64_t q_width = n_heads * mla.head_dim();
  OFFSTAGE_TRY_VOID(
      find_norm(find, block + "attn_norm", spec, layer.attn_norm, layer.attn_norm_bias));
  if (mla.q_rank == 0) {
    OFFSTAGE_TRY(layer.q, find.matrix(block + "attn_q.weight", {hidden, q_width}));
  } else {
    OFFSTAGE_TRY(layer.mla.q_a, find.matrix(block + "attn_q_a.weight", {hidden, mla.q_rank}));
    OFFSTAGE_TRY(layer.mla.q_a_norm, find.vector(block + "attn_q_a_norm.weight", mla.q_rank));
    OFFSTAGE_TRY(layer.mla.q_b, find.matrix(block + "attn_q_b.weight", {mla.q_rank, q_width}));
  }
  OFFSTAGE_TRY(layer.mla.kv_a,
               find.matrix(block + "attn_kv_a_mqa.weight", {hidden, mla.row_dim()}));
  OFFSTAGE_TRY(layer.mla.kv_a_norm, find.vector(block + "attn_kv_a_norm.weight", mla.kv_rank));
  if (mla.joint_kv_b) {
    OFFSTAGE_TRY(layer.mla.kv_b, find.matrix(block + "attn_kv_b.weight",
                                             {mla.kv_rank, n_heads * (mla.nope_dim + mla.v_dim)}));
  } else {
    OFFSTAGE_TRY(layer.mla.k_b,
                 find.matrix(block + "attn_k_b.weight", {mla.nope_dim, mla.kv_rank, n_heads}));
    OFFSTAGE_TRY(layer.mla.v_b,
                 find.matrix(block + "attn_v_b.weight", {mla.kv_rank, mla.v_dim, n_heads}));
  }
  OFFSTAGE_TRY(layer.o, find.matrix(block + "attn_output.weight", {n_heads * mla.v_dim, hidden}));
  return {};
}

Status find_ffn(const RoleFinder& find, const std::string& block, const std::string& suffix,
                uint64_t hidden, uint64_t ffn, FfnTensors& tensors) {
  OFFSTAGE_TRY(tensors.gate, find.matrix(block + "ffn_gate" + suffix + ".weight", {hidden, ffn}));
  OFFSTAGE_TRY(tensors.up, find.matrix(block + "ffn_up" + suffix + ".weight", {hidden, ffn}));
  OFFSTAGE_TRY(tensors.down, find.matrix(block + "ffn_down" + suffix + ".weight", {ffn, hidden}));
  return {};
}

Status find_router(const RoleFinder& find, const std::string& block, const ModelSpec& spec,
                   LayerTensors& layer) {
  const uint64_t n_experts = spec.router.n_experts;
  OFFSTAGE_TRY(layer.router, find.matrix(block + "ffn_gate_inp.weight", {spec.hidden, n_experts}));
  if (spec.router.bias) {
    OFFSTAGE_TRY(layer.router_bias, find.vector(block + "ffn_gate_inp.bias", n_experts));
  }
  if (spec.router.selection_bias) {
    OFFSTAGE_TRY(layer.selection_bias, find.vector(block + "exp_probs_b.bias", n_experts));
  }
  return {};
}

Status find_experts(const RoleFinder& find, const std::string& block, const ModelSpec& spec,
                    LayerTensors& layer) {
  const uint64_t n_experts = spec.router.n_experts, ffn = spec.expert_ffn, hidden = spec.hidden;
  OFFSTAGE_TRY(layer.gate_experts,
               find.matrix(block + "ffn_gate_exps.weight", {hidden, ffn, n_experts}));
  OFFSTAGE_TRY(layer.up_experts,
               find.matrix(block + "ffn_up_exps.weight", {hidden, ffn, n_experts}));
  OFFSTAGE_TRY(layer.down_experts,
               find.matrix(block + "ffn_down_exps.weight", {ffn, hidden, n_experts}));
  if (spec.expert_bias) {
    OFFSTAGE_TRY(layer.gate_bias, find.vectors(block + "ffn_gate_exps.bias", ffn, n_experts));
    OFFSTAGE_TRY(layer.up_bias, find.vectors(block + "ffn_up_exps.bias", ffn, n_experts));
    OFFSTAGE_TRY(layer.down_bias, find.vectors(block + "ffn_down_exps.bias", hidden, n_experts));
  }
  if (spec.shared_ffn != 0) {
    OFFSTAGE_TRY_VOID(find_ffn(find, block, "_shexp", hidden, spec.shared_ffn, layer.shared));
  }
  if (spec.shared_gate) {
    OFFSTAGE_TRY(layer.shared_gate_input, find.vector(block + "ffn_gate_inp_shexp.weight", hidden));
  }
  return {};
}

Status find_layer(const RoleFinder& find, uint32_t index, const ModelSpec& spec,
                  LayerTensors& layer) {
  const std::string block = fmt::format("blk.{}.", index);
  const bool mla = spec.attention.mla.kv_rank != 0;
  OFFSTAGE_TRY_VOID(mla ? find_mla(find, block, spec, layer)
                        : find_attention(find, block, spec, layer));
  // The norm between attention and FFN goes by two names, and no supported family has both.
  const char* norm =
      find.exists(block + "post_attention_norm.weight") ? "post_attention_norm" : "ffn_norm";
  OFFSTAGE_TRY_VOID(find_norm(find, block + norm, spec, layer.ffn_norm, layer.ffn_norm_bias));
  if (spec.is_dense_layer(index))
    return find_ffn(find, block, "", spec.hidden, spec.dense_ffn, layer.dense);
  OFFSTAGE_TRY_VOID(find_router(find, block, spec, layer));
  return find_experts(find, block, spec, layer);
}

Status find_rotary_factors(const RoleFinder& find, const ModelSpec& spec, ModelTensors& tensors) {
  const uint64_t n = spec.rotary.n_rot / 2;
  if (find.exists("rope_freqs.weight")) {
    OFFSTAGE_TRY(tensors.rope_factors, find.vector("rope_freqs.weight", n));
  }
  if (spec.rotary.scaling == RotaryScaling::kLongRope) {
    OFFSTAGE_TRY(tensors.rope_factors_short, find.vector("rope_factors_short.weight", n));
    OFFSTAGE_TRY(tensors.rope_factors_long, find.vector("rope_factors_long.weight", n));
  }
  return {};
}

// A file without an explicit expert width: the first such block's tensors state it.
Status widths_from_tensors(const GgufModel& gguf, ModelSpec& spec) {
  if (spec.n_moe_layers() == 0) return {};
  const auto width_of = [&](std::string_view role, uint32_t& width) -> Status {
    const std::string name = fmt::format("blk.{}.{}.weight", spec.n_dense_layers, role);
    OFFSTAGE_TRY(const GgufTensor* tensor, gguf.tensor(name));
    if (tensor->dims[1] == 0 || tensor->dims[1] > (1u << 20))
      return make_error(ErrorCode::kCorrupt,
                        "{}: tensor '{}' at offset {}: expected a width of 1 to {}, found {}",
                        gguf.shards()[tensor->shard].path, name, tensor->info_offset, 1u << 20,
                        tensor->dims[1]);
    width = static_cast<uint32_t>(tensor->dims[1]);
    return {};
  };
  if (gguf.find(spec.architecture + ".expert_feed_forward_length") == nullptr) {
    OFFSTAGE_TRY_VOID(width_of("ffn_up_exps", spec.expert_ffn));
  }
  if (spec.shared_ffn != 0 &&
      gguf.find(spec.architecture + ".expert_shared_feed_forward_length") == nullptr) {
    OFFSTAGE_TRY_VOID(width_of("ffn_up_shexp", spec.shared_ffn));
  }
  return {};
}

// The number of the block that a tensor's name puts it in.
std::optional<uint32_t> block_of(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  uint32_t block = 0;
  const char* end = name.data() + name.size();
  const auto [after, error] = std::from_chars(name.data() + kPrefix.size(), end, block);
  if (error != std::errc() || after == end || *after != '.') return std::nullopt;
  return block;
}

Status check_all_used(const GgufModel& gguf, const ModelSpec& spec, const ModelTensors& tensors) {
  std::unordered_set<const GgufTensor*> used;
  for (const GgufTensor* tensor : tensors.dense()) used.insert(tensor);
  for (const LayerTensors& layer : tensors.layers)
    used.insert({layer.gate_experts, layer.up_experts, layer.down_experts});
  const auto is_unused_layers = [&](const GgufTensor& tensor) {
    const auto block = block_of(tensor.name);
    return block && *block >= spec.n_layers && *block - spec.n_layers < spec.n_unused_layers;
  };
  for (const GgufTensor& tensor : gguf.tensors()) {
    if (used.contains(&tensor) || is_unused_layers(tensor)) continue;
    return make_error(ErrorCode::kUnsupported,
                      "{}: tensor '{}' at offset {}: has no role in a '{}' model of {} layers",
                      gguf.shards()[tensor.shard].path, tensor.name, tensor.info_offset,
                      spec.architecture, spec.n_layers);
  }
  return {};
}

}  // namespace

Result<ModelTensors> ModelTensors::from_gguf(const GgufModel& gguf, ModelSpec& spec) {
  ModelTensors tensors;
  const RoleFinder find(gguf);
  OFFSTAGE_TRY_VOID(widths_from_tensors(gguf, spec));
  OFFSTAGE_TRY(tensors.embedding, find.matrix("token_embd.weight", {spec.hidden, spec.n_vocab}));
  OFFSTAGE_TRY_VOID(
      find_norm(find, "output_norm", spec, tensors.output_norm, tensors.output_norm_bias));
  tensors.output = tensors.embedding;
  if (find.exists("output.weight")) {
    OFFSTAGE_TRY(tensors.output, find.matrix("output.weight", {spec.hidden, spec.n_vocab}));
  }
  if (spec.output_bias) {
    OFFSTAGE_TRY(tensors.output_bias, find.vector("output.bias", spec.n_vocab));
  }
  OFFSTAGE_TRY_VOID(find_rotary_factors(find, spec, tensors));
  tensors.layers.resize(spec.n_layers);
  for (uint32_t i = 0; i < spec.n_layers; ++i)
    OFFSTAGE_TRY_VOID(find_layer(find, i, spec, tensors.layers[i]));
  OFFSTAGE_TRY_VOID(check_all_used(gguf, spec, tensors));
  return tensors;
}

std::vector<const GgufTensor*> LayerTensors::matrices() const {
  return {q,        k,          v,           o,         mla.q_a,    mla.q_b,
          mla.kv_a, mla.k_b,    mla.v_b,     mla.kv_b,  router,     dense.gate,
          dense.up, dense.down, shared.gate, shared.up, shared.down};
}

std::vector<const GgufTensor*> LayerTensors::vectors() const {
  return {attn_norm,        attn_norm_bias, q_bias,         k_bias,       v_bias,        o_bias,
          q_norm,           k_norm,         sinks,          mla.q_a_norm, mla.kv_a_norm, ffn_norm,
          ffn_norm_bias,    router_bias,    selection_bias, gate_bias,    up_bias,       down_bias,
          shared_gate_input};
}

std::vector<const GgufTensor*> ModelTensors::dense() const {
  std::vector<const GgufTensor*> all = vectors();
  all.insert(all.end(), {embedding, output});
  for (const LayerTensors& layer : layers) {
    const auto matrices = layer.matrices();
    all.insert(all.end(), matrices.begin(), matrices.end());
  }
  std::erase(all, nullptr);
  std::sort(all.begin(), all.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return std::pair(a->shard, a->offset) < std::pair(b->shard, b->offset);
  });
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

std::vector<const GgufTensor*> ModelTensors::vectors() const {
  std::vector<const GgufTensor*> all = {output_norm,  output_norm_bias,   output_bias,
                                        rope_factors, rope_factors_short, rope_factors_long};
  for (const LayerTensors& layer : layers) {
    const auto vectors = layer.vectors();
    all.insert(all.end(), vectors.begin(), vectors.end());
  }
  std::erase(all, nullptr);
  return all;
}

uint64_t active_params(const ModelSpec& spec, const ModelTensors& tensors) {
  uint64_t params = 0;
  for (const GgufTensor* tensor : tensors.dense()) params += tensor->elements();
  const Family* family = find_family(spec.architecture);
  const VocabularyCounts counts = family == nullptr ? VocabularyCounts::kBoth : family->vocabulary;
  const bool tied = tensors.output == tensors.embedding;
  if (counts != VocabularyCounts::kBoth && !tied) params -= tensors.embedding->elements();
  if (counts == VocabularyCounts::kNeither) params -= tensors.output->elements();
  const uint64_t expert = 3 * uint64_t{spec.hidden} * spec.expert_ffn * spec.router.n_used;
  return params + expert * spec.n_moe_layers();
}

}  // namespace offstage
