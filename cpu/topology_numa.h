// Memory nodes: where this process's memory and threads go on machines that have several.
#pragma once

#include <cstdint>

#include "base/notices.h"
#include "base/result.h"

namespace offstage {

enum class Numa : uint8_t {
  kOff,
  kDistribute,  // pages in turns over all nodes: every thread is as far from them as any other
  kIsolate,     // memory and threads on the node that the caller runs on
  kNumactl,     // as numactl has set it for this process
};

// For the calling thread and those that it starts from now on; memory that is touched from now on.
// Says in one notice (subject "numa") what it did or why it does nothing. Errors: kPermission,
// kUnsupported: the system refuses.
Status apply_numa(Numa mode, Notices& notices);

}  // namespace offstage
