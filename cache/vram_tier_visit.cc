// Visitors: experts that are copied for the calls of one event.
#include <algorithm>
#include <utility>

#include "cache/vram_tier.h"

namespace offstage {

// One after the other; with all taken, the one whose kernels were launched first.
VramTier::Slot& VramTier::next_visitor() {
  return slots_[first_slot_.back() + n_visits_++ % plan_.visitors];
}

// By now the kernels of the visitor before were launched; those after them don't see it. Who takes
// its slot waits for them, and not for the kernels of the visitors between.
Status VramTier::note_use() {
  if (n_visits_ == 0) return {};
  Slot& last = slots_[first_slot_.back() + (n_visits_ - 1) % plan_.visitors];
  if (last.state != State::kVisiting || last.used) return {};
  OFFSTAGE_TRY_VOID(set_entry(last.layer, last.expert, nullptr));
  OFFSTAGE_TRY(last.used, parts_.device.mark(DeviceStream::kCompute));
  return {};
}

Visit VramTier::visit(LayerIndex layer, ExpertId expert, const ExpertBytes& matrices,
                      std::span<const double> calls_expected) {
  if (lost_) return Visit::kLost;
  if (!has_slots(layer) || plan_.visitors == 0 || slot_of_[place(layer, expert)] != kAbsent)
    return Visit::kRefused;
  Status status = note_use();
  Slot* slot = calls_expected.empty() ? nullptr : place_for(layer, calls_expected);
  const bool stays =
      slot != nullptr && (slot->state == State::kEmpty ||
                          calls_expected[slot->expert.value] < calls_expected[expert.value]);
  if (!stays) slot = &next_visitor();
  const bool waits = slot->state == State::kResident;  // for kernels that read it
  if (status) status = start_copy(*slot, layer, matrices);
  if (status) {
    begin_slot(*slot, layer, expert, stays ? State::kCopying : State::kVisiting);
    status = let_in(*slot);
  }
  if (!status) {
    lose(status.error());
    return Visit::kLost;
  }
  // Of copies that wait the time isn't the bus's alone.
  if (std::exchange(slot->had_the_bus, false) && !waits) {
    timed_ = {slot->arrived, slot->bytes, slot->begun_ns};
  } else if (timed_ && !timed_->is_over) {
    timed_->is_over = waits;
    if (!waits) timed_ = {slot->arrived, timed_->bytes + slot->bytes, timed_->begun_ns};
  }
  return stays ? Visit::kStays : Visit::kLeaves;
}

// What is launched from now on waits for the copy, on the device, and then finds the expert.
Status VramTier::let_in(Slot& slot) {
  OFFSTAGE_TRY_VOID(parts_.device.order(DeviceStream::kCompute, slot.arrived));
  return set_entry(slot.layer, slot.expert, slot.memory);
}

void VramTier::end_burst() {
  if (timed_) timed_->is_over = true;
}

// A caller that sleeps until the copies are there knows to the wake-up how long they took; poll()
// knows only what its looks bracket.
Status VramTier::await_burst(int64_t timeout_ns) {
  if (lost_ || !timed_) return {};
  const Burst burst = *std::exchange(timed_, std::nullopt);
  OFFSTAGE_TRY(const bool there, parts_.device.reached(burst.arrived));
  if (!there) OFFSTAGE_TRY_VOID(parts_.device.wait(burst.arrived, timeout_ns));
  const int64_t most_ns = parts_.clock.now_ns() - burst.begun_ns;
  learn_speed(burst.bytes, there ? 0 : most_ns, most_ns);
  return {};
}

void VramTier::end_visits() {
  timed_.reset();
  n_visits_ = 0;
  if (lost_) return;
  for (Slot& slot : std::span(slots_).subspan(first_slot_.back())) {
    if (slot.state != State::kVisiting) continue;
    if (slot.used) {
      leave(slot);
      continue;
    }
    if (const Status cleared = set_entry(slot.layer, slot.expert, nullptr); !cleared)
      return lose(cleared.error());
    leave(slot);
  }
  if (copying_.empty()) bus_free_ns_ = std::min(bus_free_ns_, parts_.clock.now_ns());
}

}  // namespace offstage
