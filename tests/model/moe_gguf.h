// Headers of MoE models in memory: the least a family needs, to be broken one part at a time.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "base/check.h"
#include "io/gguf.h"
#include "tests/io/gguf_builder.h"

namespace offstage::testing {

struct MoeShape {
  std::string architecture = "qwen3moe";
  uint32_t n_layers = 2, hidden = 64, n_heads = 4, n_kv_heads = 2, head_dim = 16, n_vocab = 10,
           n_experts = 4, n_used = 2, expert_ffn = 32, shared_ffn = 0;
  bool qkv_bias = false;
  bool states_expert_width = true;
  TensorType expert_type = TensorType::kF32;
};

inline MoeShape shape_of_family(const std::string& architecture) {
  MoeShape shape;
  shape.architecture = architecture;
  if (architecture == "qwen2moe") {
    shape.shared_ffn = 96;
    shape.qkv_bias = true;
  }
  return shape;
}

// What to write in place of a key's usual value; writing nothing leaves it out.
using KeyEdit = std::function<void(GgufBuilder&, const std::string& key)>;
using KeyEdits = std::map<std::string, KeyEdit>;  // by the key's name after "<architecture>."

inline KeyEdit as_uint32(uint32_t value) {
  return [value](GgufBuilder& builder, const std::string& key) { builder.add_uint32(key, value); };
}
inline KeyEdit as_float32(float value) {
  return [value](GgufBuilder& builder, const std::string& key) { builder.add_float32(key, value); };
}
inline KeyEdit as_text(std::string value) {
  return [value](GgufBuilder& builder, const std::string& key) { builder.add_string(key, value); };
}
inline KeyEdit left_out() {
  return [](GgufBuilder&, const std::string&) {};
}

inline void add_metadata(const MoeShape& shape, KeyEdits edits, GgufBuilder& builder) {
  const std::string prefix = shape.architecture + ".";
  builder.add_string("general.architecture", shape.architecture);
  builder.add_string("general.name", "a test");
  edits.try_emplace("block_count", as_uint32(shape.n_layers));
  edits.try_emplace("context_length", as_uint32(512));
  edits.try_emplace("embedding_length", as_uint32(shape.hidden));
  edits.try_emplace("feed_forward_length", as_uint32(777));
  edits.try_emplace("attention.head_count", as_uint32(shape.n_heads));
  edits.try_emplace("attention.head_count_kv", as_uint32(shape.n_kv_heads));
  edits.try_emplace("attention.key_length", as_uint32(shape.head_dim));
  edits.try_emplace("attention.value_length", as_uint32(shape.head_dim));
  edits.try_emplace("attention.layer_norm_rms_epsilon", as_float32(1e-6f));
  edits.try_emplace("rope.dimension_count", as_uint32(shape.head_dim));
  edits.try_emplace("rope.freq_base", as_float32(1e6f));
  edits.try_emplace("expert_count", as_uint32(shape.n_experts));
  edits.try_emplace("expert_used_count", as_uint32(shape.n_used));
  if (shape.states_expert_width)
    edits.try_emplace("expert_feed_forward_length", as_uint32(shape.expert_ffn));
  if (shape.states_expert_width && shape.shared_ffn != 0)
    edits.try_emplace("expert_shared_feed_forward_length", as_uint32(shape.shared_ffn));
  for (const auto& [key, edit] : edits) edit(builder, prefix + key);
}

inline void add_layer(const MoeShape& shape, const std::string& block, GgufBuilder& builder) {
  const uint64_t hidden = shape.hidden, q = uint64_t{shape.n_heads} * shape.head_dim,
                 kv = uint64_t{shape.n_kv_heads} * shape.head_dim;
  const auto add = [&](const char* name, std::vector<uint64_t> dims,
                       TensorType type = TensorType::kF32) {
    builder.add_tensor(block + name, type, std::move(dims));
  };
  add("attn_norm.weight", {hidden});
  add("attn_q.weight", {hidden, q});
  add("attn_k.weight", {hidden, kv});
  add("attn_v.weight", {hidden, kv});
  add("attn_output.weight", {q, hidden});
  if (shape.qkv_bias) {
    add("attn_q.bias", {q});
    add("attn_k.bias", {kv});
    add("attn_v.bias", {kv});
  }
  if (shape.architecture == "qwen3moe" || shape.architecture == "olmoe") {
    const bool whole = shape.architecture == "olmoe";
    add("attn_q_norm.weight", {whole ? q : shape.head_dim});
    add("attn_k_norm.weight", {whole ? kv : shape.head_dim});
  }
  add("ffn_norm.weight", {hidden});
  add("ffn_gate_inp.weight", {hidden, shape.n_experts});
  add("ffn_gate_exps.weight", {hidden, shape.expert_ffn, shape.n_experts}, shape.expert_type);
  add("ffn_up_exps.weight", {hidden, shape.expert_ffn, shape.n_experts}, shape.expert_type);
  add("ffn_down_exps.weight", {shape.expert_ffn, hidden, shape.n_experts}, shape.expert_type);
  if (shape.shared_ffn != 0) {
    add("ffn_gate_inp_shexp.weight", {hidden});
    add("ffn_gate_shexp.weight", {hidden, shape.shared_ffn});
    add("ffn_up_shexp.weight", {hidden, shape.shared_ffn});
    add("ffn_down_shexp.weight", {shape.shared_ffn, hidden});
  }
}

inline GgufBuilder moe_model(const MoeShape& shape, const KeyEdits& edits = {}) {
  GgufBuilder builder;
  add_metadata(shape, edits, builder);
  builder.add_tensor("token_embd.weight", TensorType::kF32, {shape.hidden, shape.n_vocab});
  for (uint32_t l = 0; l < shape.n_layers; ++l)
    add_layer(shape, fmt::format("blk.{}.", l), builder);
  builder.add_tensor("output_norm.weight", TensorType::kF32, {shape.hidden});
  builder.add_tensor("output.weight", TensorType::kF32, {shape.hidden, shape.n_vocab});
  return builder;
}

// Afterwards `builder` knows where everything lies.
inline GgufModel parse(GgufBuilder& builder) {
  const Bytes bytes = builder.build();
  auto model = GgufModel::parse("model.gguf", bytes, bytes.size());
  if (!model) fmt::print(stderr, "{}\n", model.error().message);
  CHECK(model.has_value());
  return std::move(*model);
}

}  // namespace offstage::testing
