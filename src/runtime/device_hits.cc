#include "runtime/device_hits.h"

#include <algorithm>

#include "base/checked_math.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 64;

uint64_t aligned(uint64_t bytes) { return round_up(bytes, kAlignment); }

}  // namespace

DeviceHits::DeviceHits(uint32_t n_experts, uint32_t n_used, uint32_t rows_max)
    : n_experts_(n_experts),
      n_used_(n_used),
      calls_max_(rows_max * n_used),
      was_there_(n_experts, 0) {}

uint32_t DeviceHits::n_jobs(uint32_t n_rows) const {
  return std::min(n_experts_, n_rows * n_used_);
}

uint64_t DeviceHits::pinned_bytes() const {
  return aligned(std::min(n_experts_, calls_max_) * sizeof(gpu::ExpertJob));
}

uint64_t DeviceHits::device_bytes() const {
  return pinned_bytes() + aligned(calls_max_ * sizeof(uint32_t)) + aligned(sizeof(uint32_t));
}

void DeviceHits::set_memory(std::byte* on_device, std::byte* pinned) {
  told_ = reinterpret_cast<gpu::ExpertJob*>(pinned);
  jobs_ = reinterpret_cast<gpu::ExpertJob*>(on_device);
  std::byte* const rows = on_device + pinned_bytes();
  place_rows_ = reinterpret_cast<uint32_t*>(rows);
  n_places_ = reinterpret_cast<uint32_t*>(rows + aligned(calls_max_ * sizeof(uint32_t)));
}

bool DeviceHits::look(const VramTier& vram, LayerIndex layer) {
  layer_ = layer;
  for (uint32_t e = 0; e < n_experts_; ++e)
    was_there_[e] = vram.is_in_table(layer, ExpertId(e)) ? 1 : 0;
  return std::find(was_there_.begin(), was_there_.end(), 1) != was_there_.end();
}

gpu::GroupCallsArgs DeviceHits::args(const VramTier& vram, const uint32_t* experts,
                                     uint32_t n_rows) {
  n_rows_ = n_rows;
  gpu::GroupCallsArgs args;
  args.experts = experts;
  args.n_rows = n_rows;
  args.n_used = n_used_;
  args.n_experts = n_experts_;
  args.jobs = jobs_;
  args.place_rows = place_rows_;
  args.slots = vram.table(layer_);
  args.n_places = n_places_;
  args.told = told_;
  return args;
}

Status DeviceHits::check(std::span<const ExpertCall> hits) const {
  uint32_t n_places = 0;
  for (uint32_t j = 0; j < n_jobs(n_rows_); ++j) {
    const gpu::ExpertJob expected =
        j < hits.size() ? gpu::ExpertJob{hits[j].expert.value, n_places, hits[j].uses}
                        : gpu::ExpertJob{};
    n_places += expected.n;
    const gpu::ExpertJob& told = told_[j];
    if (told.n == expected.n &&
        (told.n == 0 || (told.expert == expected.expert && told.first == expected.first)))
      continue;
    return make_error(ErrorCode::kIo,
                      "layer {}: the device computed expert {} for {} rows where {} for {} lay in "
                      "its memory",
                      layer_.value, told.expert, told.n, expected.expert, expected.n);
  }
  return {};
}

}  // namespace offstage
