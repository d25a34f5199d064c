// Prompts whose dense part the simulated device computes: the CPU's bits and the CPU's KV, however
// a chunk is cut, whoever is in it, and whatever fails.
#include <gmock/gmock.h>

#include <algorithm>
#include <cctype>

#include "tests/runtime/dense_fixture.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

struct Launches {
  uint64_t matmuls = 0, attentions = 0, parts_max = 0;  // parts: rows times blocks
};

MakeKernels counting(Launches& seen) {
  return [&seen](const Kernels& of_cpu) {
    DeviceKernels table = stand_in_kernels(of_cpu);
    table.matmul = [&seen, matmul = table.matmul](gpu::StreamHandle stream,
                                                  const gpu::MatvecArgs& args) {
      seen.matmuls += args.slots == nullptr;  // experts have slots
      return matmul(stream, args);
    };
    table.attention = [&seen, attention = table.attention](gpu::StreamHandle stream,
                                                           const gpu::AttentionArgs& args) {
      ++seen.attentions;
      seen.parts_max =
          std::max<uint64_t>(seen.parts_max, uint64_t{args.n_rows} * args.n_blocks_max);
      for (uint32_t row = 0; row < args.n_rows; ++row)
        EXPECT_LE(
            args.rows[row].last / kKvBlockPositions - args.rows[row].first / kKvBlockPositions + 1,
            args.n_blocks_max);
      return attention(stream, args);
    };
    return table;
  };
}

class LongPrompts : public ::testing::TestWithParam<const char*> {};

// Chunks that end within a page, in slices, whose attention takes several launches where rows see
// all of the context.
TEST_P(LongPrompts, InSlices) {
  RuntimeOptions options = options_of(GetParam());
  options.chunk_rows = 60;
  const Said expected = expected_of(options, 220);
  const auto ample = open_with_device(options);
  ASSERT_NE(ample, nullptr);
  ASSERT_NE(ample->runtime->device_dense(), nullptr) << ample->notice("vram_dense");
  EXPECT_EQ(ample->runtime->device_dense()->slice_rows(), 60u);
  EXPECT_TRUE(prompts_and_tokens(*ample->runtime, 220) == expected);
  const uint64_t chunk_bytes = ample->runtime->device_dense()->chunk_bytes();
  const uint64_t for_tokens = ample->runtime->device_dense()->memory_bytes() - chunk_bytes;

  options.vram_bytes = for_tokens + 8 * chunk_bytes - 1;
  Launches seen;
  const auto model = open_with_device(options, {}, counting(seen));
  ASSERT_NE(model, nullptr);
  const DeviceDense* dense = model->runtime->device_dense();
  ASSERT_NE(dense, nullptr);
  EXPECT_EQ(dense->slice_rows(), 32u);
  EXPECT_EQ(dense->chunk_rows(), 60u);
  EXPECT_LE(model->device->counters().allocated_bytes_max, *options.vram_bytes);
  EXPECT_TRUE(prompts_and_tokens(*model->runtime, 220) == expected);
  EXPECT_EQ(dense->forwards(), 4u);
  EXPECT_EQ(dense->chunks(), 4u + 1u);
  EXPECT_FALSE(dense->is_lost());
  const ModelSpec& spec = model->runtime->spec();
  EXPECT_LE(seen.parts_max, 16u * 4u);  // of 256 positions, as much as 16 rows have room for
  if (spec.attention.window == 0) {
    // Where rows see 1, 2, 3 and 4 blocks there is room for 64, 32, 21 and 16 of a slice's: 60 in
    // each chunk but the last, 40; then tokens, and a prompt of 17.
    EXPECT_EQ(seen.attentions, spec.n_layers * (2u + 2u + 4u + 3u + 4u + 2u));
  }
  const TensorType type = model->runtime->weights().layers[0].o.type;
  EXPECT_EQ(seen.matmuls > 0, is_quantised(type));
}

INSTANTIATE_TEST_SUITE_P(Models, LongPrompts,
                         ::testing::Values("micro-qwen3moe-q4_k_m.gguf",
                                           "micro-qwen2moe-mxfp4.gguf", "gpt-oss-s2-mxfp4.gguf",
                                           "gpt-oss-s1.gguf", "glm4moe-s2.gguf", "phimoe-s2.gguf",
                                           "micro-deepseek2-q4_k_m.gguf", "deepseek2-v2-s2.gguf"),
                         model_test_name);

TEST(DensePromptTest, ChunksOfMoreThanTheWidestSlice) {
  RuntimeOptions options = options_of("micro-qwen2moe-mxfp4.gguf");
  options.context = 512;
  options.chunk_rows = 300;
  const Said expected = expected_of(options, 290);
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  ASSERT_NE(model->runtime->device_dense(), nullptr);
  EXPECT_EQ(model->runtime->device_dense()->slice_rows(), 256u);
  EXPECT_TRUE(prompts_and_tokens(*model->runtime, 290) == expected);
  EXPECT_EQ(model->runtime->device_dense()->chunks(), 2u);
}

// Rows of two sequences in turns, over the end of a page, and then both by themselves.
std::vector<float> two_at_once(Runtime& runtime) {
  std::vector<float> all;
  const std::vector<TokenId> tokens = tokens_of(160);
  std::vector<Row> rows;
  for (uint32_t i = 0; i < 70; ++i) {
    rows.push_back({SequenceId(0), i, tokens[i], true});
    if (i % 3 != 0) rows.push_back({SequenceId(1), i - i / 3 - 1, tokens[159 - i], true});
  }
  const auto run = [&](std::span<const Row> part, Phase phase) {
    EXPECT_TRUE(runtime.forward().run(
        part, phase, [&](size_t, std::span<const float> logits) { append(all, logits); }));
  };
  run(std::span(rows).first(100), Phase::kPrefill);
  run(std::span(rows).subspan(100), Phase::kPrefill);
  const Row step[] = {{SequenceId(0), 70, tokens[1], true}, {SequenceId(1), 46, tokens[2], true}};
  run(step, Phase::kDecode);
  runtime.kv().release(SequenceId(0));
  runtime.kv().release(SequenceId(1));
  return all;
}

TEST(DensePromptTest, SequencesSideBySide) {
  for (const char* name :
       {"micro-qwen3moe-q4_k_m.gguf", "gpt-oss-s1.gguf", "deepseek2-v3-s1.gguf"}) {
    RuntimeOptions options = options_of(name);
    options.chunk_rows = 100;
    const auto model = open_with_device(options);
    ASSERT_NE(model, nullptr);
    EXPECT_TRUE(same_bits(two_at_once(*model->runtime), reference(options, two_at_once))) << name;
    ASSERT_NE(model->runtime->device_dense(), nullptr);
    EXPECT_EQ(model->runtime->device_dense()->chunks(), 2u);
    EXPECT_EQ(model->runtime->device_dense()->forwards(), 1u);
  }
}

// Copies that take longer than launches, and a device that checks what comes before what.
TEST(DensePromptTest, OnACardThatTakesItsTime) {
  for (const char* name :
       {"micro-qwen3moe-q4_k_m.gguf", "glm4moe-s2.gguf", "micro-deepseek2-q4_k_m.gguf"}) {
    RuntimeOptions options = options_of(name);
    options.placement = Placement::kCopy;
    SimDeviceModel card;
    card.copy_latency_ns = 50'000;
    card.launch_latency_ns = 1'000;
    const auto model = open_with_device(options, {}, stand_in_kernels, card);
    ASSERT_NE(model, nullptr);
    EXPECT_TRUE(prompts_and_tokens(*model->runtime, 70) == expected_of(options, 70)) << name;
    ASSERT_NE(model->runtime->device_dense(), nullptr);
    EXPECT_EQ(model->runtime->device_dense()->chunks(), 4u);
  }
}

// Of a prompt the rows alone go over, layer by layer; then nothing for the tokens after it. What
// the CPU computed in between is brought.
class DensePromptKv : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Kinds, DensePromptKv,
                         ::testing::Values("micro-qwen3moe-q4_k_m.gguf",
                                           "micro-deepseek2-q4_k_m.gguf"),
                         [](const auto& info) { return info.index == 0 ? "Heads" : "Latents"; });

TEST_P(DensePromptKv, StaysWhereItWasMade) {
  const RuntimeOptions options = dense_alone(GetParam());
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  Runtime& runtime = *model->runtime;
  ASSERT_NE(runtime.device_dense(), nullptr);
  const auto sent = [&] {
    return model->device->counters().bytes[static_cast<size_t>(DeviceStream::kToDevice)];
  };
  const uint64_t row_bytes = uint64_t{runtime.spec().n_layers} * runtime.spec().hidden * 4;
  const std::vector<TokenId> tokens = tokens_of(100);
  const LogitsSink ignore = [](size_t, std::span<const float>) {};
  Session session(runtime, SequenceId(0));
  const auto say = [&](uint32_t n) {
    const uint64_t before = sent();
    EXPECT_TRUE(session.score(std::span(tokens).first(n), ignore, nullptr));
    return sent() - before;
  };
  EXPECT_EQ(say(70), 70 * row_bytes);
  EXPECT_EQ(say(1), 0u);
  EXPECT_EQ(say(7), 7 * row_bytes);
  session.rewind(66);
  EXPECT_EQ(say(1), 0u);
  EXPECT_EQ(say(5), 5 * row_bytes);
  // A step that is too wide for it: positions 72 to 74.
  const Row wide[] = {{SequenceId(0), 72, tokens[1], false},
                      {SequenceId(0), 73, tokens[2], false},
                      {SequenceId(0), 74, tokens[3], false}};
  EXPECT_TRUE(runtime.forward().run(wide, Phase::kDecode, ignore));
  std::vector<Row> then;
  for (uint32_t i = 0; i < 4; ++i) then.push_back({SequenceId(0), 75 + i, tokens[i], true});
  const uint64_t before = sent();
  std::vector<float> logits;
  EXPECT_TRUE(runtime.forward().run(
      then, Phase::kPrefill, [&](size_t, std::span<const float> row) { append(logits, row); }));
  EXPECT_EQ(sent() - before, 4 * row_bytes + runtime.kv().page_bytes());
  EXPECT_EQ(runtime.device_dense()->chunks(), 3u + 1u + 1u + 1u);
  // The same by the CPU.
  RuntimeOptions plain = options;
  plain.vram_bytes.reset();
  const auto cpu = open_model(plain);
  ASSERT_NE(cpu, nullptr);
  Session again(*cpu->runtime, SequenceId(0));
  std::vector<TokenId> history(tokens.begin(), tokens.begin() + 66);
  for (const uint32_t n : {1u, 5u})
    history.insert(history.end(), tokens.begin(), tokens.begin() + n);
  history.insert(history.end(), tokens.begin() + 1, tokens.begin() + 4);
  EXPECT_TRUE(again.score(history, ignore, nullptr));
  std::vector<float> expected;
  EXPECT_TRUE(again.score(
      std::span(tokens).first(4),
      [&](size_t, std::span<const float> row) { append(expected, row); }, nullptr));
  EXPECT_TRUE(same_bits(logits, expected));
  EXPECT_TRUE(kv_of(runtime, SequenceId(0), 79) == kv_of(*cpu->runtime, SequenceId(0), 79));
}

// The first, the middle and the last of each kind under sanitizers.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kFaultsApart = 10;
#else
constexpr uint64_t kFaultsApart = 1;
#endif

// A launch, a copy either way or an event, wherever it fails in a prompt: said once, the same bits
// and the same KV, and nothing is asked of the device any more.
TEST(DensePromptTest, WhateverTheDeviceDoes) {
  for (const char* name : {"micro-qwen3moe-q4_k_m.gguf", "micro-qwen2moe-mxfp4.gguf",
                           "glm4moe-s2.gguf", "gpt-oss-s1.gguf", "phimoe-s1.gguf",
                           "micro-deepseek2-q4_k_m.gguf", "deepseek2-v2-s1.gguf"}) {
    RuntimeOptions options = dense_alone(name);
    options.device_deadline_ns = 100'000;  // the instant device's events come at once or never
    const Said expected = expected_of(options, 70);
    const auto healthy = open_with_device(options);
    ASSERT_NE(healthy, nullptr);
    const auto copies = [&] {
      const SimDeviceCounters& counters = healthy->device->counters();
      return counters.copies[static_cast<size_t>(DeviceStream::kToDevice)] +
             counters.copies[static_cast<size_t>(DeviceStream::kToHost)];
    };
    const SimDeviceCounters at_open = healthy->device->counters();
    const uint64_t copies_at_open = copies();
    {
      Session session(*healthy->runtime, SequenceId(0));
      EXPECT_TRUE(session.score(
          tokens_of(70), [](size_t, std::span<const float>) {}, nullptr));
    }
    const uint64_t n_copies = copies() - copies_at_open;
    const uint64_t n_launches = healthy->device->counters().launches - at_open.launches;
    const uint64_t n_marks = healthy->device->counters().marks - at_open.marks;
    std::vector<SimDeviceFault> faults;
    for (uint64_t part = 0; part <= 20; part += kFaultsApart) {
      const auto nth = [&](uint64_t before, uint64_t n) {
        return before + 1 + (part < 10 ? part : (n - 1) * part / 20);
      };
      faults.push_back({SimDeviceFaultKind::kCopyError, nth(copies_at_open, n_copies), 1});
      faults.push_back({SimDeviceFaultKind::kLaunchError, nth(at_open.launches, n_launches), 1});
      faults.push_back({SimDeviceFaultKind::kNeverReached, nth(at_open.marks, n_marks), 1});
    }
    for (const SimDeviceFault& fault : faults) {
      const auto model = open_with_device(options, {fault});
      ASSERT_NE(model, nullptr);
      const std::string what =
          fmt::format("{}: fault {} at {}", name, static_cast<int>(fault.kind), fault.nth);
      EXPECT_TRUE(prompts_and_tokens(*model->runtime, 70) == expected) << what;
      EXPECT_EQ(model->device->counters().faults, 1u) << what;
      EXPECT_EQ(model->runtime->vram_state(), VramState::kLost) << what;
      EXPECT_TRUE(model->runtime->device_dense()->is_lost()) << what;
      EXPECT_EQ(times_said(*model, "the CPU computes all"), 1u) << what;
      const uint64_t chunks = model->runtime->device_dense()->chunks();
      EXPECT_LE(chunks, 3u) << what;
      EXPECT_EQ(model->runtime->device_dense()->forwards(), 0u) << what;
      EXPECT_TRUE(prompts_and_tokens(*model->runtime, 70) == expected) << what;
      EXPECT_EQ(model->runtime->device_dense()->chunks(), chunks) << what;
    }
  }
}

// What chunks work in is at most an eighth of what is left; else prompts are the CPU's, tokens the
// device's all the same.
TEST(DensePromptTest, TheBudgetDecides) {
  RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  const Said expected = expected_of(options, 70);
  const auto ample = open_with_device(options);
  ASSERT_NE(ample, nullptr);
  EXPECT_EQ(ample->notice("vram_dense_prompts"), "");
  const DeviceDense* dense = ample->runtime->device_dense();
  ASSERT_NE(dense, nullptr);
  EXPECT_EQ(dense->chunk_rows(), 32u);
  EXPECT_GT(dense->chunk_bytes(), 0u);
  const uint64_t enough = dense->memory_bytes() + 7 * dense->chunk_bytes();
  for (const bool fits : {true, false}) {
    options.vram_bytes = enough - (fits ? 0 : 1);
    const auto model = open_with_device(options);
    ASSERT_NE(model, nullptr);
    ASSERT_NE(model->runtime->device_dense(), nullptr);
    EXPECT_LE(model->device->counters().allocated_bytes_max, *options.vram_bytes);
    EXPECT_TRUE(prompts_and_tokens(*model->runtime, 70) == expected);
    EXPECT_EQ(model->runtime->device_dense()->chunk_rows(), fits ? 32u : 0u);
    EXPECT_EQ(model->runtime->device_dense()->chunks(), fits ? 4u : 0u);
    EXPECT_EQ(model->runtime->device_dense()->forwards(), 4u);
    EXPECT_EQ(model->notice("vram_dense_prompts") == "", fits);
    EXPECT_THAT(model->notice("vram_dense_prompts"),
                HasSubstr(fits ? "" : "stay with the CPU: a chunk of 32 tokens works in"));
  }
}

// Memory of the device, pinned memory: less is asked for then. What RAM works in is only slower.
TEST(DensePromptTest, RefusedMemoryLeavesPromptsToTheCpu) {
  const RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  const Said expected = expected_of(options, 70);
  for (const SimDeviceFaultKind kind :
       {SimDeviceFaultKind::kOutOfMemory, SimDeviceFaultKind::kPinRefused}) {
    const auto model = open_with_device(options, {{kind, 1, 1}});
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->device->counters().faults, 1u);
    ASSERT_NE(model->runtime->device_dense(), nullptr);
    EXPECT_EQ(model->runtime->device_dense()->chunk_rows(), 0u);
    EXPECT_THAT(model->notice("vram_dense_prompts"), HasSubstr("stay with the CPU"));
    EXPECT_TRUE(prompts_and_tokens(*model->runtime, 70) == expected);
    EXPECT_EQ(model->runtime->device_dense()->forwards(), 4u);
    EXPECT_EQ(model->runtime->vram_state(), VramState::kInUse);
  }
  const auto pageable = open_with_device(options, {{SimDeviceFaultKind::kPinRefused, 2, 1}});
  ASSERT_NE(pageable, nullptr);
  EXPECT_THAT(pageable->notice("vram_dense_prompts"), HasSubstr("slower"));
  EXPECT_EQ(pageable->notice("vram_prompts"), "");  // said once
  EXPECT_TRUE(prompts_and_tokens(*pageable->runtime, 70) == expected);
  EXPECT_EQ(pageable->runtime->device_dense()->chunks(), 4u);
}

TEST(DensePromptTest, EveryNanosecondIsInTheRecord) {
  const auto model = open_with_device(options_of("micro-qwen2moe-mxfp4.gguf"));
  ASSERT_NE(model, nullptr);
  Session session(*model->runtime, SequenceId(0));
  const auto record = session.feed(tokens_of(40), {}, {});
  ASSERT_TRUE(record);
  EXPECT_EQ(record->prefill.wall_ns, record->prefill.causes.total_ns());
  EXPECT_GT(record->prefill.causes[Cause::kGpu], 0);
  EXPECT_GT(record->prefill.causes[Cause::kPcie], 0);
  EXPECT_EQ(record->prefill.causes[Cause::kOther], 0);
  EXPECT_EQ(model->runtime->device_dense()->chunks(), 2u);
}

}  // namespace
}  // namespace offstage
