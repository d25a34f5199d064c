#include "runtime/device_choice.h"

#include "base/units.h"
#include "gpu/sim_device.h"
#include "runtime/stand_in_kernels.h"

namespace offstage {
namespace {
// Of the device's free memory, left alone: a driver that spills, or a display's buffers, cost more
// than what lies there would gain.
constexpr uint64_t kHeadroomShare = 20;
}  // namespace

std::string_view vram_state_name(VramState state) {
  switch (state) {
    case VramState::kOff: return "off";
    case VramState::kUnavailable: return "unavailable";
    case VramState::kInUse: return "in_use";
    case VramState::kLost: return "lost";
  }
  return "unknown";
}

Result<ChosenDevice> choose_device(const RuntimeOptions& options, const Kernels& kernels,
                                   const SteadyClock& clock, Notices& notices) {
  OFFSTAGE_TRY(auto faults, parse_sim_device_faults(options.device_fault));
  ChosenDevice chosen;
  if (options.device == DeviceKind::kSim) {
    chosen.device = std::make_unique<SimDevice>(SimDeviceModel(), clock, std::move(faults));
    chosen.kernels = stand_in_kernels(kernels);
    notices.add("device",
                "a simulated device stands for a GPU: the tokens are right, speeds mean nothing, "
                "and its memory is host memory beside --ram");
    return chosen;
  }
  if (!faults.empty())
    return make_error(ErrorCode::kInvalidArgument,
                      "faults are injected into the simulated device alone (--device sim)");
  auto device = open_device(0);
  auto table = device_kernels();
  if (!device || !table) {
    notices.add("vram", fmt::format("--vram has no effect: {}; everything is computed on the CPU",
                                    device ? "CUDA: this program was built without its kernels"
                                           : device.error().message));
    return chosen;
  }
  chosen.device = std::move(*device);
  chosen.kernels = std::move(*table);
  return chosen;
}

Result<uint64_t> usable_vram(Device& device, uint64_t asked, Notices& notices) {
  OFFSTAGE_TRY(const uint64_t free, device.free_bytes());
  const uint64_t most = free - free / kHeadroomShare;
  if (asked <= most) return asked;
  notices.add("vram", fmt::format("--vram {} is more than this device can spare; {} of its free {} "
                                  "are used",
                                  format_bytes(asked), format_bytes(most), format_bytes(free)));
  return most;
}

}  // namespace offstage
