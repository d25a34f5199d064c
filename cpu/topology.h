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

}  // namespace offstage
