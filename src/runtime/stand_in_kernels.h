// The device's kernels as the CPU computes them, for the simulated device: the same bits (promise
// 1), by the table of functions that the CPU's own experts use.
#pragma once

#include "cpu/kernels.h"
#include "gpu/device.h"

namespace offstage {

// `kernels` must outlive what is returned. Launched work runs when the simulated device calls it,
// in the calling thread.
DeviceKernels stand_in_kernels(const Kernels& kernels);

}  // namespace offstage
