// Beside a faster tier: what it asks of this one.
#include <algorithm>

#include "base/check.h"
#include "cache/ram_tier.h"

namespace offstage {

void RamTier::call(std::span<const ExpertCall> more) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  CHECK(in_event_);
  std::vector<ExpertCall> newcomers = take_calls(more);
  if (phase_ == Phase::kPrefill) plan_what_stays(newcomers);
  start_missing(newcomers);
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

// Slots that are held or being written stay when the layer goes back to its share, so there must be
// as many that may stay, in a prompt too.
bool RamTier::can_hold_more(LayerIndex layer) const {
  const uint32_t spared =
      parts_.plan.kept_per_layer[layer.value] - parts_.plan.lent_in_prefill(layer);
  return held_[layer.value] + adopting_[layer.value] < spared;
}

std::optional<ExpertBytes> RamTier::hold(LayerIndex layer, ExpertId expert) {
  const int32_t index = slot_of_[place(layer, expert)];
  if (index == kAbsent) return std::nullopt;
  const SlotIndex slot(static_cast<uint32_t>(index));
  if (reading_[slot.value].guessed || !can_hold_more(layer) || !is_ready(layer, expert))
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

// Who leaves first: of those that a faster tier has, if there are any.
std::optional<ExpertId> RamTier::least_worth(LayerIndex layer) const {
  const bool in_its_event = in_event_ && layer == layer_;
  std::vector<ExpertId> candidates, doubled;
  for (uint32_t e = 0; e < parts_.layout.n_experts(); ++e) {
    const int32_t slot = slot_of_[place(layer, ExpertId(e))];
    if (slot == kAbsent || (in_its_event && needed_[e])) continue;
    const auto index = static_cast<uint32_t>(slot);
    if (parts_.pool[SlotIndex(index)].state != SlotState::kVerified) continue;
    if (reading_[index].guessed) continue;
    candidates.push_back(ExpertId(e));
    if (is_elsewhere(layer, ExpertId(e))) doubled.push_back(ExpertId(e));
  }
  if (candidates.empty()) return std::nullopt;
  return parts_.policy.victim(layer, doubled.empty() ? candidates : doubled);
}

bool RamTier::evict_one(LayerIndex layer) {
  const std::optional<ExpertId> victim = least_worth(layer);
  if (!victim) return false;
  evict(layer, SlotIndex(static_cast<uint32_t>(slot_of_[place(layer, *victim)])));
  return true;
}

// The slot is the layer's own: one that it doesn't use, or that of who leaves. Until adopted()
// nobody finds it, and the layer's share is one less.
std::optional<ExpertSpace> RamTier::adopt(LayerIndex layer, ExpertId expert, const Pays& pays) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  if ((in_event_ && layer == layer_) || is_resident(layer, expert) || !can_hold_more(layer))
    return std::nullopt;
  const uint32_t kept = parts_.plan.kept_per_layer[layer.value];
  if (residents_[layer.value] + adopting_[layer.value] >= kept) {
    const std::optional<ExpertId> leaves = least_worth(layer);
    if (!leaves) return std::nullopt;
    const bool is_lost = !is_elsewhere(layer, *leaves);
    const EvictionPolicy& policy = parts_.policy;
    if (is_lost && policy.value(layer, *leaves) >= policy.value(layer, expert)) return std::nullopt;
    if (!pays(is_lost ? leaves : std::nullopt)) return std::nullopt;
    evict(layer, SlotIndex(static_cast<uint32_t>(slot_of_[place(layer, *leaves)])));
  } else if (!pays(std::nullopt)) {
    return std::nullopt;
  }
  const auto slot = parts_.pool.take_empty(parts_.layout.slot_class(layer));
  if (!slot) return std::nullopt;
  parts_.pool.begin_read(*slot, layer, expert);
  adoptions_.push_back({layer, expert, *slot});
  ++adopting_[layer.value];
  ExpertSpace space;
  for (uint32_t m = 0; m < kExpertMatrices; ++m) {
    const auto bytes = matrix_bytes(*slot, static_cast<ExpertMatrix>(m));
    std::byte* const memory = parts_.pool[*slot].memory;
    space[m] = {memory + (bytes.data() - memory), bytes.size()};
  }
  return space;
}

bool RamTier::adopted(LayerIndex layer, ExpertId expert) {
  const CauseScope scope(parts_.timer, Cause::kHash);
  const auto adoption =
      std::find_if(adoptions_.begin(), adoptions_.end(), [&](const Adoption& candidate) {
        return candidate.layer == layer && candidate.expert == expert;
      });
  CHECK(adoption != adoptions_.end());
  const SlotIndex slot = adoption->slot;
  adoptions_.erase(adoption);
  --adopting_[layer.value];
  if (is_resident(layer, expert) || !is_as_read(slot)) {
    parts_.pool.clear(slot);
    return false;
  }
  reading_[slot.value] = {};
  parts_.pool.verified(slot);
  slot_of_[place(layer, expert)] = static_cast<int32_t>(slot.value);
  ++residents_[layer.value];
  ++counters_.adopted;
  return true;
}

// Promise 3 holds for bytes that have been elsewhere, too.
bool RamTier::is_as_read(SlotIndex slot) {
  const Slot& s = parts_.pool[slot];
  std::array<PieceHash, kExpertMatrices> hashes;
  parts_.workers.parallel_for(kExpertMatrices, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t m = begin; m < end; ++m)
      hashes[m] = hash_piece(matrix_bytes(slot, static_cast<ExpertMatrix>(m)));
  });
  for (uint32_t m = 0; m < kExpertMatrices; ++m) {
    const auto matrix = static_cast<ExpertMatrix>(m);
    if (parts_.index.agrees(parts_.layout.piece(s.layer, s.expert, matrix), hashes[m])) continue;
    parts_.notices.add("hash",
                       fmt::format("tensor '{}' expert {} came back from the device with "
                                   "other bytes; it is read again if it is called",
                                   parts_.layout.tensor_name(s.layer, matrix), s.expert.value));
    return false;
  }
  return true;
}

}  // namespace offstage
