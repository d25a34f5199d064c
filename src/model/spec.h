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

enum class RotaryScaling {
  kNone,
  kLinear,    // angle = position · position_scale · θ_i
  kYarn,      // between θ_i and position_scale · θ_i by wavelength (Peng et al. 2023)
  kLongRope,  // factors per frequency, one set within the original context, one beyond it
};

enum class QkNorm {
  kNone,
  kPerHead,  // RMS norm over each head's head_dim (Qwen3)
  kWhole,    // RMS norm over the whole projected vector (OLMoE, MiniMax-M2)
};

enum class NormKind {
  kRms,
  kLayer,  // mean removed, and a bias
};

enum class Activation {
  kSwiglu,         // silu(gate) · up
  kSwigluClamped,  // gpt-oss: both clamped, gate · sigmoid(1.702 gate) · (up + 1)
};

// Multi-head latent attention: K and V are kept as one compressed vector per position.
struct MlaSpec {
  uint32_t kv_rank = 0;     // width of the compressed K and V; 0: no MLA
  uint32_t q_rank = 0;      // width of the compressed Q; 0: Q is projected at once
  uint32_t nope_dim = 0;    // of a head's Q and K: not rotated
  uint32_t rope_dim = 0;    // of a head's Q and K: rotated; K's is shared by all heads
  uint32_t v_dim = 0;       // of a head's V, after decompression
  bool joint_kv_b = false;  // an older file: what brings K and V back is one matrix

  uint32_t head_dim() const { return nope_dim + rope_dim; }  // of a head's Q and K
  uint32_t row_dim() const { return kv_rank + rope_dim; }    // kept per position, for all heads
};

struct AttentionSpec {
  uint32_t n_heads = 0;
  uint32_t n_kv_heads = 0;  // divides n_heads
  uint32_t head_dim_k = 0;
  uint32_t head_dim_v = 0;
  bool qkv_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  float scale = 0;  // of q · k; 1/sqrt(head_dim_k) unless the file says otherwise
  bool o_bias = false;
  bool sinks = false;          // one more score per head that takes weight and gives no value
  uint32_t window = 0;         // positions a windowed layer sees, its own included; 0: no window
  uint32_t window_period = 0;  // of that many layers the last sees everything
  MlaSpec mla = {};

  // Positions that `layer` sees, its own included; 0: all.
  uint32_t window_of(uint32_t layer) const {
    const bool windowed = window_period != 0 && layer % window_period != window_period - 1;
    return windowed ? window : 0;
  }
};

struct RotarySpec {
  RotaryKind kind = RotaryKind::kNeox;
  uint32_t n_rot = 0;        // even, ≤ head_dim_k: the first n_rot of a head are rotated
  float freq_base = 10000;   // θ_i = freq_base^(−2i/n_rot)
  float position_scale = 1;  // 1 / the scaling factor
  RotaryScaling scaling = RotaryScaling::kNone;
  uint32_t context_original = 0;        // YaRN, LongRope: the context before scaling
  float beta_fast = 32, beta_slow = 1;  // YaRN: turns within it that bound the mixed frequencies
  float magnitude = 1;                  // cos and sin are multiplied by it
};

enum class RouterScore {
  kSoftmax,          // over all experts
  kSoftmaxOfChosen,  // choice by logit, then softmax over the chosen
  kSigmoid,
};

struct RouterSpec {
  uint32_t n_experts = 0;          // 0: a dense model
  uint32_t n_used = 0;             // top-k; ties go to the lower id
  bool normalise_weights = false;  // the k weights sum to 1 before they are scaled
  float weights_scale = 1;
  RouterScore score = RouterScore::kSoftmax;
  bool bias = false;            // added to the logits
  bool selection_bias = false;  // added to the scores for the choice alone, not to the weights
  // The choice is among the experts of the n_groups_used best groups of n_experts / n_groups
  // neighbours; a group is as good as its two best experts together.
  uint32_t n_groups = 1, n_groups_used = 1;
};

struct ModelSpec {
  std::string architecture;  // general.architecture
  std::string name;          // general.name, or the file's
  uint32_t n_layers = 0;     // that are computed
  uint32_t hidden = 0;       // width of the residual stream
  uint32_t n_vocab = 0;
  uint32_t context_train = 0;
  NormKind norm = NormKind::kRms;
  float norm_eps = 1e-5f;
  AttentionSpec attention;
  RotarySpec rotary;
  RouterSpec router;
  Activation activation = Activation::kSwiglu;
  uint32_t n_dense_layers = 0;  // the first ones have a plain FFN; n_layers in a dense model
  uint32_t dense_ffn = 0;       // width of that FFN
  uint32_t expert_ffn = 0;      // width of an expert
  bool expert_bias = false;     // on an expert's gate, up and down
  uint32_t shared_ffn = 0;      // width of the shared expert; 0: none
  bool shared_gate = false;     // the shared expert is weighted by sigmoid(gate · x)
  bool output_bias = false;
  float embedding_scale = 1;  // of the token's embedding
  float residual_scale = 1;   // of what attention and FFN add to the residual stream
  float logit_scale = 1;
  uint32_t n_unused_layers = 0;  // after n_layers: they predict further tokens, and aren't computed

  bool is_dense_layer(uint32_t layer) const { return layer < n_dense_layers; }
  uint32_t n_moe_layers() const { return n_layers - n_dense_layers; }

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
