// The device without a card: host memory stands for the card's, and time passes on a virtual clock.
//
// In: a card made of a few numbers, faults by plan, a clock: a virtual one is moved (wait()
// advances it instead of sleeping), on the machine's it sleeps like a card's caller. Out: copies
// and kernels that happen when such a card would be done with them, in the order of their times;
// their bytes arrive then and no earlier. Kernels are called with a null stream, by the caller's
// thread: tests link tests/gpu_shim or give a function of their own, the runtime gives the CPU's
// kernels. It also checks what a card doesn't: work on one stream that touches memory which
// unfinished work on another one uses, without an order between them, ends the program (CHECK).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "gpu/device.h"

namespace offstage {

// The defaults are a consumer card's: 16 GiB behind PCIe 4.0 × 16.
struct SimDeviceModel {
  uint64_t memory_bytes = uint64_t{16} << 30;
  uint64_t memory_bytes_per_s = 700'000'000'000;  // that kernels read with
  uint64_t pcie_bytes_per_s = 24'000'000'000;     // in each direction, from pinned memory
  uint32_t pageable_slower = 3;                   // that much from pageable memory
  int64_t copy_latency_ns = 8'000;
  int64_t launch_latency_ns = 4'000;
};

enum class SimDeviceFaultKind : uint8_t {
  kOutOfMemory,   // allocate
  kPinRefused,    // allocate_pinned, pin
  kCopyError,     // a copy: the device is lost from the time it would have been done
  kLaunchError,   // a kernel: likewise
  kNeverReached,  // a mark, and everything behind it on its stream
};

// Befalls the `nth` call of its kind, counted from 1, and `times` − 1 after it.
struct SimDeviceFault {
  SimDeviceFaultKind kind = SimDeviceFaultKind::kOutOfMemory;
  uint64_t nth = 1;
  uint64_t times = 1;
};

// "copy=3; mark=2x100; alloc=1": the kinds alloc, pin, copy, launch and mark; =NTH, and xTIMES for
// more than one. kInvalidArgument names the part.
Result<std::vector<SimDeviceFault>> parse_sim_device_faults(std::string_view text);

struct SimDeviceCounters {
  uint64_t copies[kDeviceStreams] = {};
  uint64_t bytes[kDeviceStreams] = {};
  uint64_t launches = 0;
  uint64_t marks = 0;
  uint64_t allocated_bytes = 0, allocated_bytes_max = 0;
  uint64_t faults = 0;  // that struck
};

class SimDevice final : public Device {
 public:
  SimDevice(const SimDeviceModel& model, ManualClock& clock,
            std::vector<SimDeviceFault> faults = {});
  SimDevice(const SimDeviceModel& model, const SteadyClock& clock,
            std::vector<SimDeviceFault> faults = {});
  ~SimDevice() override;

  const DeviceFacts& facts() const override;
  Result<std::byte*> allocate(uint64_t bytes) override;
  void release(std::byte* memory) override;
  Result<uint64_t> free_bytes() override;
  Result<std::byte*> allocate_pinned(uint64_t bytes) override;
  void release_pinned(std::byte* memory) override;
  Status pin(std::span<std::byte> memory) override;
  void unpin(std::byte* memory) override;
  Status copy(DeviceStream stream, std::byte* to, const std::byte* from, uint64_t bytes) override;
  Status launch(DeviceWork work) override;
  Result<DeviceMark> mark(DeviceStream stream) override;
  Status order(DeviceStream stream, DeviceMark mark) override;
  Result<bool> reached(DeviceMark mark) override;
  Status wait(DeviceMark mark, int64_t timeout_ns) override;

  const SimDeviceCounters& counters() const;

 private:
  struct State;
  SimDevice(const SimDeviceModel& model, const Clock& clock, std::function<void(int64_t)> pass,
            std::vector<SimDeviceFault> faults);
  std::unique_ptr<State> state_;
};

}  // namespace offstage
