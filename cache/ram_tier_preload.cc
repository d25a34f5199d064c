// Residents before anybody called them: a model that fits is read as a file is read, from the front
// to the back, instead of expert by expert as the first tokens happen to call them.
#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "cache/ram_tier.h"

namespace offstage {
namespace {
constexpr int64_t kReapTimeoutNs = 1'000'000'000;  // the scheduler's deadline ends a wait, not this
}

// One matrix to read.
struct RamTier::Preload {
  SlotIndex slot;
  ExpertMatrix matrix;
  Extent extent;
};

// A slot for each expert that its layer's share has room for; their matrices in file order.
std::vector<RamTier::Preload> RamTier::take_slots_for(std::span<const ExpertPlace> experts) {
  std::vector<Preload> reads;
  for (const auto& [layer, expert] : experts) {
    const bool is_full = residents_[layer.value] >= parts_.plan.kept_per_layer[layer.value];
    if (is_full || is_resident(layer, expert)) continue;
    const auto slot = parts_.pool.take_empty(parts_.layout.slot_class(layer));
    if (!slot) continue;
    parts_.pool.begin_read(*slot, layer, expert);
    slot_of_[place(layer, expert)] = static_cast<int32_t>(slot->value);
    ++residents_[layer.value];
    reading_[slot->value] = {};
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const auto matrix = static_cast<ExpertMatrix>(m);
      reads.push_back({*slot, matrix, parts_.layout.extent(layer, expert, matrix)});
    }
  }
  std::sort(reads.begin(), reads.end(), [](const Preload& a, const Preload& b) {
    return std::tie(a.extent.file, a.extent.offset) < std::tie(b.extent.file, b.extent.offset);
  });
  return reads;
}

void RamTier::preload(std::span<const ExpertPlace> experts,
                      const std::function<void(uint64_t done, uint64_t total)>& progress) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  CHECK(!in_event_);
  CHECK_EQ(matrices_in_flight_, 0u);
  const std::vector<Preload> reads = take_slots_for(experts);
  uint64_t total = 0, done_bytes = 0;
  for (const Preload& read : reads) total += read.extent.bytes;
  preload_status_ = {};
  for (size_t next = 0;;) {
    burst_.clear();
    while (next < reads.size() && preload_status_ &&
           matrices_in_flight_ + parts_.reads.quarantined() < parts_.reads_max)
      burst_.push_back(read_job(reads[next].slot, reads[next].matrix)), ++next;
    if (!burst_.empty()) parts_.reads.start(burst_);
    if (matrices_in_flight_ == 0) break;
    const size_t n = parts_.reads.reap(done_, kReapTimeoutNs);
    for (size_t i = 0; i < n; ++i) done_bytes += done_[i].extent.bytes;
    const Status status = absorb({done_.data(), n});
    CHECK(status);  // errors of what no event called go to preload_status_
    release_quarantined();
    if (progress) progress(done_bytes, total);
  }
  // After a failure: slots that were taken and not filled.
  for (const Preload& read : reads) {
    const Slot& slot = parts_.pool[read.slot];
    if (read.matrix != ExpertMatrix::kGate) continue;
    if (slot.state == SlotState::kVerified) {
      ++counters_.preloads;
      counters_.preload_bytes += parts_.layout.expert_bytes(slot.layer);
    } else if (slot.state == SlotState::kReading &&
               slot_of_[place(slot.layer, slot.expert)] == static_cast<int32_t>(read.slot.value)) {
      give_up(read.slot);
    }
  }
  if (!preload_status_)
    parts_.notices.add("preload", preload_status_.error().message +
                                      "; the remaining experts are read when they are called");
}

}  // namespace offstage
