#include <cuda_runtime.h>

#include <cstring>

#include "gpu/cuda_query.h"

namespace offstage::cuda {
namespace {

CallStatus status_of(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return {};
  return {call, cudaGetErrorName(error), cudaGetErrorString(error)};
}

}  // namespace

int built_version() { return CUDART_VERSION; }

RuntimeFacts query_runtime() {
  RuntimeFacts facts;
  facts.status = status_of("cudaDriverGetVersion", cudaDriverGetVersion(&facts.driver_version));
  if (!facts.status.ok() || facts.driver_version == 0) return facts;
  const cudaError_t error = cudaGetDeviceCount(&facts.device_count);
  // These two are answers, not failures.
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    facts.device_count = 0;
    facts.driver_too_old = error == cudaErrorInsufficientDriver;
    return facts;
  }
  facts.status = status_of("cudaGetDeviceCount", error);
  return facts;
}

DeviceProperties query_device(int index) {
  DeviceProperties device;
  cudaDeviceProp properties;
  device.status = status_of("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, index));
  if (!device.status.ok()) return device;
  device.status = status_of("cudaDeviceGetPCIBusId",
                            cudaDeviceGetPCIBusId(device.pci_id, sizeof(device.pci_id), index));
  if (!device.status.ok()) return device;
  static_assert(sizeof(device.name) == sizeof(properties.name));
  std::memcpy(device.name, properties.name, sizeof(device.name));
  device.compute_major = properties.major;
  device.compute_minor = properties.minor;
  device.memory_bytes = properties.totalGlobalMem;
  return device;
}

MemoryFacts query_memory(int index) {
  MemoryFacts memory;
  memory.status = status_of("cudaSetDevice", cudaSetDevice(index));
  if (!memory.status.ok()) return memory;
  size_t free_bytes = 0, total_bytes = 0;
  memory.status = status_of("cudaMemGetInfo", cudaMemGetInfo(&free_bytes, &total_bytes));
  memory.free_bytes = free_bytes;
  // Gives the context's memory back. Its failure costs nothing that the next call won't report.
  static_cast<void>(cudaDeviceReset());
  return memory;
}

}  // namespace offstage::cuda
