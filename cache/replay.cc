#include "cache/replay.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace offstage {
namespace {

class BeladyPolicy final : public EvictionPolicy {
 public:
  explicit BeladyPolicy(const RouteLog& log)
      : n_experts_(log.shape.n_experts),
        next_(size_t{log.shape.n_layers} * n_experts_, kNever),
        later_(log.experts.size()),
        token_(log.shape.n_layers, 0),
        n_used_(log.shape.n_used) {
    // Backwards: what a call's expert is called next, after that call.
    for (uint64_t t = log.n_tokens(); t-- > 0;)
      for (uint32_t l = 0; l < log.shape.n_layers; ++l) {
        const auto calls = log.calls(t, l);
        for (uint32_t j = 0; j < n_used_; ++j) {
          uint64_t& next = next_[size_t{l} * n_experts_ + calls[j]];
          later_[(t * log.shape.n_layers + l) * n_used_ + j] = next;
          next = t;
        }
      }
  }
  std::string_view name() const override { return "belady"; }
  void on_event(const LayerEvent& event) override {
    const uint64_t t = token_[event.layer.value]++;
    const size_t first = (t * token_.size() + event.layer.value) * n_used_;
    for (size_t j = 0; j < event.calls.size(); ++j)
      next_[size_t{event.layer.value} * n_experts_ + event.calls[j].expert.value] =
          later_[first + j];
  }
  double value(LayerIndex layer, ExpertId expert) const override {
    const uint64_t next = next_[size_t{layer.value} * n_experts_ + expert.value];
    return next == kNever ? -std::numeric_limits<double>::infinity() : -static_cast<double>(next);
  }

 private:
  static constexpr uint64_t kNever = UINT64_MAX;
  uint32_t n_experts_;
  std::vector<uint64_t> next_;   // [layer][expert]: the token of its next call
  std::vector<uint64_t> later_;  // [token][layer][used]: of the call after this one
  std::vector<uint64_t> token_;  // by layer: events so far
  uint32_t n_used_;
};

}  // namespace

LayerHits ReplayResult::total() const {
  LayerHits sum;
  for (const LayerHits& layer : layers) {
    sum.lookups += layer.lookups;
    sum.hits += layer.hits;
  }
  return sum;
}

ReplayResult replay(const RouteLog& log, uint32_t kept, EvictionPolicy& policy) {
  return replay(log, {std::vector<uint32_t>(log.shape.n_layers, kept)}, policy);
}

ReplayResult replay(const RouteLog& log, const ReplayOptions& options, EvictionPolicy& policy) {
  const RouteShape& shape = log.shape;
  CHECK_EQ(options.kept_per_layer.size(), shape.n_layers);
  for (const uint32_t kept : options.kept_per_layer) CHECK_GE(kept, 1u);
  ReplayResult result;
  result.layers.resize(shape.n_layers);
  result.misses.resize(size_t{shape.n_layers} * shape.n_experts, 0);
  std::vector<uint8_t> is_resident(size_t{shape.n_layers} * shape.n_experts, 0);
  std::vector<std::vector<ExpertId>> residents(shape.n_layers);
  std::vector<ExpertCall> calls(shape.n_used);
  std::vector<ExpertId> row(shape.n_used);
  for (uint64_t t = 0; t < std::min(options.tokens, log.n_tokens()); ++t)
    for (uint32_t l = 0; l < shape.n_layers; ++l) {
      const bool counts = t >= options.skipped;
      uint8_t* resident = &is_resident[size_t{l} * shape.n_experts];
      const auto called = log.calls(t, l);
      for (uint32_t j = 0; j < shape.n_used; ++j) {
        row[j] = ExpertId(called[j]);
        calls[j] = {row[j], 1, log.shape.has_probs ? log.weight(t, l, j) : 0};
        if (!counts) continue;
        result.layers[l].hits += resident[called[j]];
        result.misses[size_t{l} * shape.n_experts + called[j]] += resident[called[j]] == 0 ? 1 : 0;
      }
      if (counts) result.layers[l].lookups += shape.n_used;
      policy.on_event({LayerIndex(l), calls, 1, row});
      for (const ExpertId expert : row)
        if (std::exchange(resident[expert.value], 1) == 0) residents[l].push_back(expert);
      while (residents[l].size() > options.kept_per_layer[l]) {
        const ExpertId victim = policy.victim(LayerIndex(l), residents[l]);
        resident[victim.value] = 0;
        std::erase(residents[l], victim);
      }
    }
  return result;
}

Result<uint32_t> parse_capacity(std::string_view text, const RouteShape& shape) {
  const bool is_share = text.ends_with('%');
  const std::string_view digits = is_share ? text.substr(0, text.size() - 1) : text;
  double number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  const bool whole = is_share || number == std::floor(number);
  const double kept = is_share ? std::round(number / 100 * shape.n_experts) : number;
  if (error != std::errc() || end != digits.data() + digits.size() || !whole || !(number > 0) ||
      !(kept <= shape.n_experts))
    return make_error(ErrorCode::kInvalidArgument,
                      "capacity: expected 1 to {} experts per layer or a share such as 25%, found "
                      "'{}'",
                      shape.n_experts, text);
  const auto n = static_cast<uint32_t>(kept);
  return is_share ? std::max(n, shape.n_used) : n;
}

Result<std::vector<uint32_t>> parse_capacities(std::string_view text, const RouteShape& shape) {
  if (text.find(',') == std::string_view::npos) {
    OFFSTAGE_TRY(const uint32_t kept, parse_capacity(text, shape));
    return std::vector<uint32_t>(shape.n_layers, kept);
  }
  std::vector<uint32_t> kept;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    OFFSTAGE_TRY(kept.emplace_back(), parse_capacity(text.substr(begin, end - begin), shape));
    begin = end + 1;
  }
  if (kept.size() == shape.n_layers) return kept;
  return make_error(ErrorCode::kInvalidArgument,
                    "capacity: expected a count for each of {} layers, found {} in '{}'",
                    shape.n_layers, kept.size(), text);
}

uint64_t bytes_missed(const ReplayResult& result, const ExpertLayout& layout,
                      std::span<const uint64_t> file_bytes) {
  CHECK_EQ(result.misses.size(), size_t{layout.n_layers()} * layout.n_experts());
  uint64_t bytes = 0;
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    for (uint32_t e = 0; e < layout.n_experts(); ++e)
      for (uint32_t m = 0; m < kExpertMatrices; ++m) {
        const Extent extent =
            layout.extent(LayerIndex(l), ExpertId(e), static_cast<ExpertMatrix>(m));
        const uint64_t misses = result.misses[size_t{l} * layout.n_experts() + e];
        for (uint32_t i = 0; i < stripe_count(extent); ++i) {
          const Extent part = stripe(extent, i);
          const uint64_t end =
              std::min(span_offset(part) + span_bytes(part), file_bytes[part.file]);
          bytes += misses * (end - span_offset(part));
        }
      }
  return bytes;
}

std::unique_ptr<EvictionPolicy> make_belady_policy(const RouteLog& log) {
  return std::make_unique<BeladyPolicy>(log);
}

}  // namespace offstage
