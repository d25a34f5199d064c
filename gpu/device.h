// What the machine's GPUs are, behind one header: nobody else sees the vendor's.
//
// In: nothing. Out: facts of each device, or the reason why there is none. Two sources implement
// this header and the build picks one: cuda_device.cc (a CUDA toolkit was found) and
// no_cuda_device.cc (none was). A simulated device will be the third.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace offstage {

struct DeviceFacts {
  uint32_t index = 0;  // the runtime's number, after CUDA_VISIBLE_DEVICES
  std::string name;
  std::string pci_id;  // "0000:19:00.0": the same whatever the order of the numbers
  uint32_t compute_major = 0;
  uint32_t compute_minor = 0;
  uint64_t memory_bytes = 0;
  std::optional<uint64_t> memory_free_bytes;  // at the time of asking; see FreeMemory
};

// The driver tells free memory only to a context. One costs a few tenths of a second, device memory
// and host memory, so a command that doesn't use the device shouldn't ask. kAsk resets every
// device when it is done: for a process that hasn't touched one yet.
enum class FreeMemory { kSkip, kAsk };

// Every device, by index; never an empty list. Errors, each a sentence fit for a notice:
// kUnsupported (built without CUDA; a driver older than the toolkit), kNotFound (no driver, no
// device), kIo (the driver refused, with its words). From one thread, as it resets devices.
Result<std::vector<DeviceFacts>> list_devices(FreeMemory free_memory);

// What this program was built with: "CUDA 13.0" or "none".
std::string device_backend();

}  // namespace offstage
