#include "model/tensors.h"

#include <algorithm>
#include <unordered_set>

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
    if (is_quantised(tensor->type))
      return make_error(ErrorCode::kUnsupported,
                        "{}: tensor '{}' at offset {}: expected F32, F16 or BF16, found {}",
                        file_of(*tensor), name, tensor->offset,
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

Status find_attention(const RoleFinder& find, const std::string& block, const ModelSpec& spec,
                      LayerTensors& layer) {
  OFFSTAGE_TRY(layer.attn_norm, find.vector(block + "attn_norm.weight", spec.hidden));
  OFFSTAGE_TRY(layer.q, find.matrix(block + "attn_q.weight", {spec.hidden, spec.q_width()}));
  OFFSTAGE_TRY(layer.k, find.matrix(block + "attn_k.weight", {spec.hidden, spec.k_width()}));
  OFFSTAGE_TRY(layer.v, find.matrix(block + "attn_v.weight", {spec.hidden, spec.v_width()}));
  OFFSTAGE_TRY(layer.o, find.matrix(block + "attn_output.weight", {spec.o_width(), spec.hidden}));
  if (spec.attention.qkv_bias) {
    OFFSTAGE_TRY(layer.q_bias, find.vector(block + "attn_q.bias", spec.q_width()));
    OFFSTAGE_TRY(layer.k_bias, find.vector(block + "attn_k.bias", spec.k_width()));
    OFFSTAGE_TRY(layer.v_bias, find.vector(block + "attn_v.bias", spec.v_width()));
  }
  if (spec.attention.qk_norm != QkNorm::kNone) {
    const bool whole = spec.attention.qk_norm == QkNorm::kWhole;
    const uint64_t q_width = whole ? spec.q_width() : spec.attention.head_dim_k;
    const uint64_t k_width = whole ? spec.k_width() : spec.attention.head_dim_k;
    OFFSTAGE_TRY(layer.q_norm, find.vector(block + "attn_q_norm.weight", q_width));
    OFFSTAGE_TRY(layer.k_norm, find.vector(block + "attn_k_norm.weight", k_width));
  }
  return {};
}

Status find_experts(const RoleFinder& find, const std::string& block, const ModelSpec& spec,
                    LayerTensors& layer) {
  const uint64_t n_experts = spec.router.n_experts;
  OFFSTAGE_TRY(layer.ffn_norm, find.vector(block + "ffn_norm.weight", spec.hidden));
  OFFSTAGE_TRY(layer.router, find.matrix(block + "ffn_gate_inp.weight", {spec.hidden, n_experts}));
  OFFSTAGE_TRY(layer.gate_experts, find.matrix(block + "ffn_gate_exps.weight",
                                               {spec.hidden, spec.expert_ffn, n_experts}));
  OFFSTAGE_TRY(layer.up_experts, find.matrix(block + "ffn_up_exps.weight",
                                             {spec.hidden, spec.expert_ffn, n_experts}));
  OFFSTAGE_TRY(layer.down_experts, find.matrix(block + "ffn_down_exps.weight",
                                               {spec.expert_ffn, spec.hidden, n_experts}));
  if (spec.shared_ffn != 0) {
    OFFSTAGE_TRY(layer.shared_gate_input,
                 find.vector(block + "ffn_gate_inp_shexp.weight", spec.hidden));
    OFFSTAGE_TRY(layer.shared_gate,
                 find.matrix(block + "ffn_gate_shexp.weight", {spec.hidden, spec.shared_ffn}));
    OFFSTAGE_TRY(layer.shared_up,
                 find.matrix(block + "ffn_up_shexp.weight", {spec.hidden, spec.shared_ffn}));
    OFFSTAGE_TRY(layer.shared_down,
                 find.matrix(block + "ffn_down_shexp.weight", {spec.shared_ffn, spec.hidden}));
  }
  return {};
}

// A file without an explicit expert width: the first block's tensors state it.
Status widths_from_tensors(const GgufModel& gguf, ModelSpec& spec) {
  const auto width_of = [&](const char* name, uint32_t& width) -> Status {
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
    OFFSTAGE_TRY_VOID(width_of("blk.0.ffn_up_exps.weight", spec.expert_ffn));
  }
  if (spec.shared_ffn != 0 &&
      gguf.find(spec.architecture + ".expert_shared_feed_forward_length") == nullptr) {
    OFFSTAGE_TRY_VOID(width_of("blk.0.ffn_up_shexp.weight", spec.shared_ffn));
  }
  return {};
}

Status check_all_used(const GgufModel& gguf, const ModelSpec& spec, const ModelTensors& tensors) {
  std::unordered_set<const GgufTensor*> used;
  for (const GgufTensor* tensor : tensors.dense()) used.insert(tensor);
  for (const LayerTensors& layer : tensors.layers)
    used.insert({layer.gate_experts, layer.up_experts, layer.down_experts});
  for (const GgufTensor& tensor : gguf.tensors()) {
    if (used.contains(&tensor)) continue;
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
  OFFSTAGE_TRY(tensors.output_norm, find.vector("output_norm.weight", spec.hidden));
  tensors.output = tensors.embedding;
  if (gguf.find_tensor("output.weight") != nullptr) {
    OFFSTAGE_TRY(tensors.output, find.matrix("output.weight", {spec.hidden, spec.n_vocab}));
  }
  if (gguf.find_tensor("rope_freqs.weight") != nullptr) {
    OFFSTAGE_TRY(tensors.rope_factors, find.vector("rope_freqs.weight", spec.rotary.n_rot / 2));
  }

  tensors.layers.resize(spec.n_layers);
  for (uint32_t i = 0; i < spec.n_layers; ++i) {
    const std::string block = fmt::format("blk.{}.", i);
    OFFSTAGE_TRY_VOID(find_attention(find, block, spec, tensors.layers[i]));
    OFFSTAGE_TRY_VOID(find_experts(find, block, spec, tensors.layers[i]));
  }
  OFFSTAGE_TRY_VOID(check_all_used(gguf, spec, tensors));
  return tensors;
}

std::vector<const GgufTensor*> ModelTensors::dense() const {
  std::vector<const GgufTensor*> all = {embedding, output_norm, output, rope_factors};
  for (const LayerTensors& layer : layers)
    all.insert(all.end(),
               {layer.attn_norm, layer.q, layer.k, layer.v, layer.o, layer.q_bias, layer.k_bias,
                layer.v_bias, layer.q_norm, layer.k_norm, layer.ffn_norm, layer.router,
                layer.shared_gate_input, layer.shared_gate, layer.shared_up, layer.shared_down});
  std::erase(all, nullptr);
  std::sort(all.begin(), all.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return std::pair(a->shard, a->offset) < std::pair(b->shard, b->offset);
  });
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

std::vector<const GgufTensor*> ModelTensors::vectors() const {
  std::vector<const GgufTensor*> all = {output_norm, rope_factors};
  for (const LayerTensors& layer : layers)
    all.insert(all.end(), {layer.attn_norm, layer.q_bias, layer.k_bias, layer.v_bias, layer.q_norm,
                           layer.k_norm, layer.ffn_norm, layer.shared_gate_input});
  std::erase(all, nullptr);
  return all;
}

}  // namespace offstage
