// What the cache's own bookkeeping costs: a few thousand events of it, timed.
#pragma once

#include <cstdint>

#include "base/clock.h"

namespace offstage {

struct TierTrial {
  int64_t event_ns = 0;  // a layer's event with all that it calls resident: policy, residents
  int64_t miss_ns = 0;   // beyond it for every expert read: its reads started and taken back
};

// For 128 experts of which 8 are called. Measured on the tier itself, under simulated drives, whose
// part is in it in place of the system calls of real ones.
TierTrial try_tier(const Clock& clock);

}  // namespace offstage
