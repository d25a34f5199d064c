// Which device `--vram` means, and why there is none: in notices, since a run works without.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/notices.h"
#include "base/result.h"
#include "cpu/kernels.h"
#include "gpu/device.h"
#include "runtime/options.h"

namespace offstage {

struct ChosenDevice {
  std::unique_ptr<Device> device;  // null: the CPU computes everything
  DeviceKernels kernels;
};

// What became of `--vram`. Published in JSON.
enum class VramState : uint8_t {
  kOff,          // nobody asked for it
  kUnavailable,  // asked for, and there is no such device, or it has no room or no kernels
  kInUse,
  kLost,  // the device failed; the CPU computes everything since
};
std::string_view vram_state_name(VramState state);

// Opens the device, which may take host memory: before that is planned. A kAuto that finds none is
// a notice. Errors: kInvalidArgument for device_fault.
Result<ChosenDevice> choose_device(const RuntimeOptions& options, const Kernels& kernels,
                                   const SteadyClock& clock, Notices& notices);

// Of `asked`, what may be allocated: all, or what leaves the device some of its free memory, which
// is a notice. Errors: the device's.
Result<uint64_t> usable_vram(Device& device, uint64_t asked, Notices& notices);

}  // namespace offstage
