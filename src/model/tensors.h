// Which tensor of the file plays which role, with its shape checked against the spec.
//
// Pointers are into the GgufModel, which must outlive this. nullptr: the family has no such tensor.
#pragma once

#include <vector>

#include "base/result.h"
#include "io/gguf.h"
#include "model/spec.h"

namespace offstage {

struct LayerTensors {
  const GgufTensor* attn_norm = nullptr;          // [hidden]
  const GgufTensor* q = nullptr;                  // [q_width][hidden]
  const GgufTensor* k = nullptr;                  // [k_width][hidden]
  const GgufTensor* v = nullptr;                  // [v_width][hidden]
  const GgufTensor* o = nullptr;                  // [hidden][o_width]
  const GgufTensor* q_bias = nullptr;             // [q_width]
  const GgufTensor* k_bias = nullptr;             // [k_width]
  const GgufTensor* v_bias = nullptr;             // [v_width]
  const GgufTensor* q_norm = nullptr;             // [head_dim_k] or [q_width]
  const GgufTensor* k_norm = nullptr;             // [head_dim_k] or [k_width]
  const GgufTensor* ffn_norm = nullptr;           // [hidden]
  const GgufTensor* router = nullptr;             // [n_experts][hidden]
  const GgufTensor* gate_experts = nullptr;       // [n_experts][expert_ffn][hidden]
  const GgufTensor* up_experts = nullptr;         // [n_experts][expert_ffn][hidden]
  const GgufTensor* down_experts = nullptr;       // [n_experts][hidden][expert_ffn]
  const GgufTensor* shared_gate_input = nullptr;  // [hidden]
  const GgufTensor* shared_gate = nullptr;        // [shared_ffn][hidden]
  const GgufTensor* shared_up = nullptr;          // [shared_ffn][hidden]
  const GgufTensor* shared_down = nullptr;        // [hidden][shared_ffn]
};

struct ModelTensors {
  const GgufTensor* embedding = nullptr;     // [n_vocab][hidden]
  const GgufTensor* output_norm = nullptr;   // [hidden]
  const GgufTensor* output = nullptr;        // [n_vocab][hidden]; the embedding where tied
  const GgufTensor* rope_factors = nullptr;  // [n_rot/2], divides θ_i (Llama 3.1 files)
  std::vector<LayerTensors> layers;

  // Every tensor but the experts', each once (a tied output isn't repeated), in file order: what
  // has to be resident.
  std::vector<const GgufTensor*> dense() const;
  // Those of them that kernels take as floats: norms, biases, gates, rotary factors.
  std::vector<const GgufTensor*> vectors() const;

  // Also sets spec.expert_ffn and spec.shared_ffn from the tensors where the metadata of older
  // files is ambiguous. Errors: kNotFound / kCorrupt naming file, tensor, offset, expected and
  // actual shape; kUnsupported for a tensor that has no role here: a model computed without a part
  // of its weights would answer, and be wrong.
  static Result<ModelTensors> from_gguf(const GgufModel& gguf, ModelSpec& spec);
};

}  // namespace offstage
