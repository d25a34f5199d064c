// The kernels that nvcc compiled.
#include "gpu/kernel_table.h"

namespace offstage {

std::optional<DeviceKernels> device_kernels() { return kernel_table(); }

}  // namespace offstage
