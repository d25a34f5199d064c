#include "runtime/router.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "base/arithmetic.h"
#include "base/check.h"

namespace offstage {

Router::Router(const RouterSpec& spec, const Kernels& kernels, uint32_t rows_max)
    : spec_(spec),
      kernels_(kernels),
      weight_sums_(spec.n_experts),
      order_(spec.n_experts),
      merits_(spec.n_experts) {
  groups_.reserve(spec.n_groups);
  const size_t calls_max = size_t{rows_max} * spec.n_used;
  routing_.n_used = spec.n_used;
  routing_.experts.resize(calls_max);
  routing_.weights.resize(calls_max);
  routing_.call_rows.resize(calls_max);
  routing_.place_of.resize(calls_max);
  routing_.first.resize(spec.n_experts + 1);
  routing_.calls.reserve(spec.n_experts);
}

const Routing& Router::route(float* logits, uint32_t n_rows, const float* selection_bias) {
  CHECK_LE(size_t{n_rows} * spec_.n_used, routing_.experts.size());
  routing_.n_rows = n_rows;
  for (uint32_t row = 0; row < n_rows; ++row) {
    float* scores = logits + size_t{row} * spec_.n_experts;
    score(scores);
    const float* merits = scores;
    if (selection_bias != nullptr || spec_.n_groups > 1) {
      std::copy_n(scores, spec_.n_experts, merits_.begin());
      if (selection_bias != nullptr) kernels_.add(merits_.data(), selection_bias, spec_.n_experts);
      if (spec_.n_groups > 1) mask_groups(merits_.data());
      merits = merits_.data();
    }
    pick(merits, row);
    weigh(scores, row);
  }
  group();
  return routing_;
}

const Routing& Router::route(const LayerWeights& weights, const Compute& compute,
                             ActivationCache& input, uint32_t n_rows, float* logits) {
  compute.matmul(weights.router, input.for_weights(weights.router.type, compute), n_rows, logits);
  for (uint32_t row = 0; weights.router_bias != nullptr && row < n_rows; ++row)
    kernels_.add(logits + size_t{row} * spec_.n_experts, weights.router_bias, spec_.n_experts);
  return route(logits, n_rows, weights.selection_bias);
}

const Routing& Router::adopt(const uint32_t* experts, const float* weights, uint32_t n_rows) {
  const size_t n_calls = size_t{n_rows} * spec_.n_used;
  CHECK_LE(n_calls, routing_.experts.size());
  routing_.n_rows = n_rows;
  for (size_t c = 0; c < n_calls; ++c) {
    CHECK_LT(experts[c], spec_.n_experts);
    routing_.experts[c] = ExpertId(experts[c]);
    routing_.weights[c] = weights[c];
  }
  group();
  return routing_;
}

const Routing& Router::replace(std::span<const ExpertId> experts, std::span<const float> weights) {
  CHECK_EQ(experts.size(), size_t{routing_.n_rows} * spec_.n_used);
  CHECK_EQ(weights.size(), experts.size());
  std::copy(experts.begin(), experts.end(), routing_.experts.begin());
  std::copy(weights.begin(), weights.end(), routing_.weights.begin());
  group();
  return routing_;
}

void Router::score(float* logits) const {
  switch (spec_.score) {
    case RouterScore::kSoftmax: return kernels_.softmax(logits, spec_.n_experts);
    case RouterScore::kSigmoid: return kernels_.sigmoid(logits, spec_.n_experts);
    case RouterScore::kSoftmaxOfChosen: return;  // softmax keeps the order: the choice needs none
  }
}

// Experts of all but the best groups lose every comparison. Ties go to the lower group.
void Router::mask_groups(float* merits) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const uint32_t size = spec_.n_experts / spec_.n_groups;
  groups_.clear();
  for (uint32_t g = 0; g < spec_.n_groups; ++g) {
    float best = kLowest, second = kLowest;
    for (uint32_t i = g * size; i < (g + 1) * size; ++i) {
      if (merits[i] > best) {
        second = std::exchange(best, merits[i]);
      } else if (merits[i] > second) {
        second = merits[i];
      }
    }
    const float merit = best + second;
    groups_.emplace_back(merit != merit ? kLowest : merit, g);  // inf − inf, from a broken file
  }
  std::stable_sort(groups_.begin(), groups_.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (uint32_t rank = spec_.n_groups_used; rank < spec_.n_groups; ++rank)
    std::fill_n(merits + size_t{groups_[rank].second} * size, size, kLowest);
}

void Router::pick(const float* merits, uint32_t row) {
  std::iota(order_.begin(), order_.end(), 0u);
  // NaN (a broken file) sorts last, so that the order stays strict.
  const auto before = [&](uint32_t a, uint32_t b) {
    const float ma = merits[a], mb = merits[b];
    if (ma > mb) return true;
    if (ma < mb) return false;
    const bool nan_a = ma != ma, nan_b = mb != mb;
    return nan_a != nan_b ? nan_b : a < b;
  };
  std::partial_sort(order_.begin(), order_.begin() + spec_.n_used, order_.end(), before);
  ExpertId* experts = &routing_.experts[size_t{row} * spec_.n_used];
  for (uint32_t j = 0; j < spec_.n_used; ++j) experts[j] = ExpertId(order_[j]);
}

void Router::weigh(const float* scores, uint32_t row) {
  const ExpertId* experts = &routing_.experts[size_t{row} * spec_.n_used];
  float* weights = &routing_.weights[size_t{row} * spec_.n_used];
  for (uint32_t j = 0; j < spec_.n_used; ++j) weights[j] = scores[experts[j].value];
  if (spec_.score == RouterScore::kSoftmaxOfChosen) kernels_.softmax(weights, spec_.n_used);
  float sum = 0;
  for (uint32_t j = 0; j < spec_.n_used; ++j) sum += weights[j];
  if (sum < kRouterSumMin) sum = kRouterSumMin;  // false for NaN, which then shows
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
    if (routing_.first[expert.value + 1]++ == 0) {
      routing_.calls.push_back({expert, 0});
      weight_sums_[expert.value] = 0;
    }
    weight_sums_[expert.value] += routing_.weights[c];
  }
  for (ExpertCall& call : routing_.calls) {
    call.uses = routing_.first[call.expert.value + 1];
    call.weight = weight_sums_[call.expert.value];
  }
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
