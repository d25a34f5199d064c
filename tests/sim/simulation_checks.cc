#include <algorithm>

#include "tests/sim/simulation_state.h"
#include "tests/sim/stand_in.h"

namespace offstage::sim {
namespace {

// After the load: longer than any read that comes at all takes.
constexpr int kSettleSteps = 120;
constexpr int64_t kSettleStepNs = 500'000'000;

}  // namespace

// What a kernel may rely on (I5), then the stand-in's result of these bytes.
void Simulation::use(const ReadyExpert& ready) {
  const Slot& slot = (*pool_)[ready.slot];
  const auto complain = [&](const char* what) {
    accuse(fmt::format("I5: layer {} expert {} in slot {}: {}", event_.layer.value,
                       ready.expert.value, ready.slot.value, what));
  };
  if (slot.state != SlotState::kInUse || slot.pins == 0) complain("handed out without a pin");
  if (slot.layer != event_.layer || slot.expert != ready.expert) complain("holds another expert");
  if (slot.reads_outstanding != 0 || witness_->is_written_to(ready.slot))
    complain("a drive may still write to it");
  // A reader is told apart from the slot's earlier ones by the generation alone.
  SlotUse& last = last_use_[ready.slot.value];
  const bool same = last.layer == slot.layer && last.expert == slot.expert;
  if (slot.generation < last.generation || (!same && slot.generation == last.generation))
    complain("has the generation of what it held before");
  last = {slot.generation, slot.layer, slot.expert};
  if (used_[ready.expert.value]++ != 0) complain("handed out twice");
  const std::byte* const data[] = {ready.gate, ready.up, ready.down};
  std::span<const std::byte> bytes[kExpertMatrices];
  for (uint32_t m = 0; m < kExpertMatrices; ++m) {
    const auto matrix = static_cast<ExpertMatrix>(m);
    bytes[m] = {data[m], layout_.extent(event_.layer, ready.expert, matrix).bytes};
    witness_->answers(event_.layer, ready.expert, matrix) = {};
  }
  outputs_[ready.expert.value] = output_of(bytes[0], bytes[1], bytes[2]);
  if (outputs_[ready.expert.value] != truth_[place(event_.layer, ready.expert)])
    complain("its bytes aren't the file's");
}

// I8: an event that went well used every expert that was called.
void Simulation::check_completeness() {
  for (const ExpertCall& called : event_.calls)
    if (used_[called.expert.value] == 0)
      accuse(fmt::format("I8: layer {} expert {} was called and left out", event_.layer.value,
                         called.expert.value));
}

// Every read that comes back at all has come back; guesses are given up by their layers' events.
void Simulation::settle() {
  // Asked anew: what is read again in here may be what never comes back.
  const auto stuck = [&] {
    return faults_->fault_counters().injected[static_cast<size_t>(FaultKind::kNever)];
  };
  for (uint32_t i = 0; i < kSettleSteps; ++i) {
    const bool visited_all = i >= 2 * c_.n_layers();
    if (visited_all && witness_->outstanding() <= stuck() && reads_->unfinished() == 0) return;
    clock_.advance_ns(kSettleStepNs);
    event_ = {LayerIndex(i % c_.n_layers()), {}, {}};
    tier_->begin(event_.layer, {}, Phase::kDecode);
    if (!take_experts()) accuse("I7: an event without calls failed");
    tier_->end();
    if (is_over()) return;
  }
  accuse(fmt::format("I4: {} reads are still out, {} of them never come back",
                     witness_->outstanding(), stuck()));
}

// I4: every slot is empty or resident, but for those that a drive never gave back.
void Simulation::check_baseline() {
  uint32_t empty = 0, resident = 0, held = 0;
  for (uint32_t k = 0; k < layout_.n_classes(); ++k) empty += pool_->empty_count(k);
  for (uint32_t l = 0; l < c_.n_layers(); ++l) resident += tier_->resident_count(LayerIndex(l));
  for (uint32_t i = 0; i < pool_->size(); ++i) {
    const Slot& slot = (*pool_)[SlotIndex(i)];
    if (slot.pins != 0) accuse(fmt::format("I4: slot {} is still pinned", i));
    if ((slot.reads_outstanding != 0) != witness_->is_written_to(SlotIndex(i)))
      accuse(fmt::format("I4: slot {} counts {} reads, the drives {}", i, slot.reads_outstanding,
                         witness_->is_written_to(SlotIndex(i)) ? "some" : "none"));
    held += slot.reads_outstanding != 0 ? 1 : 0;
  }
  if (empty + resident + held != pool_->size())
    accuse(fmt::format("I4: {} empty + {} resident + {} held by drives of {} slots", empty,
                       resident, held, pool_->size()));
}

// I9: what was done about faults is in the notices and the counters.
void Simulation::check_visibility() {
  const auto has_notice = [&](std::string_view subject) {
    const auto list = notices_.list();
    return std::any_of(list.begin(), list.end(),
                       [&](const Notice& notice) { return notice.subject == subject; });
  };
  const TierCounters& counters = tier_->counters();
  if (counters.rereads != 0 && !has_notice("hash")) accuse("I9: a silent second read");
  if (counters.prefetches_failed != 0 && !has_notice("prefetch"))
    accuse("I9: a guess failed silently");
  const bool nothing_given_up = outcome_.failed_forwards == 0 && counters.prefetches == 0;
  if (nothing_given_up && reads_->counters().errors != witness_->n_errors())
    accuse(fmt::format("I9: {} errors counted, the drives gave {}", reads_->counters().errors,
                       witness_->n_errors()));
  if (counters.prefetches_useful > counters.prefetches ||
      counters.prefetches_late > counters.prefetches_useful)
    accuse("I9: counters of guesses contradict each other");
}

}  // namespace offstage::sim
