#include "plan/drawn_foresight.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/rng.h"

namespace offstage {
namespace {

// A token whose experts are all called here is no help; after so many, any other expert will do.
constexpr int kTokensTried = 8;

}  // namespace

GuessAccuracy::GuessAccuracy(std::vector<double> by_distance)
    : by_distance_(std::move(by_distance)) {
  CHECK(!by_distance_.empty());
}

double GuessAccuracy::at(uint32_t ahead) const {
  const size_t known = by_distance_.size();
  if (ahead <= known) return by_distance_[ahead - 1];
  const double before = known == 1 ? 1 : by_distance_[known - 2];
  const double falls_by = before == 0 ? 0 : std::min(by_distance_.back() / before, 1.0);
  return by_distance_.back() * std::pow(falls_by, ahead - known);
}

std::optional<ExpertId> DrawnForesight::foretold(LayerIndex layer, uint32_t row, uint32_t rank,
                                                 uint32_t ahead) const {
  CHECK(log_ != nullptr);
  const uint64_t token = token_ + row;
  const RouteShape& shape = log_->shape;
  const auto calls = log_->calls(token, layer.value);
  const auto is_called = [&](uint16_t expert) {
    return std::find(calls.begin(), calls.end(), expert) != calls.end();
  };
  Rng rng(seed_ + (token * shape.n_layers + layer.value) * shape.n_used + rank);
  if (rng.uniform() < accuracy_.at(ahead)) return ExpertId(calls[rank]);
  if (shape.n_used == shape.n_experts) return std::nullopt;
  for (int i = 0; i < kTokensTried; ++i) {
    const auto others = log_->calls(rng.below(log_->n_tokens()), layer.value);
    const uint16_t expert = others[rng.below(others.size())];
    if (!is_called(expert)) return ExpertId(expert);
  }
  while (true) {
    const auto expert = static_cast<uint16_t>(rng.below(shape.n_experts));
    if (!is_called(expert)) return ExpertId(expert);
  }
}

}  // namespace offstage
