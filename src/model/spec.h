// What a model is, as data: the one description that the one forward pass follows.
//
// Filled from GGUF metadata; there is no class per architecture. A family differs from another by
// the values below, never by code of its own in src/runtime.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "io/gguf.h"

namespace offstage {

enum class RotaryKind {
  kAdjacentPairs,  // rotates (2i, 2i + 1): the `llama` converter permutes Q and K for it
  kNeox,           // rotates (i, i + n_rot/2)
};

enum class QkNorm {
  kNone,
  kPerHead,  // RMS norm over each head's head_dim (Qwen3)
  kWhole,    // RMS norm over the whole projected vector (OLMoE)
};

struct AttentionSpec {
  uint32_t n_heads = 0;
  uint32_t n_kv_heads = 0;  // divides n_heads
  uint32_t head_dim_k = 0;
  uint32_t head_dim_v = 0;
  bool qkv_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  float scale = 0;  // 1/sqrt(head_dim_k)
};

struct RotarySpec {
  RotaryKind kind = RotaryKind::kNeox;
  uint32_t n_rot = 0;        // even, ≤ head_dim_k
  float freq_base = 10000;   // θ_i = freq_base^(−2i/n_rot)
  float position_scale = 1;  // linear scaling: angle = position · position_scale · θ_i
};

struct RouterSpec {
  uint32_t n_experts = 0;
  uint32_t n_used = 0;             // top-k; ties go to the lower id
  bool normalise_weights = false;  // softmax over all experts, then the k weights sum to 1
  float weights_scale = 1;
};

struct ModelSpec {
  std::string architecture;  // general.architecture
  std::string name;          // general.name, or the file's
  uint32_t n_layers = 0;
  uint32_t hidden = 0;  // width of the residual stream
  uint32_t n_vocab = 0;
  uint32_t context_train = 0;
  float norm_eps = 1e-5f;
  AttentionSpec attention;
  RotarySpec rotary;
  RouterSpec router;
  uint32_t expert_ffn = 0;   // width of an expert
  uint32_t shared_ffn = 0;   // width of the shared expert; 0: none
  bool shared_gate = false;  // the shared expert is weighted by sigmoid(gate · x)

  uint32_t q_width() const { return attention.n_heads * attention.head_dim_k; }
  uint32_t k_width() const { return attention.n_kv_heads * attention.head_dim_k; }
  uint32_t v_width() const { return attention.n_kv_heads * attention.head_dim_v; }
  uint32_t o_width() const { return attention.n_heads * attention.head_dim_v; }

  // Errors: kUnsupported for an architecture or a feature Offstage doesn't compute (named, with
  // the supported ones), kCorrupt or kNotFound naming file, key and offset for metadata that can't
  // be a model (0 heads, more experts used than there are, NaN rotary base …).
  static Result<ModelSpec> from_gguf(const GgufModel& gguf);
};

// As `general.architecture` spells them.
std::span<const std::string_view> supported_architectures();

}  // namespace offstage
