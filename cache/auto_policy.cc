#include "cache/auto_policy.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace offstage {
namespace {

constexpr std::array<std::string_view, 3> kCandidates = {"recall", "lfu", "lru"};
constexpr size_t kRecall = 0, kLfu = 1;
constexpr double kRoomForMost = 0.9;        // share of a layer's experts
constexpr double kKeepPerToken = 0.997296;  // 2^(−1/256)
constexpr double kBetterBy = 0.01;
constexpr double kBetterByTokens = 2;  // so that the first few tokens decide nothing

// The experts that would be resident if one candidate decided alone.
class Shadow {
 public:
  Shadow(std::unique_ptr<EvictionPolicy> policy, const PolicyShape& shape)
      : policy_(std::move(policy)),
        n_experts_(shape.n_experts),
        is_resident_(size_t{shape.n_layers} * shape.n_experts, 0),
        n_resident_(shape.n_layers, 0) {
    candidates_.reserve(shape.n_experts);
  }
  const EvictionPolicy& policy() const { return *policy_; }
  double hits() const { return hits_; }

  void on_event(const LayerEvent& event, uint32_t kept) {
    uint8_t* resident = &is_resident_[size_t{event.layer.value} * n_experts_];
    uint32_t& n = n_resident_[event.layer.value];
    policy_->on_event(event);
    // A prompt's chunk streams past what is kept: it fills room but counts for nobody.
    const bool streams = event.n_rows > 1;
    for (const ExpertCall& call : event.calls) {
      uint8_t& is = resident[call.expert.value];
      if (!streams && is != 0) hits_ += 1;
      if (is != 0 || (streams && n >= kept)) continue;
      is = 1;
      ++n;
    }
    for (; n > kept; --n) {
      candidates_.clear();
      for (uint32_t e = 0; e < n_experts_; ++e)
        if (resident[e] != 0) candidates_.push_back(ExpertId(e));
      resident[policy_->victim(event.layer, candidates_).value] = 0;
    }
  }
  void seed(LayerIndex layer, std::span<const float> shares) { policy_->seed(layer, shares); }
  void forget() { hits_ *= kKeepPerToken; }

 private:
  std::unique_ptr<EvictionPolicy> policy_;
  uint32_t n_experts_;
  std::vector<uint8_t> is_resident_;
  std::vector<uint32_t> n_resident_;
  std::vector<ExpertId> candidates_;
  double hits_ = 0;
};

class AutoPolicy final : public EvictionPolicy {
 public:
  explicit AutoPolicy(const PolicyShape& shape) : kept_(shape.kept_per_layer) {
    for (const std::string_view name : kCandidates) {
      auto policy = make_policy(name, shape);
      CHECK(policy.has_value());
      shadows_.emplace_back(std::move(*policy), shape);
    }
    uint64_t kept = 0;
    for (const uint32_t k : kept_) kept += k;
    const double room = static_cast<double>(kept) /
                        (static_cast<double>(shape.n_experts) * std::max(1u, shape.n_layers));
    lead_ = room >= kRoomForMost ? kLfu : kRecall;
    evicts_ = kept < uint64_t{shape.n_experts} * shape.n_layers;
  }
  std::string_view name() const override { return "auto"; }

  void on_event(const LayerEvent& event) override {
    if (!evicts_) return;  // all experts stay: nothing will be asked
    if (event.layer.value <= last_layer_) new_token();
    last_layer_ = event.layer.value;
    if (event.n_rows == 1) {
      lookups_ += static_cast<double>(event.calls.size());
      token_lookups_ += static_cast<double>(event.calls.size());
    }
    for (Shadow& shadow : shadows_) shadow.on_event(event, kept_[event.layer.value]);
  }
  void seed(LayerIndex layer, std::span<const float> shares) override {
    for (Shadow& shadow : shadows_) shadow.seed(layer, shares);
  }
  double value(LayerIndex layer, ExpertId expert) const override {
    return shadows_[lead_].policy().value(layer, expert);
  }

 private:
  void new_token() {
    size_t best = lead_;
    for (size_t i = 0; i < shadows_.size(); ++i)
      if (shadows_[i].hits() > shadows_[best].hits()) best = i;
    const double margin = kBetterBy * lookups_ + kBetterByTokens * token_lookups_;
    if (shadows_[best].hits() > shadows_[lead_].hits() + margin) lead_ = best;
    token_lookups_ = 0;
    lookups_ *= kKeepPerToken;
    for (Shadow& shadow : shadows_) shadow.forget();
  }

  std::vector<uint32_t> kept_;
  std::vector<Shadow> shadows_;
  size_t lead_;
  bool evicts_;
  double lookups_ = 0, token_lookups_ = 0;
  uint32_t last_layer_ = UINT32_MAX;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_auto_policy(const PolicyShape& shape) {
  return std::make_unique<AutoPolicy>(shape);
}

}  // namespace offstage
