#include "runtime/tier_limits.h"

#include <algorithm>
#include <numeric>

namespace offstage {
namespace {
constexpr uint32_t kReadsMin = 64, kReadsMax = 512;
constexpr uint64_t kBytesInFlight = 128ull << 20;
constexpr uint32_t kPrefetchShare = 4;
}  // namespace

uint32_t tier_reads_max(const ExpertLayout& layout) {
  if (layout.n_classes() == 0) return kReadsMin;
  const uint64_t matrix_bytes = layout.class_bytes(0) / kExpertMatrices;
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(kBytesInFlight / matrix_bytes, kReadsMin, kReadsMax));
}

uint32_t prefetch_depth(uint32_t depth) { return std::max(1u, depth / kPrefetchShare); }

std::vector<ExpertPlace> experts_to_preload(const ExpertLayout& layout, const SlotPlan& plan,
                                            const ExpertUsage& usage) {
  std::vector<ExpertPlace> places;
  const uint32_t n_experts = layout.n_experts();
  for (uint32_t l = 0; l < layout.n_layers(); ++l) {
    const float* calls = &usage.calls[size_t{l} * n_experts];
    const uint32_t kept = plan.kept_per_layer[l];
    std::vector<uint32_t> experts(n_experts);
    std::iota(experts.begin(), experts.end(), 0u);
    std::stable_sort(experts.begin(), experts.end(),
                     [&](uint32_t a, uint32_t b) { return calls[a] > calls[b]; });
    for (uint32_t i = 0; i < kept && (kept == n_experts || calls[experts[i]] > 0); ++i)
      places.push_back({LayerIndex(l), ExpertId(experts[i])});
  }
  return places;
}

}  // namespace offstage
