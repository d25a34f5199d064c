// Keys and values of all sequences in a device's memory: the pages of the cache in RAM, at the same
// places.
//
// The cache in RAM stays whole, whoever computes: the rows that the device makes are written there
// too (device_dense.h). So what the device lacks is copied from there, page by page, before it is
// looked at: what the CPU computed, prompts or steps, and what stood where a rewound sequence goes
// on.
// Decode thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "gpu/device.h"
#include "runtime/attention.h"
#include "runtime/kv_cache.h"

namespace offstage {

class DeviceKv {
 public:
  DeviceKv(Device& device, const KvCache& in_ram, uint32_t n_sequences)
      : device_(device), in_ram_(in_ram), there_(n_sequences, 0) {}

  uint64_t bytes() const { return in_ram_.pages_bytes(); }
  // Its place on the device, `bytes()` of it, the caller's.
  void set_memory(std::byte* memory) { memory_ = memory; }
  std::span<const std::byte> memory() const { return {memory_, bytes()}; }
  // The same byte on the device.
  std::byte* place_of(const std::byte* in_ram) const {
    return memory_ + (in_ram - in_ram_.memory().data());
  }

  // The CPU computes these rows: what the device has from their positions on is old.
  void forget(std::span<const Row> rows);
  // The device computes these rows next, and no kernel is under way: copies what it lacks of all
  // positions before theirs, and waits for it. Errors: the device's.
  Status bring(std::span<const Row> rows, int64_t deadline_ns);

 private:
  Status copy_pages(SequenceId sequence, uint32_t first, uint32_t last);

  Device& device_;
  const KvCache& in_ram_;
  std::byte* memory_ = nullptr;
  std::vector<uint32_t> there_;  // by sequence: that many positions, from the first
};

}  // namespace offstage
