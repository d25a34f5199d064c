#include "cache/usage.h"

#include <algorithm>
#include <cmath>

namespace offstage {
namespace {

constexpr double kKeepPerToken = 0.99983078736;  // 2^(−1/4096)

class CountingPolicy final : public EvictionPolicy {
 public:
  CountingPolicy(std::unique_ptr<EvictionPolicy> inner, ExpertUsage& usage)
      : inner_(std::move(inner)), usage_(usage) {
    for (uint32_t l = 0; usage.tokens > 0 && l < usage.n_layers; ++l)
      inner_->seed(LayerIndex(l), usage.shares(LayerIndex(l)));
  }
  std::string_view name() const override { return inner_->name(); }
  void on_event(const LayerEvent& event) override {
    const double kept = std::pow(kKeepPerToken, event.n_rows);
    if (event.layer.value == 0) usage_.tokens = usage_.tokens * kept + event.n_rows;
    float* calls = &usage_.calls[size_t{event.layer.value} * usage_.n_experts];
    for (uint32_t e = 0; e < usage_.n_experts; ++e) calls[e] *= static_cast<float>(kept);
    for (const ExpertCall& call : event.calls)
      calls[call.expert.value] += static_cast<float>(call.uses);
    inner_->on_event(event);
  }
  double value(LayerIndex layer, ExpertId expert) const override {
    return inner_->value(layer, expert);
  }

 private:
  std::unique_ptr<EvictionPolicy> inner_;
  ExpertUsage& usage_;
};

}  // namespace

std::vector<float> ExpertUsage::shares(LayerIndex layer) const {
  std::vector<float> result(n_experts, 0);
  for (uint32_t e = 0; tokens > 0 && e < n_experts; ++e) {
    const double share = static_cast<double>(calls[size_t{layer.value} * n_experts + e]) / tokens;
    result[e] = static_cast<float>(std::min(share, 1.0));
  }
  return result;
}

std::unique_ptr<EvictionPolicy> make_counting_policy(std::unique_ptr<EvictionPolicy> inner,
                                                     ExpertUsage& usage) {
  return std::make_unique<CountingPolicy>(std::move(inner), usage);
}

}  // namespace offstage
