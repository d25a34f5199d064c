// What the cache's own bookkeeping costs: a few thousand events of it, timed.
#pragma once

#include <cstdint>

#include "base/clock.h"

namespace offstage {

// Nanoseconds of one layer's event: policy, residents, reads started and taken back, for 128
// experts of which 8 are called and half are resident. Measured on the tier itself, under simulated
// drives, whose part is in it in place of the system calls of real ones.
int64_t measure_event_ns(const Clock& clock);

}  // namespace offstage
