// The questions put to the CUDA runtime, as plain data: the seam between nvcc and the host
// compiler.
//
// nvcc's front end can't read fmt, hence no header that a .cu file includes may include it; text,
// Result and containers stay on the host compiler's side (cuda_device.cc). One thread calls.
#pragma once

#include <cstdint>

#include "gpu/call_status.h"

namespace offstage::cuda {

struct RuntimeFacts {
  CallStatus status;
  int driver_version = 0;  // the newest CUDA that the driver supports; 0: no driver
  bool driver_too_old = false;
  int device_count = 0;
};

inline constexpr uint32_t kNameBytesMax = 256;
inline constexpr uint32_t kPciIdBytesMax = 32;

struct DeviceProperties {
  CallStatus status;
  char name[kNameBytesMax] = {};
  char pci_id[kPciIdBytesMax] = {};
  int compute_major = 0;
  int compute_minor = 0;
  uint64_t memory_bytes = 0;
};

struct MemoryFacts {
  CallStatus status;
  uint64_t free_bytes = 0;
};

// Versions are 1000 · major + 10 · minor.
int built_version();  // of the toolkit; asks nobody
RuntimeFacts query_runtime();
DeviceProperties query_device(int index);
MemoryFacts query_memory(int index);  // makes a context, then resets the device

}  // namespace offstage::cuda
