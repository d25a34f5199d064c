// Multi-head latent attention (DeepSeek-V2, 2024), computed on the compressed cache as it lies.
//
// A position keeps one row [kv_rank + rope_dim] for all heads: the normed latent c, then the
// rotated part of the key. With K_h and V_h the matrices that would make head h's key and value
// from c,
//   q_h · k = (K_hᵀ q_nope) · c + q_rope · k_rope      Σ p v = V_h (Σ p c)
// so the query is brought to the latent's width once, attention runs with one kv head whose values
// are the first kv_rank elements of its keys, and the sum is brought back. Nothing per head and
// position is ever made.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/attention.h"

namespace offstage {

class MlaAttention {
 public:
  MlaAttention(const AttentionParts& parts, const MlaScratch& scratch, uint32_t rows_max);

  // out [n_rows][hidden] = Wo · attention; `input` holds the forms of the normed rows. Stores the
  // rows' own latents first, so that the rows of a chunk see each other.
  void run(uint32_t layer, const LayerWeights& weights, std::span<const Row> rows,
           ActivationCache& input, float* out);

 private:
  // [rows][n_heads][head_stride] floats, of which a vector's own length is used.
  struct PerHead {
    float* x = nullptr;
    uint32_t head_stride = 0;
  };

  void project_queries(const LayerWeights& weights, ActivationCache& input, uint32_t n_rows);
  void rotate_and_store(uint32_t layer, const MlaWeights& weights, std::span<const Row> rows);
  void attend(uint32_t layer, std::span<const Row> rows);
  // to[row][h] = w[h] · from[row][h]; w holds n_heads matrices, one below the other.
  void multiply_heads(const Matrix& w, PerHead from, PerHead to, uint32_t n_rows);

  uint32_t n_heads() const { return parts_.spec.attention.n_heads; }
  const MlaSpec& mla() const { return parts_.spec.attention.mla; }

  AttentionParts parts_;
  MlaScratch s_;
  ActivationCache q_low_;   // forms of the compressed queries
  ActivationCache values_;  // forms of the heads' outputs
};

}  // namespace offstage
