// What the cache's own bookkeeping costs: a few thousand events of it, timed.
#pragma once

#include <cstdint>

#include "base/clock.h"

namespace offstage {

inline constexpr uint32_t kTriedExperts = 128;

struct TierTrial {
  int64_t event_ns = 0;   // a layer's event where all experts stay
  int64_t policy_ns = 0;  // beyond it where some must go: what the policy learns from the event
  int64_t miss_ns = 0;    // for every expert read: its reads started and taken back
};

// For kTriedExperts experts of which 8 are called, with a past as long as a policy keeps. Measured
// on the tier itself, under simulated drives, whose part is in it in place of the system calls of
// real ones.
TierTrial try_tier(const Clock& clock);

}  // namespace offstage
