#include "cache/slot_pool.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/checked_math.h"
#include "io/extent.h"

namespace offstage {
namespace {
// 0xFF bytes are NaN as float, half and bfloat16: a stale read shows in the first logit.
[[maybe_unused]] constexpr int kPoison = 0xFF;
}  // namespace

Result<SlotPool> SlotPool::create(const SlotPlan& plan, Notices& notices) {
  return create(plan, false, notices);
}

Result<SlotPool> SlotPool::create_shared(const SlotPlan& plan, Notices& notices) {
  return create(plan, true, notices);
}

Result<SlotPool> SlotPool::create(const SlotPlan& plan, bool shared, Notices& notices) {
  uint64_t bytes = 0;
  for (const SlotClassPlan& c : plan.classes)
    bytes += c.slot_bytes * (shared ? std::min(c.n_slots, 1u) : c.n_slots);
  // Huge pages to the last slot: into small ones drives may be half as fast (ARCHITECTURE, item 8).
  if (!shared) bytes = round_up(bytes, kHugePageBytes);
  OFFSTAGE_TRY(HostArena arena, HostArena::create("expert slots", bytes, notices));
  SlotPool pool(std::move(arena));
  for (uint32_t c = 0; c < plan.classes.size(); ++c) {
    const SlotClassPlan& class_plan = plan.classes[c];
    pool.class_bytes_.push_back(class_plan.slot_bytes);
    pool.empty_.emplace_back();
    const uint32_t first = pool.size();
    for (uint32_t i = 0; i < class_plan.n_slots; ++i) {
      Slot slot;
      slot.memory = shared && i != 0 ? pool.slots_.back().memory
                                     : pool.arena_.take(class_plan.slot_bytes, kSectorBytes);
      slot.slot_class = c;
      pool.slots_.push_back(slot);
    }
    // The lowest address on top, so that a small run touches few huge pages.
    for (uint32_t i = pool.size(); i > first; --i) pool.empty_[c].push_back(SlotIndex(i - 1));
  }
  return pool;
}

std::optional<SlotIndex> SlotPool::take_empty(uint32_t slot_class) {
  if (empty_[slot_class].empty()) return std::nullopt;
  const SlotIndex index = empty_[slot_class].back();
  empty_[slot_class].pop_back();
  return index;
}

void SlotPool::begin_read(SlotIndex index, LayerIndex layer, ExpertId expert) {
  Slot& slot = slots_[index.value];
  CHECK(slot.state == SlotState::kEmpty);
  CHECK_EQ(slot.reads_outstanding, 0u);
  slot.state = SlotState::kReading;
  ++slot.generation;
  slot.layer = layer;
  slot.expert = expert;
}

void SlotPool::read_started(SlotIndex index) {
  CHECK(slots_[index.value].state == SlotState::kReading);
  ++slots_[index.value].reads_outstanding;
}

void SlotPool::read_returned(SlotIndex index) {
  CHECK_GT(slots_[index.value].reads_outstanding, 0u);
  --slots_[index.value].reads_outstanding;
}

void SlotPool::verified(SlotIndex index) {
  Slot& slot = slots_[index.value];
  CHECK(slot.state == SlotState::kReading);
  CHECK_EQ(slot.reads_outstanding, 0u);
  slot.state = SlotState::kVerified;
}

void SlotPool::pin(SlotIndex index) {
  Slot& slot = slots_[index.value];
  CHECK(slot.state == SlotState::kVerified || slot.state == SlotState::kInUse);
  slot.state = SlotState::kInUse;
  ++slot.pins;
}

void SlotPool::unpin(SlotIndex index) {
  Slot& slot = slots_[index.value];
  CHECK(slot.state == SlotState::kInUse);
  CHECK_GT(slot.pins, 0u);
  if (--slot.pins == 0) slot.state = SlotState::kVerified;
}

void SlotPool::clear(SlotIndex index) {
  Slot& slot = slots_[index.value];
  CHECK(slot.state == SlotState::kVerified || slot.state == SlotState::kReading);
  CHECK_EQ(slot.reads_outstanding, 0u);
  CHECK_EQ(slot.pins, 0u);
#ifndef NDEBUG
  std::memset(slot.memory, kPoison, class_bytes_[slot.slot_class]);
#endif
  slot.state = SlotState::kEmpty;
  empty_[slot.slot_class].push_back(index);
}

}  // namespace offstage
