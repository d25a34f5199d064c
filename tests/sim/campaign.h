// Many seeds, and one again.
#pragma once

#include <cstdint>
#include <string>

namespace offstage::sim {

struct CampaignTotals {
  uint64_t seeds = 0, forwards = 0, failed_forwards = 0, reads = 0, faults = 0, rereads = 0,
           hits = 0, prefetches_useful = 0, deadline_misses = 0;
  uint64_t failed_seed = 0;
  std::string violation;  // the first, and the command that replays it; empty: none
};

// Stops at the first seed that fails.
CampaignTotals run_seeds(uint64_t from, uint64_t count);
std::string describe(const CampaignTotals& totals);

// For main(): exit statuses.
int campaign(uint64_t from, uint64_t count);
int replay(uint64_t seed);

uint64_t current_seed();  // async-signal-safe

}  // namespace offstage::sim
