#include "runtime/ffn_block.h"

namespace offstage {

void activate(const Kernels& kernels, Activation activation, float* gate, const float* up,
              uint32_t n) {
  switch (activation) {
    case Activation::kSwiglu: return kernels.swiglu(gate, up, n);
    case Activation::kSwigluClamped: return kernels.swiglu_clamped(gate, up, n);
  }
}

FfnBlock::FfnBlock(Activation activation, const Compute& compute, const FfnScratch& scratch,
                   uint32_t rows_max, uint32_t width)
    : activation_(activation),
      compute_(compute),
      scratch_(scratch),
      width_(width),
      hidden_(scratch.hidden_forms, width == 0 ? 0 : rows_max, width) {}

void FfnBlock::run(const FfnWeights& weights, ActivationCache& input, uint32_t n_rows, float* out) {
  const Kernels& kernels = compute_.kernels();
  const Product gate_and_up[] = {
      {weights.gate, input.for_weights(weights.gate.type, compute_), scratch_.gate},
      {weights.up, input.for_weights(weights.up.type, compute_), scratch_.up}};
  compute_.matmul(gate_and_up, n_rows);
  compute_.workers().parallel_for(n_rows, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t row = begin; row < end; ++row)
      activate(kernels, activation_, scratch_.gate + uint64_t{row} * width_,
               scratch_.up + uint64_t{row} * width_, width_);
  });
  hidden_.reset(scratch_.gate, n_rows);
  compute_.matmul(weights.down, hidden_.for_weights(weights.down.type, compute_), n_rows, out);
}

}  // namespace offstage
