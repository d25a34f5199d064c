#include "cache/eviction.h"

#include "base/check.h"

namespace offstage {
namespace {

class LruPolicy final : public EvictionPolicy {
 public:
  LruPolicy(uint32_t n_layers, uint32_t n_experts)
      : n_experts_(n_experts), last_event_(size_t{n_layers} * n_experts, 0) {}

  std::string_view name() const override { return "lru"; }

  void on_call(LayerIndex layer, ExpertId expert, uint32_t /*uses*/, uint64_t event) override {
    last_event_[index(layer, expert)] = event;
  }

  ExpertId victim(LayerIndex layer, std::span<const ExpertId> candidates) const override {
    CHECK(!candidates.empty());
    ExpertId oldest = candidates.front();
    for (const ExpertId candidate : candidates) {
      const uint64_t event = last_event_[index(layer, candidate)];
      const uint64_t best = last_event_[index(layer, oldest)];
      if (event < best || (event == best && candidate < oldest)) oldest = candidate;
    }
    return oldest;
  }

 private:
  size_t index(LayerIndex layer, ExpertId expert) const {
    return size_t{layer.value} * n_experts_ + expert.value;
  }

  uint32_t n_experts_;
  std::vector<uint64_t> last_event_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru_policy(uint32_t n_layers, uint32_t n_experts) {
  return std::make_unique<LruPolicy>(n_layers, n_experts);
}

}  // namespace offstage
