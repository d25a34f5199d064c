// A runtime whose experts may lie in a simulated device's memory: one that takes no time, so that
// what happens doesn't depend on the machine.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "gpu/sim_device.h"
#include "runtime/stand_in_kernels.h"
#include "tests/runtime/runtime_fixture.h"

namespace offstage {

inline SimDeviceModel instant_card() {
  SimDeviceModel model;
  model.memory_bytes = uint64_t{1} << 30;
  model.memory_bytes_per_s = model.pcie_bytes_per_s = 1'000'000'000'000'000'000;
  model.copy_latency_ns = model.launch_latency_ns = 0;
  return model;
}

struct DeviceModel {
  Notices notices;
  std::unique_ptr<Runtime> runtime;
  SimDevice* device = nullptr;  // the runtime's; gone if it could make no use of it

  std::string notice(const std::string& subject) const {
    for (const Notice& notice : notices.list())
      if (notice.subject == subject) return notice.text;
    return "";
  }
};

using MakeKernels = std::function<DeviceKernels(const Kernels&)>;

inline std::unique_ptr<DeviceModel> open_with_device(const RuntimeOptions& options,
                                                     std::vector<SimDeviceFault> faults = {},
                                                     const MakeKernels& kernels = stand_in_kernels,
                                                     SimDeviceModel card = instant_card()) {
  auto model = std::make_unique<DeviceModel>();
  Runtime::Hooks hooks;
  hooks.choose_device = [&](const Kernels& of_cpu, const SteadyClock& clock) {
    auto device = std::make_unique<SimDevice>(card, clock, faults);
    model->device = device.get();
    return ChosenDevice{std::move(device), kernels(of_cpu)};
  };
  auto runtime = Runtime::open(options, model->notices, hooks);
  if (!runtime) {
    ADD_FAILURE() << runtime.error().message;
    return nullptr;
  }
  model->runtime = std::move(*runtime);
  return model;
}

// Logits after each of `tokens`, every one a step of decode.
inline std::vector<float> decode_logits(Runtime& runtime, const std::vector<TokenId>& tokens) {
  std::vector<float> all;
  Session session(runtime, SequenceId(0));
  for (const TokenId token : tokens) {
    const Status status = session.score(
        std::span(&token, 1),
        [&](size_t, std::span<const float> logits) {
          all.insert(all.end(), logits.begin(), logits.end());
        },
        nullptr);
    EXPECT_TRUE(status) << (status ? "" : status.error().message);
  }
  return all;
}

}  // namespace offstage
