// Logits of decoded tokens on the simulated device: the CPU's bits, with the other parts there or
// not, and whatever fails.
#include "runtime/device_logits.h"

#include <gmock/gmock.h>

#include "tests/runtime/device_fixture.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kAmple = 256ull << 20;

const std::vector<TokenId> kTokens = {5, 9, 23, 7, 40};

RuntimeOptions options_of(const std::string& name) {
  RuntimeOptions options = test_options(model_file(name));
  options.warm_start = false;
  options.vram_bytes = kAmple;
  return options;
}

std::vector<float> reference(RuntimeOptions options) {
  options.vram_bytes.reset();
  const auto model = open_model(options);
  return model == nullptr ? std::vector<float>() : decode_logits(*model->runtime, kTokens);
}

// Quantised and not, scaled, behind a layer norm and with a bias.
TEST(DeviceLogitsTest, GiveTheCpusBits) {
  for (const char* name :
       {"micro-qwen3moe-q4_k_m.gguf", "micro-qwen2moe-mxfp4.gguf", "granitemoe-s1.gguf",
        "qwen3moe-s2.gguf", "phimoe-s1.gguf", "micro-deepseek2-q4_k_m.gguf"}) {
    const RuntimeOptions options = options_of(name);
    const auto model = open_with_device(options);
    ASSERT_NE(model, nullptr);
    EXPECT_TRUE(same_bits(decode_logits(*model->runtime, kTokens), reference(options))) << name;
    const DeviceLogits* logits = model->runtime->device_logits();
    ASSERT_NE(logits, nullptr) << name << model->notice("vram_logits");
    EXPECT_EQ(logits->rows(), kTokens.size());
    EXPECT_LE(model->device->counters().allocated_bytes_max, kAmple);
    // A prompt's are the CPU's.
    score(*model->runtime, kTokens);
    EXPECT_EQ(logits->rows(), kTokens.size());
  }
}

// Of a token's last launches each, and its last event.
TEST(DeviceLogitsTest, WhateverTheDeviceDoes) {
  for (const char* name : {"micro-qwen3moe-q4_k_m.gguf", "glm4moe-s2.gguf"}) {
    RuntimeOptions options = options_of(name);
    options.device_deadline_ns = 100'000;  // the instant device's events come at once or never
    const std::vector<float> expected = reference(options);
    const auto healthy = open_with_device(options);
    ASSERT_NE(healthy, nullptr);
    decode_logits(*healthy->runtime, {kTokens[0]});
    ASSERT_NE(healthy->runtime->device_logits(), nullptr);
    const SimDeviceCounters counters = healthy->device->counters();
    std::vector<SimDeviceFault> faults = {{SimDeviceFaultKind::kNeverReached, counters.marks, 1}};
    for (uint64_t before = 0; before < 4; ++before)
      faults.push_back({SimDeviceFaultKind::kLaunchError, counters.launches - before, 1});
    for (const SimDeviceFault& fault : faults) {
      const auto model = open_with_device(options, {fault});
      ASSERT_NE(model, nullptr);
      const std::string what =
          fmt::format("{}: fault {} at {}", name, static_cast<int>(fault.kind), fault.nth);
      EXPECT_TRUE(same_bits(decode_logits(*model->runtime, kTokens), expected)) << what;
      EXPECT_EQ(model->device->counters().faults, 1u) << what;
      EXPECT_EQ(model->runtime->vram_state(), VramState::kLost) << what;
      EXPECT_EQ(model->runtime->device_logits()->rows(), 0u) << what;
      size_t said = 0;
      for (const Notice& notice : model->notices.list())
        said += notice.text.find("the CPU computes all") != std::string::npos;
      EXPECT_EQ(said, 1u) << what;
    }
  }
}

TEST(DeviceLogitsTest, WithoutRoomOrKernelTheyStayWithTheCpu) {
  RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  const std::vector<float> expected = reference(options);
  const auto ample = open_with_device(options);
  ASSERT_NE(ample, nullptr);
  const uint64_t bytes = ample->runtime->device_logits()->memory_bytes();
  const DeviceDense& dense = *ample->runtime->device_dense();
  const uint64_t for_tokens = dense.memory_bytes() - dense.chunk_bytes();
  for (const bool fits : {true, false}) {
    options.vram_bytes = for_tokens + 4 * bytes - (fits ? 0 : 1);
    const auto model = open_with_device(options);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->runtime->device_dense()->chunk_rows(), 0u);  // they would take more than that
    EXPECT_EQ(model->runtime->device_logits() != nullptr, fits);
    EXPECT_EQ(model->notice("vram_logits") == "", fits);
    EXPECT_LE(model->device->counters().allocated_bytes_max, *options.vram_bytes);
    EXPECT_TRUE(same_bits(decode_logits(*model->runtime, kTokens), expected));
  }
  DenseWeights weights = ample->runtime->weights();
  weights.output.type = TensorType::kIQ4_XS;
  const auto no_kernel = DeviceLogits::memory_bytes(ample->runtime->spec(), weights,
                                                    stand_in_kernels(ample->runtime->kernels()), 1);
  ASSERT_FALSE(no_kernel);
  EXPECT_EQ(no_kernel.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(no_kernel.error().message, HasSubstr("IQ4_XS"));
  options = options_of("micro-qwen3moe-q4_k_m.gguf");
  options.dense = DensePart::kCpu;
  const auto cpu = open_with_device(options);
  ASSERT_NE(cpu, nullptr);
  EXPECT_EQ(cpu->runtime->device_logits(), nullptr);
  EXPECT_EQ(cpu->notice("vram_logits"), "");
}

// The last pinned memory and the last of the device's that is asked for.
TEST(DeviceLogitsTest, RefusedMemoryMeansTheCpu) {
  const RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  const std::vector<float> expected = reference(options);
  for (const SimDeviceFault& fault : {SimDeviceFault{SimDeviceFaultKind::kOutOfMemory, 9, 1},
                                      SimDeviceFault{SimDeviceFaultKind::kPinRefused, 7, 1}}) {
    const auto model = open_with_device(options, {fault});
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->device->counters().faults, 1u);
    EXPECT_EQ(model->runtime->device_logits(), nullptr);
    EXPECT_THAT(model->notice("vram_logits"), HasSubstr("logits stay with the CPU"));
    EXPECT_NE(model->runtime->device_dense(), nullptr);
    EXPECT_NE(model->runtime->device_experts(), nullptr);
    EXPECT_TRUE(same_bits(decode_logits(*model->runtime, kTokens), expected));
  }
}

}  // namespace
}  // namespace offstage
