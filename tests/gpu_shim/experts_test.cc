// A whole runtime whose experts are computed by the device's own kernels, compiled for the CPU: the
// same logits as without a device.
#include <gmock/gmock.h>

#include "tests/runtime/device_fixture.h"

namespace offstage {
namespace {

DeviceKernels shim_kernels(const Kernels&) {
  DeviceKernels kernels;
  kernels.activation_row_bytes = gpu::activation_row_bytes;
  kernels.set_slot = gpu::set_slot;
  kernels.move_words = gpu::move_words;
  kernels.quantise_activations = gpu::quantise_activations;
  kernels.expert_gate_up = gpu::expert_gate_up;
  kernels.matvec = gpu::matvec;
  return kernels;
}

TEST(DeviceExpertsByTheirKernels, GiveTheCpusBits) {
  for (const char* name : {"micro-qwen3moe-q4_k_m.gguf", "gpt-oss-s2-mxfp4.gguf"}) {
    RuntimeOptions options = test_options(model_file(name));
    options.warm_start = false;
    options.n_sequences = 2;
    const auto plain = open_model(options);
    options.vram_bytes = 256ull << 20;
    options.promote = Promote::kAlways;
    const auto with_device = open_with_device(options, {}, shim_kernels);
    ASSERT_NE(plain, nullptr);
    ASSERT_NE(with_device, nullptr);
    std::vector<float> logits[2];
    for (const bool on_device : {false, true}) {
      Runtime& runtime = on_device ? *with_device->runtime : *plain->runtime;
      for (uint32_t i = 0; i < 4; ++i) {
        const Row rows[] = {{SequenceId(0), i, static_cast<TokenId>(5 + i % 3), true},
                            {SequenceId(1), i, static_cast<TokenId>(6 + i % 2), true}};
        ASSERT_TRUE(
            runtime.forward().run(rows, Phase::kDecode, [&](size_t, std::span<const float> of_row) {
              logits[on_device].insert(logits[on_device].end(), of_row.begin(), of_row.end());
            }));
      }
    }
    EXPECT_TRUE(same_bits(logits[0], logits[1])) << name;
    ASSERT_NE(with_device->runtime->device_experts(), nullptr);
    EXPECT_GT(with_device->runtime->device_experts()->hits(), 0u);
  }
}

}  // namespace
}  // namespace offstage
