#include "plan/drawn_foresight.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/rng.h"

namespace offstage {

std::optional<ExpertId> DrawnForesight::foretold(LayerIndex layer, uint32_t row, uint32_t rank,
                                                 uint32_t ahead) const {
  CHECK(log_ != nullptr);
  const uint64_t token = token_ + row;
  const RouteShape& shape = log_->shape;
  const auto calls = log_->calls(token, layer.value);
  Rng rng(seed_ + (token * shape.n_layers + layer.value) * shape.n_used + rank);
  if (rng.uniform() < std::pow(accuracy_, ahead)) return ExpertId(calls[rank]);
  if (shape.n_used == shape.n_experts) return std::nullopt;
  while (true) {
    const auto expert = static_cast<uint16_t>(rng.below(shape.n_experts));
    if (std::find(calls.begin(), calls.end(), expert) == calls.end()) return ExpertId(expert);
  }
}

}  // namespace offstage
