#include "runtime/promotion_value.h"

#include <algorithm>

namespace offstage {
namespace {

constexpr double kNewestCounts = 1.0 / 64;

// The first measurement counts whole.
void add(double& mean, double value) {
  mean = mean == 0 ? value : mean + (value - mean) * kNewestCounts;
}

}  // namespace

PromotionValue::PromotionValue(uint32_t n_layers, uint32_t n_experts)
    : n_experts_(n_experts), expected_(size_t{n_layers} * n_experts, 0.0) {}

void PromotionValue::seed(const ExpertUsage& usage) {
  for (uint32_t l = 0; l < usage.n_layers; ++l) {
    const std::vector<float> shares = usage.shares(LayerIndex(l));
    for (uint32_t e = 0; e < n_experts_; ++e)
      expected_[size_t{l} * n_experts_ + e] = static_cast<double>(shares[e]) * kHorizonTokens;
  }
}

// A sum of calls of which each counts less with every token after it: of an expert called in a
// share s of all tokens it tends to s · kHorizonTokens.
void PromotionValue::add_calls(LayerIndex layer, std::span<const ExpertCall> calls) {
  double* expected = &expected_[size_t{layer.value} * n_experts_];
  for (uint32_t e = 0; e < n_experts_; ++e) expected[e] *= 1 - 1 / kHorizonTokens;
  for (const ExpertCall& call : calls) expected[call.expert.value] += call.uses;
}

std::span<const double> PromotionValue::calls_expected(LayerIndex layer) const {
  return std::span(expected_).subspan(size_t{layer.value} * n_experts_, n_experts_);
}

void PromotionValue::add_costs(const EventCosts& costs) {
  if (costs.calls == 0) return;
  add(cpu_ns_, static_cast<double>(costs.cpu_ns) / costs.calls);
  wait_ns_ += (static_cast<double>(costs.wait_ns) / costs.calls - wait_ns_) * kNewestCounts;
}

void PromotionValue::add_device(uint32_t calls, int64_t ns, bool exact) {
  const double each = static_cast<double>(ns) / std::max(calls, 1u);
  if (exact || device_ns_ == 0)
    add(device_ns_, each);
  else
    device_ns_ = std::min(device_ns_, each);
}

int64_t PromotionValue::saved_ns_per_call() const {
  return static_cast<int64_t>(std::max(0.0, cpu_ns_ + wait_ns_ - device_ns_));
}

}  // namespace offstage
