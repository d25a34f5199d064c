// The kernels that nvcc compiled, as the table that the runtime calls.
#include "gpu/device.h"

namespace offstage {

std::optional<DeviceKernels> device_kernels() {
  DeviceKernels kernels;
  kernels.activation_row_bytes = gpu::activation_row_bytes;
  kernels.set_slot = gpu::set_slot;
  kernels.move_words = gpu::move_words;
  kernels.quantise_activations = gpu::quantise_activations;
  kernels.expert_gate_up = gpu::expert_gate_up;
  kernels.matvec = gpu::matvec;
  return kernels;
}

}  // namespace offstage
