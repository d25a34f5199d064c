// One gated FFN whose weights are resident: that of a layer without experts, or the shared expert.
#pragma once

#include <cstdint>

#include "model/spec.h"
#include "runtime/compute.h"
#include "runtime/scratch.h"
#include "runtime/weights.h"

namespace offstage {

// gate[i] ← the family's activation of (gate[i], up[i])
void activate(const Kernels& kernels, Activation activation, float* gate, const float* up,
              uint32_t n);

class FfnBlock {
 public:
  // `width`: of the hidden vector, at most that of the scratch; 0: never run.
  FfnBlock(Activation activation, const Compute& compute, const FfnScratch& scratch,
           uint32_t rows_max, uint32_t width);

  // out [n_rows][hidden] = down · activation(gate · x, up · x); `input` holds the forms of x.
  void run(const FfnWeights& weights, ActivationCache& input, uint32_t n_rows, float* out);

 private:
  Activation activation_;
  const Compute& compute_;
  FfnScratch scratch_;
  uint32_t width_;
  ActivationCache hidden_;  // forms of the hidden vector
};

}  // namespace offstage
