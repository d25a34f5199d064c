// A whole runtime whose tokens and prompts are computed by the device's own kernels, compiled for
// the CPU: the same logits as without a device.
#include <gmock/gmock.h>

#include "gpu/kernel_table.h"
#include "tests/runtime/device_fixture.h"

namespace offstage {
namespace {

DeviceKernels shim_kernels(const Kernels&) { return kernel_table(); }

// Two sequences side by side, so that experts have several rows.
std::vector<float> logits_of(Runtime& runtime) {
  std::vector<float> all;
  for (uint32_t i = 0; i < 4; ++i) {
    const Row rows[] = {{SequenceId(0), i, static_cast<TokenId>(5 + i % 3), true},
                        {SequenceId(1), i, static_cast<TokenId>(6 + i % 2), true}};
    EXPECT_TRUE(
        runtime.forward().run(rows, Phase::kDecode, [&](size_t, std::span<const float> of_row) {
          all.insert(all.end(), of_row.begin(), of_row.end());
        }));
  }
  return all;
}

// As residents, launched together, with the dense part and the logits there as well; and as copies,
// each launched by itself.
TEST(DeviceExpertsByTheirKernels, GiveTheCpusBits) {
  for (const char* name :
       {"micro-qwen3moe-q4_k_m.gguf", "gpt-oss-s2-mxfp4.gguf", "micro-deepseek2-q4_k_m.gguf"}) {
    RuntimeOptions options = test_options(model_file(name));
    options.warm_start = false;
    options.n_sequences = 2;
    const auto plain = open_model(options);
    ASSERT_NE(plain, nullptr);
    const std::vector<float> expected = logits_of(*plain->runtime);
    options.vram_bytes = 256ull << 20;
    for (const Placement placement : {Placement::kCpu, Placement::kCopy}) {
      options.placement = placement;
      options.promote = placement == Placement::kCpu ? Promote::kAlways : Promote::kOff;
      options.dense = placement == Placement::kCpu ? DensePart::kAuto : DensePart::kCpu;
      const auto with_device = open_with_device(options, {}, shim_kernels);
      ASSERT_NE(with_device, nullptr);
      EXPECT_TRUE(same_bits(logits_of(*with_device->runtime), expected)) << name;
      const DeviceExperts* device = with_device->runtime->device_experts();
      ASSERT_NE(device, nullptr);
      const DeviceDense* dense = with_device->runtime->device_dense();
      EXPECT_EQ(dense == nullptr ? 0u : dense->forwards(), placement == Placement::kCpu ? 4u : 0u);
      const DeviceLogits* logits = with_device->runtime->device_logits();
      EXPECT_EQ(logits == nullptr ? 0u : logits->rows(), placement == Placement::kCpu ? 8u : 0u);
      EXPECT_GT(placement == Placement::kCpu ? device->hits() : device->placements().copied(), 0u);
      EXPECT_EQ(device->started(), placement == Placement::kCpu ? device->hits() : 0u);
    }
  }
}

// Found in VRAM by the device behind its router, and beside those others that are copied for the
// call.
TEST(HitsByTheirKernels, GiveTheCpusBits) {
  for (const char* name : {"micro-qwen3moe-q4_k_m.gguf", "gpt-oss-s2-mxfp4.gguf"}) {
    RuntimeOptions options = test_options(model_file(name));
    options.warm_start = false;
    options.n_sequences = 2;
    const auto plain = open_model(options);
    ASSERT_NE(plain, nullptr);
    const std::vector<float> expected = logits_of(*plain->runtime);
    options.vram_bytes = 256ull << 20;
    options.promote = Promote::kAlways;
    options.placement = Placement::kCopy;
    const auto with_device = open_with_device(options, {}, shim_kernels);
    ASSERT_NE(with_device, nullptr);
    EXPECT_TRUE(same_bits(logits_of(*with_device->runtime), expected)) << name;
    const DeviceExperts* device = with_device->runtime->device_experts();
    ASSERT_NE(device, nullptr);
    EXPECT_FALSE(device->is_lost()) << with_device->notice("vram");
    EXPECT_GT(device->started(), 0u);
    EXPECT_EQ(device->started(), device->hits());
    EXPECT_GT(device->placements().copied(), 0u);
  }
}

// A prompt: where they lie, and on their way through VRAM, in chunks.
TEST(ChunksByTheirKernels, GiveTheCpusBits) {
  for (const char* name : {"micro-qwen3moe-q4_k_m.gguf", "gpt-oss-s2-mxfp4.gguf"}) {
    RuntimeOptions options = test_options(model_file(name));
    options.warm_start = false;
    options.chunk_rows = 12;
    const std::vector<TokenId> prompt = {5, 6, 7, 9,  11, 5,  12, 40, 41,
                                         6, 5, 8, 13, 14, 15, 16, 17};
    const auto plain = open_model(options);
    ASSERT_NE(plain, nullptr);
    const std::vector<float> expected = score(*plain->runtime, prompt);
    options.vram_bytes = 256ull << 20;
    options.placement = Placement::kCopy;
    options.promote = Promote::kAlways;
    options.dense = DensePart::kCpu;
    const auto with_device = open_with_device(options, {}, shim_kernels);
    ASSERT_NE(with_device, nullptr);
    Runtime& runtime = *with_device->runtime;
    EXPECT_TRUE(same_bits(score(runtime, prompt), expected)) << name;
    decode_logits(runtime, {prompt[0], prompt[1]});
    EXPECT_TRUE(same_bits(score(runtime, prompt), expected)) << name;
    ASSERT_NE(runtime.device_experts()->chunks(), nullptr);
    const ChunkCounts& counts = runtime.device_experts()->chunks()->counts();
    EXPECT_GT(counts.in_place, 0u);
    EXPECT_GT(counts.streamed, 0u);
    EXPECT_EQ(counts.cpu, 0u);
  }
}

// A prompt's dense part besides, in tiles and by the row, over the end of a page; and tokens after
// it, which find its keys and values there. Latents, and layer norms.
TEST(PromptsByTheirKernels, GiveTheCpusBits) {
  for (const char* name :
       {"micro-qwen3moe-q4_k_m.gguf", "gpt-oss-s2-mxfp4.gguf", "micro-deepseek2-q4_k_m.gguf",
        "deepseek2-v2-s2.gguf", "phimoe-s1.gguf"}) {
    RuntimeOptions options = test_options(model_file(name));
    options.warm_start = false;
    options.chunk_rows = 54;
    Rng rng(5);
    std::vector<TokenId> prompt;
    for (uint32_t i = 0; i < 68; ++i) prompt.push_back(static_cast<TokenId>(3 + rng.below(200)));
    const auto talk = [&](Runtime& runtime) {
      std::vector<float> all;
      Session session(runtime, SequenceId(0));
      const LogitsSink sink = [&](size_t, std::span<const float> of_row) {
        all.insert(all.end(), of_row.begin(), of_row.end());
      };
      EXPECT_TRUE(session.score(prompt, sink, nullptr));
      EXPECT_TRUE(session.score(std::span(prompt).first(1), sink, nullptr));
      return all;
    };
    const auto plain = open_model(options);
    ASSERT_NE(plain, nullptr);
    const std::vector<float> expected = talk(*plain->runtime);
    options.vram_bytes = 256ull << 20;
    options.placement = Placement::kCopy;
    const auto with_device = open_with_device(options, {}, shim_kernels);
    ASSERT_NE(with_device, nullptr);
    EXPECT_TRUE(same_bits(talk(*with_device->runtime), expected)) << name;
    const DeviceDense* dense = with_device->runtime->device_dense();
    ASSERT_NE(dense, nullptr);
    EXPECT_EQ(dense->chunks(), 2u);
    EXPECT_EQ(dense->forwards(), 1u);
    EXPECT_FALSE(dense->is_lost());
  }
}

}  // namespace
}  // namespace offstage
