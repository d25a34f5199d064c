// Where a launch goes, and what it says. No vendor type.
#pragma once

#include "gpu/call_status.h"

namespace offstage::gpu {

// A queue of work: the runtime's stream behind a pointer of no type.
struct StreamTag;
using StreamHandle = StreamTag*;

using cuda::CallStatus;

}  // namespace offstage::gpu
