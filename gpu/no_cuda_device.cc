// The build that found no CUDA toolkit.
#include "gpu/device.h"

namespace offstage {

Result<std::vector<DeviceFacts>> list_devices(FreeMemory) {
  return make_error(ErrorCode::kUnsupported, "CUDA: this program was built without it");
}

Result<std::unique_ptr<Device>> open_device(uint32_t) {
  return make_error(ErrorCode::kUnsupported, "CUDA: this program was built without it");
}

std::string device_backend() { return "none"; }

std::optional<DeviceKernels> device_kernels() { return std::nullopt; }

}  // namespace offstage
