// Guesses: experts read before they are called, and what becomes of them when the calls are known.
#include <algorithm>

#include "base/check.h"
#include "cache/ram_tier.h"
#include "cache/read_cookie.h"

namespace offstage {

void RamTier::prefetch(LayerIndex layer, std::span<const ExpertId> experts, uint32_t ahead) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  CHECK(ahead >= 1 && ahead <= kGuessDistances);
  CHECK(!in_event_ || layer != layer_);
  if (!missing_.empty()) return;  // slots are short: the called ones need them
  burst_.clear();
  for (const ExpertId expert : experts) {
    if (is_at_hand(layer, expert)) continue;
    // Half of the reads stay free for what the next event calls and nobody guessed.
    const size_t with_the_drive = matrices_in_flight_ + parts_.reads.quarantined();
    if (with_the_drive + kExpertMatrices > parts_.reads_max / 2) break;
    const auto slot = parts_.pool.take_empty(parts_.layout.slot_class(layer));
    if (!slot) break;
    queue_reads(
        *slot, layer, expert,
        {.guessed = true, .lane = ReadLane::kPrefetch, .ahead = static_cast<uint8_t>(ahead)});
    ++counters_.prefetches;
  }
  if (!burst_.empty()) parts_.reads.start(burst_);
}

void RamTier::read_ahead(LayerIndex layer, std::span<const ExpertId> experts) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  CHECK(!in_event_ || layer != layer_);
  ahead_layer_ = layer;
  ahead_.assign(experts.begin(), experts.end());
  start_reads();
}

// In the demand lane: they are as good as called, and stand behind what was called before.
void RamTier::take_slots_ahead() {
  while (!ahead_.empty()) {
    const ExpertId expert = ahead_.front();
    if (!is_resident(ahead_layer_, expert)) {
      if (!has_reads_for_an_expert()) return;
      const auto slot = parts_.pool.take_empty(parts_.layout.slot_class(ahead_layer_));
      if (!slot) return;
      queue_reads(*slot, ahead_layer_, expert, {.guessed = true});
      ++counters_.prefetches;
    }
    ahead_.pop_front();
  }
}

bool RamTier::is_of_event(SlotIndex slot) const {
  const Slot& s = parts_.pool[slot];
  return in_event_ && s.layer == layer_ && needed_[s.expert.value] != 0;
}

// The guess was right. What is still being read is demand from now on.
void RamTier::take_over_guess(SlotIndex slot) {
  const Slot& s = parts_.pool[slot];
  reading_[slot.value].guessed = false;
  reading_[slot.value].lane = ReadLane::kDemand;
  learn_truth(slot, Reading::Truth::kRight);
  ++counters_.prefetches_useful;
  counters_.prefetch_useful_bytes += parts_.layout.expert_bytes(s.layer);
  if (s.state == SlotState::kVerified) {
    ready_.push_back(ready_expert(slot));
    return;
  }
  ++counters_.prefetches_late;
  ++experts_reading_;
  for (uint32_t m = 0; m < kExpertMatrices; ++m)
    parts_.reads.promote(make_cookie(slot, s.generation, static_cast<ExpertMatrix>(m)));
}

// What was guessed for this layer and isn't called. Reads stop; an expert that has arrived is a
// resident like others, for the policy to judge.
void RamTier::give_up_wrong_guesses() {
  for (uint32_t e = 0; e < parts_.layout.n_experts(); ++e) {
    const int32_t index = slot_of_[place(layer_, ExpertId(e))];
    if (index == kAbsent || !reading_[static_cast<uint32_t>(index)].guessed) continue;
    const SlotIndex slot(static_cast<uint32_t>(index));
    learn_truth(slot, Reading::Truth::kWrong);
    if (parts_.pool[slot].state == SlotState::kReading) {
      give_up(slot);
    } else {
      reading_[slot.value].guessed = false;
      counters_.prefetch_wasted_bytes += parts_.layout.expert_bytes(layer_);
    }
  }
}

// The guess's layer has called, this expert or others. What the drive has done by now is saved time
// or, at no cost, in vain.
void RamTier::learn_truth(SlotIndex slot, Reading::Truth truth) {
  Reading& reading = reading_[slot.value];
  if (reading.ahead == 0) return;  // read_ahead() is no gamble
  reading.truth = truth;
  reading.known_ns = begun_ns_;
  reading.idle_since_ns = demand_done_ns_;
  GuessPayback& payback = paybacks_[reading.ahead - 1];
  if (truth == Reading::Truth::kWrong) {
    payback.wrong += reading.n_served;
    return;
  }
  payback.right += reading.n_served;
  payback.saved_ns += reading.served_ns;
}

// A matrix came back, whole or, of a guess, cancelled.
void RamTier::account(Reading& reading, const ReadDone& done) {
  if (reading.lane == ReadLane::kDemand && reading.ahead == 0)
    demand_done_ns_ = std::max(demand_done_ns_, done.completed_ns);
  if (reading.ahead == 0) return;
  GuessPayback& payback = paybacks_[reading.ahead - 1];
  const bool was_issued = done.issued_ns != 0;
  const auto worked = [&](int64_t from_ns, int64_t to_ns) {
    return was_issued ? std::max<int64_t>(0, to_ns - std::max(from_ns, done.issued_ns)) : 0;
  };
  switch (reading.truth) {
    case Reading::Truth::kUnknown:
      ++reading.n_served;
      reading.served_ns += worked(demand_done_ns_, done.completed_ns);
      return;
    case Reading::Truth::kRight:
      ++payback.right;
      payback.saved_ns +=
          worked(reading.idle_since_ns, std::min(reading.known_ns, done.completed_ns));
      demand_done_ns_ = std::max(demand_done_ns_, done.completed_ns);
      return;
    case Reading::Truth::kWrong:
      ++payback.wrong;
      payback.lost_ns += worked(reading.known_ns, done.completed_ns);
      return;
  }
}

// A slot that nobody waits for any more empties when the drive lets go of it.
void RamTier::give_up(SlotIndex slot) {
  const Slot& s = parts_.pool[slot];
  CHECK(s.state == SlotState::kReading);
  slot_of_[place(s.layer, s.expert)] = kAbsent;
  --residents_[s.layer.value];
  const Reading& reading = reading_[slot.value];
  for (uint32_t m = 0; m < kExpertMatrices && reading.guessed; ++m) {
    const auto matrix = static_cast<ExpertMatrix>(m);
    if ((reading.verified_mask >> m & 1) != 0)
      counters_.prefetch_wasted_bytes += parts_.layout.extent(s.layer, s.expert, matrix).bytes;
  }
  if (s.reads_outstanding == 0) return parts_.pool.clear(slot);
  for (uint32_t m = 0; m < kExpertMatrices; ++m)
    parts_.reads.cancel(make_cookie(slot, s.generation, static_cast<ExpertMatrix>(m)));
}

// Called experts come before guesses. A forward that ended early leaves guesses for layers that it
// never reached; at the floor they hold every slot.
bool RamTier::evict_guess(uint32_t slot_class) {
  for (uint32_t i = 0; i < parts_.pool.size(); ++i) {
    const Slot& s = parts_.pool[SlotIndex(i)];
    if (s.slot_class != slot_class || s.state != SlotState::kVerified || !reading_[i].guessed)
      continue;
    reading_[i].guessed = false;
    counters_.prefetch_wasted_bytes += parts_.layout.expert_bytes(s.layer);
    evict(s.layer, SlotIndex(i));
    return true;
  }
  return false;
}

// Whoever calls that expert reads it again, and gets the error if it stays.
void RamTier::drop_guess(SlotIndex slot, const Error& error) {
  if (!reading_[slot.value].guessed) {
    preload_status_ = tl::unexpected(error);
    return give_up(slot);
  }
  if (counters_.prefetches_failed++ == 0)
    parts_.notices.add("prefetch", error.message + "; it is read again if it is called");
  give_up(slot);
}

}  // namespace offstage
