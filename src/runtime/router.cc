#include "runtime/router.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace offstage {

Router::Router(const RouterSpec& spec, const Kernels& kernels, uint32_t rows_max)
    : spec_(spec), kernels_(kernels), order_(spec.n_experts) {
  const size_t calls_max = size_t{rows_max} * spec.n_used;
  routing_.n_used = spec.n_used;
  routing_.experts.resize(calls_max);
  routing_.weights.resize(calls_max);
  routing_.call_rows.resize(calls_max);
  routing_.place_of.resize(calls_max);
  routing_.first.resize(spec.n_experts + 1);
  routing_.calls.reserve(spec.n_experts);
}

const Routing& Router::route(float* logits, uint32_t n_rows) {
  CHECK_LE(size_t{n_rows} * spec_.n_used, routing_.experts.size());
  routing_.n_rows = n_rows;
  for (uint32_t row = 0; row < n_rows; ++row) {
    float* row_logits = logits + size_t{row} * spec_.n_experts;
    kernels_.softmax(row_logits, spec_.n_experts);
    pick(row_logits, row);
  }
  group();
  return routing_;
}

void Router::pick(const float* probabilities, uint32_t row) {
  std::iota(order_.begin(), order_.end(), 0u);
  // NaN (a broken file) sorts last, so that the order stays strict.
  const auto before = [&](uint32_t a, uint32_t b) {
    const float pa = probabilities[a], pb = probabilities[b];
    if (pa > pb) return true;
    if (pa < pb) return false;
    const bool nan_a = pa != pa, nan_b = pb != pb;
    return nan_a != nan_b ? nan_b : a < b;
  };
  std::partial_sort(order_.begin(), order_.begin() + spec_.n_used, order_.end(), before);
  ExpertId* experts = &routing_.experts[size_t{row} * spec_.n_used];
  float* weights = &routing_.weights[size_t{row} * spec_.n_used];
  float sum = 0;
  for (uint32_t j = 0; j < spec_.n_used; ++j) {
    experts[j] = ExpertId(order_[j]);
    weights[j] = probabilities[order_[j]];
    sum += weights[j];
  }
  for (uint32_t j = 0; j < spec_.n_used; ++j) {
    if (spec_.normalise_weights) weights[j] /= sum;
    weights[j] *= spec_.weights_scale;
  }
}

void Router::group() {
  const uint32_t n_calls = routing_.n_rows * spec_.n_used;
  std::fill(routing_.first.begin(), routing_.first.end(), 0u);
  routing_.calls.clear();
  for (uint32_t c = 0; c < n_calls; ++c) {
    const ExpertId expert = routing_.experts[c];
    if (routing_.first[expert.value + 1]++ == 0) routing_.calls.push_back({expert, 0});
  }
  for (ExpertCall& call : routing_.calls) call.uses = routing_.first[call.expert.value + 1];
  std::partial_sum(routing_.first.begin(), routing_.first.end(), routing_.first.begin());
  std::vector<uint32_t>& next = order_;  // the next free place of each expert
  std::copy(routing_.first.begin(), routing_.first.end() - 1, next.begin());
  for (uint32_t c = 0; c < n_calls; ++c) {
    const uint32_t place = next[routing_.experts[c].value]++;
    routing_.call_rows[place] = c / spec_.n_used;
    routing_.place_of[c] = place;
  }
}

}  // namespace offstage
