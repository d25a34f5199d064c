// A layer's own norm and router, applied to the residual stream before that layer is reached.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/spec.h"
#include "runtime/compute.h"
#include "runtime/router.h"
#include "runtime/weights.h"

namespace offstage {

// Memory for `rows_max` rows is taken at creation.
class GateGuess {
 public:
  GateGuess(const ModelSpec& spec, const Compute& compute, uint32_t rows_max);

  // What a layer with these weights would call if the stream x [n_rows][hidden] were its own. Valid
  // until the next guess.
  const Routing& route(const LayerWeights& weights, const float* x, uint32_t n_rows);

 private:
  const ModelSpec& spec_;
  const Compute& compute_;
  Router router_;
  std::vector<float> normed_, logits_;  // [rows_max][hidden], [rows_max][n_experts]
  std::vector<std::byte> forms_;
  ActivationCache input_;
};

}  // namespace offstage
