#include "cache/size_curve.h"

#include <algorithm>

#include "cache/eviction.h"
#include "cache/replay.h"

namespace offstage {
namespace {

constexpr uint64_t kFillingShare = 4;

// Sizes at even distances from one token's calls to all experts, each once.
std::vector<uint32_t> sizes_of(const RouteShape& shape) {
  std::vector<uint32_t> sizes;
  const uint32_t span = shape.n_experts - shape.n_used;
  for (uint32_t i = 0; i < kSizeCurvePoints; ++i)
    sizes.push_back(shape.n_used + span * i / (kSizeCurvePoints - 1));
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

struct Rates {
  double policy = 0, optimum = 0;
};

Result<Rates> rates_at(const RouteLog& log, std::string_view name, const ReplayOptions& options) {
  const RouteShape& shape = log.shape;
  OFFSTAGE_TRY(const auto policy, make_policy(name, {shape.n_layers, shape.n_experts, shape.n_used,
                                                     options.kept_per_layer}));
  const auto belady = make_belady_policy(log);
  return Rates{replay(log, options, *policy).total().hit_rate(),
               replay(log, options, *belady).total().hit_rate()};
}

}  // namespace

Result<SizeCurve> size_curve(const RouteLog& log, std::string_view policy,
                             std::span<const uint32_t> kept_per_layer) {
  if (kept_per_layer.size() != log.shape.n_layers)
    return make_error(ErrorCode::kInvalidArgument,
                      "cache sizes of {} layers for routing of {} layers", kept_per_layer.size(),
                      log.shape.n_layers);
  SizeCurve curve;
  curve.tokens = log.n_tokens();
  curve.skipped = curve.tokens / kFillingShare;
  if (curve.tokens == 0 || log.shape.n_layers == 0) return curve;
  ReplayOptions options;
  options.skipped = curve.skipped;
  for (const uint32_t kept : sizes_of(log.shape)) {
    options.kept_per_layer.assign(log.shape.n_layers, kept);
    OFFSTAGE_TRY(const Rates rates, rates_at(log, policy, options));
    curve.points.push_back({kept, rates.policy, rates.optimum});
  }
  options.kept_per_layer.assign(kept_per_layer.begin(), kept_per_layer.end());
  // A layer that keeps nothing still has room for the expert it computes.
  for (uint32_t& kept : options.kept_per_layer) kept = std::max(kept, 1u);
  OFFSTAGE_TRY(const Rates rates, rates_at(log, policy, options));
  curve.at_run_size = rates.policy;
  curve.optimum_at_run_size = rates.optimum;
  return curve;
}

}  // namespace offstage
