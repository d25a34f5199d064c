// How well the next-layer gate guesses: a layer's own norm and router on the residual stream of one
// or two layers earlier, held against what that layer calls. For measurements; every row counts,
// whatever the phase, and nothing is read for a guess. Decode thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/gate_guess.h"

namespace offstage {

class GateAccuracy {
 public:
  static constexpr uint32_t kAheadMax = 2;

  // recall@k: of the k experts that a row calls, how many are among the k that were named.
  struct Recall {
    uint64_t called = 0, named = 0;
    double value() const {
      return called == 0 ? 0 : static_cast<double>(named) / static_cast<double>(called);
    }
  };

  GateAccuracy(const ModelSpec& spec, const Compute& compute, const DenseWeights& weights,
               uint32_t rows_max);

  // In the order of a forward: `layer` (of those with experts) calls `routing`, and the stream is x
  // [n_rows][hidden] there.
  void at_layer(LayerIndex layer, const Routing& routing, const float* x);

  // Of guesses made `ahead` (1 to kAheadMax) layers before `layer`; the first `ahead` have none.
  const Recall& recall(uint32_t ahead, LayerIndex layer) const;
  Recall mean(uint32_t ahead) const;  // over layers

 private:
  std::vector<ExpertId>& open_guess(uint32_t ahead, LayerIndex target);
  void guess(uint32_t ahead, LayerIndex target, const float* x, uint32_t n_rows);
  void judge(uint32_t ahead, LayerIndex layer, const Routing& routing);

  const ModelSpec& spec_;
  const DenseWeights& weights_;
  GateGuess gate_;
  std::vector<Recall> recalls_;              // [kAheadMax][layer]
  std::vector<std::vector<ExpertId>> open_;  // guesses whose layer is to come, [rows][n_used] each
};

}  // namespace offstage
