#include "runtime/gate_guess.h"

#include "base/checked_math.h"

namespace offstage {

GateGuess::GateGuess(const ModelSpec& spec, const Compute& compute, uint32_t rows_max)
    : spec_(spec),
      compute_(compute),
      router_(spec.router, compute.kernels(), rows_max),
      normed_(size_t{rows_max} * spec.hidden),
      logits_(size_t{rows_max} * spec.router.n_experts),
      forms_(ActivationCache::memory_bytes(rows_max, spec.hidden) + 64),
      input_(reinterpret_cast<std::byte*>(
                 round_up(reinterpret_cast<uintptr_t>(forms_.data()), uintptr_t{64})),
             rows_max, spec.hidden) {}

const Routing& GateGuess::route(const LayerWeights& weights, const float* x, uint32_t n_rows) {
  compute_.norm({weights.ffn_norm, weights.ffn_norm_bias, spec_.norm_eps}, x, n_rows, spec_.hidden,
                normed_.data());
  input_.reset(normed_.data(), n_rows);
  return router_.route(weights, compute_, input_, n_rows, logits_.data());
}

}  // namespace offstage
