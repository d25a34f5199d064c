// The build that found a CUDA toolkit: the runtime's answers as facts or as sentences.
#include <utility>

#include "gpu/cuda_query.h"
#include "gpu/device.h"

namespace offstage {
namespace {

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

tl::unexpected<Error> refused(const cuda::CallStatus& status) {
  return make_error(ErrorCode::kIo, "CUDA: {}: {} ({})", status.call, status.meaning, status.error);
}

Result<int> device_count() {
  const cuda::RuntimeFacts facts = cuda::query_runtime();
  if (!facts.status.ok()) return refused(facts.status);
  if (facts.driver_version == 0) {
    return make_error(ErrorCode::kNotFound, "CUDA: no driver is installed");
  }
  if (facts.driver_too_old) {
    return make_error(ErrorCode::kUnsupported,
                      "CUDA: the driver supports CUDA {}, this program is built with {}",
                      version_text(facts.driver_version), version_text(cuda::built_version()));
  }
  if (facts.device_count == 0) {
    return make_error(ErrorCode::kNotFound,
                      "CUDA: the driver lists no device (none there, or hidden by "
                      "CUDA_VISIBLE_DEVICES)");
  }
  return facts.device_count;
}

Result<DeviceFacts> device_facts(int index, FreeMemory free_memory) {
  const cuda::DeviceProperties properties = cuda::query_device(index);
  if (!properties.status.ok()) return refused(properties.status);
  DeviceFacts facts;
  facts.index = static_cast<uint32_t>(index);
  facts.name = properties.name;
  facts.pci_id = properties.pci_id;
  facts.compute_major = static_cast<uint32_t>(properties.compute_major);
  facts.compute_minor = static_cast<uint32_t>(properties.compute_minor);
  facts.memory_bytes = properties.memory_bytes;
  if (free_memory == FreeMemory::kAsk) {
    const cuda::MemoryFacts memory = cuda::query_memory(index);
    if (!memory.status.ok()) return refused(memory.status);
    facts.memory_free_bytes = memory.free_bytes;
  }
  return facts;
}

}  // namespace

Result<std::vector<DeviceFacts>> list_devices(FreeMemory free_memory) {
  OFFSTAGE_TRY(const int count, device_count());
  std::vector<DeviceFacts> devices;
  for (int index = 0; index < count; ++index) {
    OFFSTAGE_TRY(DeviceFacts facts, device_facts(index, free_memory));
    devices.push_back(std::move(facts));
  }
  return devices;
}

std::string device_backend() { return "CUDA " + version_text(cuda::built_version()); }

}  // namespace offstage
