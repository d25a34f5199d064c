// The kernels of gpu/kernels as the table that the runtime calls: those that nvcc compiled, or the
// host's compiler (tests/gpu_shim), by what is linked.
#pragma once

#include "gpu/device.h"

namespace offstage {

inline DeviceKernels kernel_table() {
  DeviceKernels kernels;
  kernels.activation_row_bytes = gpu::activation_row_bytes;
  kernels.set_slot = gpu::set_slot;
  kernels.move_words = gpu::move_words;
  kernels.quantise_activations = gpu::quantise_activations;
  kernels.expert_gate_up = gpu::expert_gate_up;
  kernels.matvec = gpu::matvec;
  kernels.float_matvec = gpu::float_matvec;
  kernels.rms_norm = gpu::rms_norm;
  kernels.layer_norm = gpu::layer_norm;
  kernels.rope = gpu::rope;
  kernels.store_kv = gpu::store_kv;
  kernels.attention = gpu::attention;
  kernels.add_scaled = gpu::add_scaled;
  kernels.route = gpu::route;
  kernels.activate = gpu::activate;
  kernels.group_calls = gpu::group_calls;
  kernels.matmul = gpu::matmul;
  return kernels;
}

}  // namespace offstage
