// How many reads the RAM tier may have under way, and what is read before the first token: decided
// here, so that a run and a forecast of it (src/plan) decide alike.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/expert_layout.h"
#include "cache/ram_tier.h"
#include "cache/slot_plan.h"
#include "cache/usage.h"

namespace offstage {

// Matrices in flight: what a drive reads during one layer's attention over a prompt's chunk, and
// never so much that one of 10 MB/s would miss the deadline of its last read.
uint32_t tier_reads_max(const ExpertLayout& layout);

// Of a drive's depth, for guesses: a demand read finds at most so many of their blocks before it.
uint32_t prefetch_depth(uint32_t depth);

// All experts of a layer that keeps all; of another, those that earlier runs called most.
std::vector<ExpertPlace> experts_to_preload(const ExpertLayout& layout, const SlotPlan& plan,
                                            const ExpertUsage& usage);

}  // namespace offstage
