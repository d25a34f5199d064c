// Which tensor of the file plays which role, with its shape checked against the spec.
//
// Pointers are into the GgufModel, which must outlive this. nullptr: the family has no such tensor.
#pragma once

#include <vector>

#include "base/result.h"
#include "io/gguf.h"
#include "model/spec.h"

namespace offstage {

// One gated FFN: an expert's shape, resident.
struct FfnTensors {
  const GgufTensor* gate = nullptr;  // [ffn][hidden]
  const GgufTensor* up = nullptr;    // [ffn][hidden]
  const GgufTensor* down = nullptr;  // [hidden][ffn]
};

// Multi-head latent attention (MlaSpec); q, k and v of LayerTensors are nullptr beside it, but q
// where it isn't compressed.
struct MlaTensors {
  const GgufTensor* q_a = nullptr;        // [q_rank][hidden]
  const GgufTensor* q_a_norm = nullptr;   // [q_rank]
  const GgufTensor* q_b = nullptr;        // [q_width][q_rank]
  const GgufTensor* kv_a = nullptr;       // [kv_rank + rope_dim][hidden]
  const GgufTensor* kv_a_norm = nullptr;  // [kv_rank]
  const GgufTensor* k_b = nullptr;        // [n_heads][kv_rank][nope_dim]
  const GgufTensor* v_b = nullptr;        // [n_heads][v_dim][kv_rank]
  // Older files: [n_heads][nope_dim, then v_dim][kv_rank], instead of k_b (turned) and v_b.
  const GgufTensor* kv_b = nullptr;
};

struct LayerTensors {
  const GgufTensor* attn_norm = nullptr;       // [hidden]
  const GgufTensor* attn_norm_bias = nullptr;  // [hidden]
  const GgufTensor* q = nullptr;               // [q_width][hidden]
  const GgufTensor* k = nullptr;               // [k_width][hidden]
  const GgufTensor* v = nullptr;               // [v_width][hidden]
  const GgufTensor* o = nullptr;               // [hidden][o_width]
  const GgufTensor* q_bias = nullptr;          // [q_width]
  const GgufTensor* k_bias = nullptr;          // [k_width]
  const GgufTensor* v_bias = nullptr;          // [v_width]
  const GgufTensor* o_bias = nullptr;          // [hidden]
  const GgufTensor* q_norm = nullptr;          // [head_dim_k] or [q_width]
  const GgufTensor* k_norm = nullptr;          // [head_dim_k] or [k_width]
  const GgufTensor* sinks = nullptr;           // [n_heads]
  MlaTensors mla;
  const GgufTensor* ffn_norm = nullptr;        // [hidden]
  const GgufTensor* ffn_norm_bias = nullptr;   // [hidden]
  FfnTensors dense;                            // of a layer without experts
  const GgufTensor* router = nullptr;          // [n_experts][hidden]
  const GgufTensor* router_bias = nullptr;     // [n_experts]
  const GgufTensor* selection_bias = nullptr;  // [n_experts]
  const GgufTensor* gate_experts = nullptr;    // [n_experts][expert_ffn][hidden]
  const GgufTensor* up_experts = nullptr;      // [n_experts][expert_ffn][hidden]
  const GgufTensor* down_experts = nullptr;    // [n_experts][hidden][expert_ffn]
  const GgufTensor* gate_bias = nullptr;       // [n_experts][expert_ffn]; resident, like the next
  const GgufTensor* up_bias = nullptr;         // [n_experts][expert_ffn]
  const GgufTensor* down_bias = nullptr;       // [n_experts][hidden]
  FfnTensors shared;
  const GgufTensor* shared_gate_input = nullptr;  // [hidden]

  bool has_experts() const { return gate_experts != nullptr; }
  // All but the experts, by how they are kept; absent ones are nullptr.
  std::vector<const GgufTensor*> matrices() const;
  std::vector<const GgufTensor*> vectors() const;
};

struct ModelTensors {
  const GgufTensor* embedding = nullptr;         // [n_vocab][hidden]
  const GgufTensor* output_norm = nullptr;       // [hidden]
  const GgufTensor* output_norm_bias = nullptr;  // [hidden]
  const GgufTensor* output = nullptr;            // [n_vocab][hidden]; the embedding where tied
  const GgufTensor* output_bias = nullptr;       // [n_vocab]
  const GgufTensor* rope_factors = nullptr;      // [n_rot/2], divides θ_i (Llama 3.1 files)
  const GgufTensor* rope_factors_short =
      nullptr;  // [n_rot/2]: LongRope, contexts up to the original
  const GgufTensor* rope_factors_long = nullptr;  // [n_rot/2]: LongRope, longer ones
  std::vector<LayerTensors> layers;

  // Every tensor but the experts', each once (a tied output isn't repeated), in file order: what
  // has to be resident.
  std::vector<const GgufTensor*> dense() const;
  // Those of them that kernels take as floats: norms, biases, gates, rotary factors.
  std::vector<const GgufTensor*> vectors() const;

  // Also sets spec.expert_ffn and spec.shared_ffn from the tensors where the metadata of older
  // files is ambiguous. Tensors of blocks past spec.n_layers have no role and stay on the drive.
  // Errors: kNotFound / kCorrupt naming file, tensor, offset, expected and actual shape;
  // kUnsupported for a tensor that has no role here: a model computed without a part of its weights
  // would answer, and be wrong.
  static Result<ModelTensors> from_gguf(const GgufModel& gguf, ModelSpec& spec);
};

// Parameters that one token activates: the dense ones once, n_used of n_experts, and of embedding
// and output matrix those that the family's makers count (VocabularyCounts).
uint64_t active_params(const ModelSpec& spec, const ModelTensors& tensors);

}  // namespace offstage
