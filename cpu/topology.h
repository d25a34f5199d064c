// Which processors this process may compute on: hwloc's cores within the process's affinity mask,
// and how many of them its control group's quota pays for.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/result.h"

namespace offstage {

// One thread of each physical core that is allowed, by the system's numbers, ascending.
struct Topology {
  std::vector<uint32_t> core_processors;
  uint32_t quota_cores = 0;  // of cpu.max, rounded up; 0: no quota
};

// Never fails: where hwloc can't look, one core is reported with no number.
Topology read_topology();

// Binds the calling thread to one processor.
Status bind_this_thread(uint32_t processor);

// Moves the calling thread to a processor and leaves its mask as it was, so that threads it starts
// later don't inherit a single processor. Does nothing where the system refuses.
void move_this_thread(uint32_t processor);

// Where the calling thread runs at this moment; −1 when unknown.
int this_processor();

}  // namespace offstage
