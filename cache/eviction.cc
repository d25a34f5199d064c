#include "cache/eviction.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "cache/auto_policy.h"
#include "cache/recall_policy.h"

namespace offstage {
namespace {

// Calls are forgotten by half every 16 rows: on recorded traces the best of 2 … 512 (ARCHITECTURE).
constexpr double kForgetPerRow = 0.957603280698573646936305635147915;  // 2^(−1/16)
// Router weights sum to about 1 per row; at this scale a call at the mean weight counts as much as
// the call itself.
constexpr double kGateShare = 0.5;

// One number per expert, and the layer's own clock.
class PerLayer {
 public:
  PerLayer(uint32_t n_layers, uint32_t n_experts)
      : n_experts_(n_experts), time_(n_layers, 0), values_(size_t{n_layers} * n_experts, 0) {}
  // Time is counted in rows.
  uint64_t advance(LayerIndex layer, uint32_t n_rows) { return time_[layer.value] += n_rows; }
  std::span<double> of(LayerIndex layer) {
    return {&values_[size_t{layer.value} * n_experts_], n_experts_};
  }
  double value(LayerIndex layer, ExpertId expert) const {
    return values_[size_t{layer.value} * n_experts_ + expert.value];
  }

 private:
  uint32_t n_experts_;
  std::vector<uint64_t> time_;
  std::vector<double> values_;
};

// Calls f(expert, rows from the event's end) for every call, oldest row first. Within a row a
// little is added by router order, so that of two calls of one row the heavier is the later.
template <typename F>
void for_each_call(const LayerEvent& event, F f) {
  if (event.row_experts.empty()) {
    const auto n = static_cast<double>(event.calls.size());
    for (size_t j = 0; j < event.calls.size(); ++j)
      f(event.calls[j].expert, static_cast<double>(j) / (n + 1));
    return;
  }
  const size_t per_row = event.row_experts.size() / event.n_rows;
  for (size_t i = 0; i < event.row_experts.size(); ++i)
    f(event.row_experts[i],
      static_cast<double>(event.n_rows - 1 - i / per_row) +
          static_cast<double>(i % per_row) / static_cast<double>(per_row + 1));
}

class LruPolicy final : public EvictionPolicy {
 public:
  LruPolicy(uint32_t n_layers, uint32_t n_experts) : last_(n_layers, n_experts) {}
  std::string_view name() const override { return "lru"; }
  // Before any call, in the order of use.
  void seed(LayerIndex layer, std::span<const float> shares) override {
    std::transform(shares.begin(), shares.end(), last_.of(layer).begin(),
                   [](float share) { return static_cast<double>(share) - 1; });
  }
  void on_event(const LayerEvent& event) override {
    const auto now = static_cast<double>(last_.advance(event.layer, event.n_rows));
    const std::span<double> last = last_.of(event.layer);
    for_each_call(event, [&](ExpertId e, double ago) { last[e.value] = now - ago; });
  }
  double value(LayerIndex layer, ExpertId expert) const override {
    return last_.value(layer, expert);
  }

 private:
  PerLayer last_;
};

// lfu and gate: calls counted, by themselves or by the router's weight, and forgotten slowly.
class FrequencyPolicy final : public EvictionPolicy {
 public:
  enum class Counts { kCalls, kWeights };
  FrequencyPolicy(const PolicyShape& shape, Counts counts)
      : counts_(counts), n_used_(shape.n_used), count_(shape.n_layers, shape.n_experts) {}
  std::string_view name() const override { return counts_ == Counts::kCalls ? "lfu" : "gate"; }
  void on_event(const LayerEvent& event) override {
    const std::span<double> counts = count_.of(event.layer);
    const double kept = std::pow(kForgetPerRow, event.n_rows);
    for (double& count : counts) count *= kept;
    double left = 1;  // of a call `row` rows before the end
    double row = 0;
    for_each_call(event, [&](ExpertId e, double ago) {
      if (std::floor(ago) != row) left = std::pow(kForgetPerRow, row = std::floor(ago));
      counts[e.value] += left;
    });
    if (counts_ == Counts::kWeights)
      for (const ExpertCall& call : event.calls)
        counts[call.expert.value] +=
            kGateShare * n_used_ * static_cast<double>(call.weight) / event.n_rows;
    // What nearly was chosen is likelier to be chosen next.
    double sum = 0;
    for (const float p : event.probabilities) sum += static_cast<double>(p);
    if (counts_ == Counts::kWeights && std::isfinite(sum) && sum > 0)
      for (size_t e = 0; e < counts.size(); ++e)
        counts[e] += kGateShare * static_cast<double>(event.probabilities[e]) / sum;
  }
  double value(LayerIndex layer, ExpertId expert) const override {
    return count_.value(layer, expert);
  }
  // As if called at that rate for ever.
  void seed(LayerIndex layer, std::span<const float> shares) override {
    for (size_t e = 0; e < shares.size(); ++e)
      count_.of(layer)[e] = static_cast<double>(shares[e]) / (1 - kForgetPerRow);
  }

 private:
  Counts counts_;
  uint32_t n_used_;
  PerLayer count_;
};

// Two segments without lists: who was called twice within a window is protected for a window, as if
// it had been called that much later.
class SegmentedPolicy final : public EvictionPolicy {
 public:
  explicit SegmentedPolicy(const PolicyShape& shape)
      : last_(shape.n_layers, shape.n_experts), protected_(shape.n_layers, shape.n_experts) {
    for (const uint32_t kept : shape.kept_per_layer)
      window_.push_back(2.0 * std::max(1u, kept) / shape.n_used);
  }
  std::string_view name() const override { return "slru"; }
  void seed(LayerIndex layer, std::span<const float> shares) override {
    std::transform(shares.begin(), shares.end(), last_.of(layer).begin(),
                   [](float share) { return static_cast<double>(share) - 1; });
  }
  void on_event(const LayerEvent& event) override {
    const auto end = static_cast<double>(last_.advance(event.layer, event.n_rows));
    const double window = window_[event.layer.value];
    const std::span<double> last = last_.of(event.layer);
    const std::span<double> bonus = protected_.of(event.layer);
    for_each_call(event, [&](ExpertId e, double ago) {
      const double now = end - ago;
      bonus[e.value] = last[e.value] > 0 && now - last[e.value] <= window ? window : 0;
      last[e.value] = now;
    });
  }
  double value(LayerIndex layer, ExpertId expert) const override {
    return last_.value(layer, expert) + protected_.value(layer, expert);
  }

 private:
  PerLayer last_, protected_;
  std::vector<double> window_;  // by layer: twice the rows in which LRU would turn over
};

}  // namespace

ExpertId EvictionPolicy::victim(LayerIndex layer, std::span<const ExpertId> candidates) const {
  CHECK(!candidates.empty());
  ExpertId least = candidates.front();
  double least_value = value(layer, least);
  for (const ExpertId candidate : candidates.subspan(1)) {
    const double candidate_value = value(layer, candidate);
    if (candidate_value < least_value || (candidate_value == least_value && candidate < least)) {
      least = candidate;
      least_value = candidate_value;
    }
  }
  return least;
}

std::unique_ptr<EvictionPolicy> make_lru_policy(uint32_t n_layers, uint32_t n_experts) {
  return std::make_unique<LruPolicy>(n_layers, n_experts);
}

std::vector<std::string_view> policy_names() {
  return {"auto", "recall", "gate", "lfu", "slru", "lru"};
}

Result<std::unique_ptr<EvictionPolicy>> make_policy(std::string_view name,
                                                    const PolicyShape& shape) {
  CHECK_EQ(shape.kept_per_layer.size(), size_t{shape.n_layers});
  using Counts = FrequencyPolicy::Counts;
  std::unique_ptr<EvictionPolicy> policy;
  if (name == "lru") policy = make_lru_policy(shape.n_layers, shape.n_experts);
  if (name == "lfu") policy = std::make_unique<FrequencyPolicy>(shape, Counts::kCalls);
  if (name == "gate") policy = std::make_unique<FrequencyPolicy>(shape, Counts::kWeights);
  if (name == "slru") policy = std::make_unique<SegmentedPolicy>(shape);
  if (name == "recall") policy = make_recall_policy(shape);
  if (name == "auto") policy = make_auto_policy(shape);
  if (policy) return policy;
  return make_error(ErrorCode::kInvalidArgument, "cache policy: expected one of {}, found '{}'",
                    fmt::join(policy_names(), ", "), name);
}

}  // namespace offstage
