// Beside a faster tier: what it asks of this one.
#include "base/check.h"
#include "cache/ram_tier.h"

namespace offstage {

void RamTier::call(std::span<const ExpertCall> more) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  CHECK(in_event_ && phase_ == Phase::kDecode);
  start_missing(take_calls(more));
  start_reads();
}

void RamTier::call_again(std::span<const ExpertCall> calls) {
  const uint64_t ram_hits = counters_.ram_hits;
  call(calls);
  counters_.ram_hits = ram_hits;
}

bool RamTier::is_ready(LayerIndex layer, ExpertId expert) const {
  const int32_t slot = slot_of_[place(layer, expert)];
  if (slot == kAbsent) return false;
  const SlotState state = parts_.pool[SlotIndex(static_cast<uint32_t>(slot))].state;
  return state == SlotState::kVerified || state == SlotState::kInUse;
}

// Held slots stay when the layer goes back to its share, so there must be as many that may stay, in
// a prompt too.
std::optional<ExpertBytes> RamTier::hold(LayerIndex layer, ExpertId expert) {
  const int32_t index = slot_of_[place(layer, expert)];
  if (index == kAbsent) return std::nullopt;
  const SlotIndex slot(static_cast<uint32_t>(index));
  const uint32_t spared =
      parts_.plan.kept_per_layer[layer.value] - parts_.plan.lent_in_prefill(layer);
  if (reading_[slot.value].guessed || held_[layer.value] >= spared || !is_ready(layer, expert))
    return std::nullopt;
  ++held_[layer.value];
  parts_.pool.pin(slot);
  return ExpertBytes{matrix_bytes(slot, ExpertMatrix::kGate), matrix_bytes(slot, ExpertMatrix::kUp),
                     matrix_bytes(slot, ExpertMatrix::kDown)};
}

void RamTier::release(LayerIndex layer, ExpertId expert) {
  CHECK_GT(held_[layer.value], 0u);
  --held_[layer.value];
  parts_.pool.unpin(SlotIndex(static_cast<uint32_t>(slot_of_[place(layer, expert)])));
}

}  // namespace offstage
