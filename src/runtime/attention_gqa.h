// Multi-head attention in which groups of query heads share a kv head: all families but those with
// latent attention. Biases, QK-norm, windows and sinks are values of ModelSpec.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/attention.h"

namespace offstage {

class GqaAttention {
 public:
  GqaAttention(const AttentionParts& parts, const GqaScratch& scratch, uint32_t rows_max);

  // out [n_rows][hidden] = Wo · attention; `input` holds the forms of the normed rows.
  void run(uint32_t layer, const LayerWeights& weights, std::span<const Row> rows,
           ActivationCache& input, float* out);

 private:
  void project_qkv(const LayerWeights& weights, ActivationCache& input, uint32_t n_rows);
  void rotate_and_store(uint32_t layer, const LayerWeights& weights, std::span<const Row> rows);
  void attend(uint32_t layer, const float* sinks, std::span<const Row> rows);

  AttentionParts parts_;
  GqaScratch s_;
  ActivationCache attended_;  // forms of `attended`
};

}  // namespace offstage
