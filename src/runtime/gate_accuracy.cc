#include "runtime/gate_accuracy.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {
namespace {

constexpr uint32_t kBatchRows = 8;  // rows guessed at once: bounds the memory

}  // namespace

GateAccuracy::GateAccuracy(const ModelSpec& spec, const Compute& compute,
                           const DenseWeights& weights, uint32_t rows_max)
    : spec_(spec),
      weights_(weights),
      gate_(spec, compute, kBatchRows),
      recalls_(size_t{kAheadMax} * spec.n_moe_layers()),
      open_(size_t{kAheadMax} * (kAheadMax + 1)) {
  for (auto& guess : open_) guess.reserve(size_t{rows_max} * spec.router.n_used);
}

// At most kAheadMax + 1 layers have guesses open at a time.
std::vector<ExpertId>& GateAccuracy::open_guess(uint32_t ahead, LayerIndex target) {
  return open_[size_t{ahead - 1} * (kAheadMax + 1) + target.value % (kAheadMax + 1)];
}

void GateAccuracy::at_layer(LayerIndex layer, const Routing& routing, const float* x) {
  for (uint32_t ahead = 1; ahead <= kAheadMax; ++ahead) {
    if (layer.value >= ahead) judge(ahead, layer, routing);
    const LayerIndex target(layer.value + ahead);
    if (target.value < spec_.n_moe_layers()) guess(ahead, target, x, routing.n_rows);
  }
}

void GateAccuracy::guess(uint32_t ahead, LayerIndex target, const float* x, uint32_t n_rows) {
  const LayerWeights& weights = weights_.layers[spec_.n_dense_layers + target.value];
  std::vector<ExpertId>& open = open_guess(ahead, target);
  open.clear();
  for (uint32_t row = 0; row < n_rows; row += kBatchRows) {
    const uint32_t n = std::min(kBatchRows, n_rows - row);
    const Routing& routing = gate_.route(weights, x + size_t{row} * spec_.hidden, n);
    open.insert(open.end(), routing.experts.begin(),
                routing.experts.begin() + size_t{n} * spec_.router.n_used);
  }
}

void GateAccuracy::judge(uint32_t ahead, LayerIndex layer, const Routing& routing) {
  const uint32_t k = spec_.router.n_used;
  const std::vector<ExpertId>& open = open_guess(ahead, layer);
  CHECK_EQ(open.size(), size_t{routing.n_rows} * k);
  Recall& recall = recalls_[size_t{ahead - 1} * spec_.n_moe_layers() + layer.value];
  for (uint32_t row = 0; row < routing.n_rows; ++row) {
    const auto named = open.begin() + size_t{row} * k;
    for (uint32_t j = 0; j < k; ++j)
      recall.named +=
          std::find(named, named + k, routing.experts[size_t{row} * k + j]) != named + k;
  }
  recall.called += size_t{routing.n_rows} * k;
}

const GateAccuracy::Recall& GateAccuracy::recall(uint32_t ahead, LayerIndex layer) const {
  CHECK(ahead >= 1 && ahead <= kAheadMax);
  return recalls_[size_t{ahead - 1} * spec_.n_moe_layers() + layer.value];
}

GateAccuracy::Recall GateAccuracy::mean(uint32_t ahead) const {
  Recall sum;
  for (uint32_t l = 0; l < spec_.n_moe_layers(); ++l) {
    sum.called += recall(ahead, LayerIndex(l)).called;
    sum.named += recall(ahead, LayerIndex(l)).named;
  }
  return sum;
}

}  // namespace offstage
