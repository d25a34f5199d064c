// One seed from start to end: requests that prefill and decode over the production cache, scheduler
// and index on simulated drives, with everything checked that can be (I1, I3 to I10).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/sim/sim_case.h"

namespace offstage::sim {

struct SimOutcome {
  std::string violation;         // empty: everything held
  std::vector<std::string> log;  // if asked for
  // What the seed was about.
  uint64_t forwards = 0, failed_forwards = 0;
  uint64_t reads = 0;   // by the drives
  uint64_t faults = 0;  // of single requests, as planned
  uint64_t rereads = 0, hits = 0, prefetches_useful = 0, deadline_misses = 0;
  uint64_t tokens_hash = 0;
};

SimOutcome simulate(const SimCase& c, bool log);

}  // namespace offstage::sim
