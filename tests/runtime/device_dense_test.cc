// The dense part of forwards on the simulated device: the CPU's bits, whatever came before,
// whatever fails, and whatever there is room for. More of prompts: device_dense_prompt_test.cc.
#include "runtime/device_dense.h"

#include <gmock/gmock.h>

#include <cctype>
#include <cstring>
#include <limits>

#include "tests/runtime/dense_fixture.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

class DenseFamilies : public ::testing::TestWithParam<const char*> {};

TEST_P(DenseFamilies, GiveTheCpusBits) {
  const RuntimeOptions options = options_of(GetParam());
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(same_bits(conversation(*model->runtime), reference(options)));
  const DeviceDense* dense = model->runtime->device_dense();
  ASSERT_NE(dense, nullptr) << model->notice("vram_dense");
  EXPECT_FALSE(dense->is_lost());
  EXPECT_EQ(dense->forwards(), 4u + 3u + 3u + 3u + 3u);
  EXPECT_EQ(dense->chunks(), 3u + 1u + 1u);
  EXPECT_EQ(model->notice("vram_dense"), "");
}

// Makes what RAM has of a layer's dense part NaNs: a card couldn't read it there.
void spoil(const LayerWeights& w) {
  for (const Matrix* m : {&w.q, &w.k, &w.v, &w.o, &w.mla.q_a, &w.mla.q_b, &w.mla.kv_a, &w.mla.k_b,
                          &w.mla.v_b, &w.router, &w.shared.gate, &w.shared.up, &w.shared.down,
                          &w.dense.gate, &w.dense.up, &w.dense.down})
    if (m->data != nullptr)
      std::memset(const_cast<std::byte*>(m->data), 0xff, m->rows * row_bytes(m->type, m->k));
  for (const float* values : {w.attn_norm, w.attn_norm_bias, w.ffn_norm, w.ffn_norm_bias, w.q_bias,
                              w.k_bias, w.v_bias, w.o_bias, w.q_norm, w.k_norm, w.mla.q_a_norm,
                              w.mla.kv_a_norm, w.sinks, w.router_bias, w.selection_bias})
    if (values != nullptr) *const_cast<float*>(values) = std::numeric_limits<float>::quiet_NaN();
}

TEST_P(DenseFamilies, ReadNoWeightInRam) {
  const RuntimeOptions options = options_of(GetParam());
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  for (const LayerWeights& layer : model->runtime->weights().layers) spoil(layer);
  EXPECT_TRUE(same_bits(conversation(*model->runtime), reference(options)));
}

// QK-norm per head and K-quants; biases, a gated shared expert and MXFP4; sinks, windows, biases
// everywhere; a layer without experts, a shared expert, part of a head rotated, a selection bias,
// QK-norm per head; QK-norm of the whole and sigmoids; neighbours rotated, residual scale; grouped
// heads of another shape, unquantised; layer norms, angles of two lengths of context; latent
// attention, with compressed queries and without, of matrices in four formats and unquantised.
INSTANTIATE_TEST_SUITE_P(Models, DenseFamilies,
                         ::testing::Values("micro-qwen3moe-q4_k_m.gguf",
                                           "micro-qwen2moe-mxfp4.gguf", "gpt-oss-s2-mxfp4.gguf",
                                           "gpt-oss-s1.gguf", "glm4moe-s2.gguf",
                                           "minimax-m2-s1.gguf", "granitemoe-s1.gguf",
                                           "qwen3moe-s2.gguf", "phimoe-s1.gguf", "phimoe-s2.gguf",
                                           "micro-deepseek2-q4_k_m.gguf", "deepseek2-v2-s1.gguf",
                                           "deepseek2-v2-s2.gguf", "deepseek2-v3-s1.gguf",
                                           "deepseek2-v3-s2.gguf"),
                         model_test_name);

TEST(DeviceDenseTest, KvInEveryType) {
  for (const char* name : {"micro-qwen3moe-q4_k_m.gguf", "micro-deepseek2-q4_k_m.gguf"}) {
    for (const KvType type : {KvType::kF32, KvType::kQ8_0}) {
      RuntimeOptions options = options_of(name);
      options.k_type = type;
      options.v_type = type == KvType::kF32 ? KvType::kF16 : type;
      const auto model = open_with_device(options);
      ASSERT_NE(model, nullptr);
      EXPECT_TRUE(same_bits(conversation(*model->runtime), reference(options))) << name;
      ASSERT_NE(model->runtime->device_dense(), nullptr);
    }
  }
}

// What the tier is told of the router (its probabilities): of the last row, whether that came as a
// step, in a chunk, or in the second slice of one.
TEST(DeviceDenseTest, TheLastRowsScoresWhateverItCameIn) {
  const std::vector<TokenId> tokens = tokens_of(60);
  const auto scores_of = [&](const DeviceModel& model, uint32_t n_first, uint32_t slice_rows) {
    const DeviceDense* dense = model.runtime->device_dense();
    EXPECT_EQ(dense->slice_rows(), slice_rows);
    Session session(*model.runtime, SequenceId(0));
    const LogitsSink ignore = [](size_t, std::span<const float>) {};
    for (const auto& part : {std::span(tokens).first(n_first), std::span(tokens).subspan(n_first)})
      EXPECT_TRUE(session.score(part, ignore, nullptr));
    const float* scores = dense->choice()->last_scores;
    return std::vector<float>(scores, scores + model.runtime->spec().router.n_experts);
  };
  for (const char* name : {"micro-qwen3moe-q4_k_m.gguf", "minimax-m2-s1.gguf"}) {
    RuntimeOptions options = options_of(name);
    options.chunk_rows = 60;
    const auto ample = open_with_device(options);
    ASSERT_NE(ample, nullptr);
    const DeviceDense* dense = ample->runtime->device_dense();
    const std::vector<float> as_step = scores_of(*ample, 59, 60);
    EXPECT_TRUE(same_bits(scores_of(*ample, 0, 60), as_step)) << name;
    options.vram_bytes = dense->memory_bytes() + 7 * dense->chunk_bytes() - 1;
    const auto little = open_with_device(options);
    ASSERT_NE(little, nullptr);
    EXPECT_TRUE(same_bits(scores_of(*little, 0, 32), as_step)) << name;
  }
}

// A format anywhere, of a head's matrices too; a router too wide. Nothing is asked of the device.
TEST(DeviceDenseTest, WhatHasNoKernelIsTheCpus) {
  const auto model = open_model(options_of("micro-deepseek2-q4_k_m.gguf"));
  ASSERT_NE(model, nullptr);
  Runtime& runtime = *model->runtime;
  const SteadyClock clock;
  SimDevice device(instant_card(), clock, {});
  const DeviceKernels kernels = stand_in_kernels(runtime.kernels());
  Notices notices;
  auto arena =
      HostArena::create("angles", RotaryTable::bytes_needed(runtime.spec().rotary, 256), notices);
  ASSERT_TRUE(arena);
  const RotaryTable rotary(runtime.spec().rotary, 256, nullptr, *arena);
  CauseTimer timer(clock);
  const auto why_not = [&](const ModelSpec& spec, const DenseWeights& weights) {
    const DeviceDense::Parts parts = {
        device,       kernels,           spec, weights, rotary, runtime.kv(), KvType::kF16,
        KvType::kF16, runtime.kernels(), {},   timer,   notices};
    const auto dense = DeviceDense::create(parts, {.vram_bytes = kAmple});
    EXPECT_FALSE(dense);
    return dense ? "" : dense.error().message;
  };
  DenseWeights weights = runtime.weights();
  weights.layers[1].mla.v_b.type = TensorType::kQ5_1;
  EXPECT_EQ(why_not(runtime.spec(), weights), "there is no kernel for its matrices in Q5_1");
  weights = runtime.weights();
  weights.layers[2].shared.down.type = TensorType::kIQ4_XS;
  EXPECT_EQ(why_not(runtime.spec(), weights), "there is no kernel for its matrices in IQ4_XS");
  ModelSpec spec = runtime.spec();
  spec.router.n_experts = 1025;
  EXPECT_THAT(why_not(spec, runtime.weights()), HasSubstr("2 of 1025 experts"));
  EXPECT_EQ(device.counters().allocated_bytes_max, 0u);
}

// All of it or none; and what is taken is what is said, never more than --vram.
TEST(DeviceDenseTest, TheBudgetDecides) {
  RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  const std::vector<float> expected = reference(options);
  const auto ample = open_with_device(options);
  ASSERT_NE(ample, nullptr);
  const DeviceDense& dense = *ample->runtime->device_dense();
  const DeviceExperts& experts = *ample->runtime->device_experts();
  EXPECT_EQ(dense.memory_bytes(), dense.weights_bytes() + dense.kv_bytes() + dense.working_bytes());
  const uint64_t needed = dense.memory_bytes() - dense.chunk_bytes();  // for tokens
  EXPECT_GE(dense.kv_bytes(), ample->runtime->plan().kv_bytes);
  ASSERT_NE(experts.chunks(), nullptr);
  ASSERT_NE(ample->runtime->device_logits(), nullptr);
  const uint64_t said = dense.memory_bytes() + experts.vram().memory_bytes() +
                        experts.working_bytes() + experts.chunks()->memory_bytes() +
                        ample->runtime->device_logits()->memory_bytes();
  EXPECT_LE(ample->device->counters().allocated_bytes, said);
  EXPECT_GT(ample->device->counters().allocated_bytes, said - 4096);  // parts are rounded up

  options.vram_bytes = needed;
  const auto alone = open_with_device(options);
  ASSERT_NE(alone, nullptr);
  ASSERT_NE(alone->runtime->device_dense(), nullptr);
  EXPECT_EQ(alone->runtime->device_experts(), nullptr);
  EXPECT_EQ(alone->runtime->vram_state(), VramState::kInUse);
  EXPECT_EQ(alone->device->counters().allocated_bytes_max, needed);
  EXPECT_THAT(alone->notice("vram"), HasSubstr("no experts in VRAM, the CPU computes them"));
  EXPECT_TRUE(same_bits(conversation(*alone->runtime), expected));

  options.vram_bytes = needed - 1;
  const auto without = open_with_device(options);
  ASSERT_NE(without, nullptr);
  EXPECT_EQ(without->runtime->device_dense(), nullptr);
  ASSERT_NE(without->runtime->device_experts(), nullptr);
  EXPECT_LE(without->device->counters().allocated_bytes_max, needed - 1);
  EXPECT_THAT(without->notice("vram_dense"), HasSubstr("stay with the CPU"));
  EXPECT_THAT(without->notice("vram_dense"), HasSubstr("KV for 256 positions"));
  EXPECT_TRUE(same_bits(conversation(*without->runtime), expected));
}

TEST(DeviceDenseTest, RefusedMemoryLeavesVramToTheExperts) {
  const RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  for (const SimDeviceFaultKind kind :
       {SimDeviceFaultKind::kOutOfMemory, SimDeviceFaultKind::kPinRefused}) {
    const auto model = open_with_device(options, {{kind, 1, 2}});  // it is asked for less, too
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->runtime->device_dense(), nullptr);
    EXPECT_NE(model->runtime->device_experts(), nullptr);
    EXPECT_THAT(model->notice("vram_dense"), HasSubstr("stay with the CPU"));
  }
}

TEST(DeviceDenseTest, ADeviceThatFailsAtTheStartIsLeftAlone) {
  const RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  const auto model = open_with_device(options, {{SimDeviceFaultKind::kCopyError, 3, 1}});
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->runtime->vram_state(), VramState::kUnavailable);
  EXPECT_THAT(model->notice("vram"), HasSubstr("everything is computed on the CPU"));
}

// Tokens first, so that a device which fails soon fails in one of them.
std::vector<float> tokens_then_prompt(Runtime& runtime) {
  std::vector<float> all = decode_logits(runtime, tokens_of(5));
  append(all, score(runtime, tokens_of(40)));
  append(all, decode_logits(runtime, tokens_of(3, 12)));
  return all;
}

// A launch, a copy or an event, early in a token, late, or in the middle of a layer: said once, the
// same bits, and nothing is asked of the device any more.
TEST(DeviceDenseTest, WhateverTheDeviceDoes) {
  for (const char* name : {"micro-qwen2moe-mxfp4.gguf", "glm4moe-s2.gguf", "phimoe-s1.gguf",
                           "micro-deepseek2-q4_k_m.gguf"}) {
    RuntimeOptions options = options_of(name);
    options.device_deadline_ns = 100'000;  // the instant device's events come at once or never
    const std::vector<float> expected = reference(options, tokens_then_prompt);
    const auto healthy = open_with_device(options);
    ASSERT_NE(healthy, nullptr);
    const SimDeviceCounters at_open = healthy->device->counters();
    const uint64_t n_marks = healthy->runtime->spec().n_layers;  // of the weights' copies
    std::vector<SimDeviceFault> faults = {
        {SimDeviceFaultKind::kCopyError,
         at_open.copies[static_cast<size_t>(DeviceStream::kToDevice)] + 1, 1}};
    for (const uint64_t later : {1, 4, 9, 17, 23, 50})
      faults.push_back({SimDeviceFaultKind::kLaunchError, at_open.launches + later, 1});
    for (const uint64_t later : {3, 4, 6})
      faults.push_back({SimDeviceFaultKind::kNeverReached, n_marks + later, 1});
    for (const SimDeviceFault& fault : faults) {
      const auto model = open_with_device(options, {fault});
      ASSERT_NE(model, nullptr);
      const std::string what =
          fmt::format("{}: fault {} at {}", name, static_cast<int>(fault.kind), fault.nth);
      EXPECT_TRUE(same_bits(tokens_then_prompt(*model->runtime), expected)) << what;
      EXPECT_EQ(model->device->counters().faults, 1u) << what;
      EXPECT_EQ(model->runtime->vram_state(), VramState::kLost) << what;
      EXPECT_TRUE(model->runtime->device_dense()->is_lost()) << what;
      EXPECT_EQ(times_said(*model, "the CPU computes all"), 1u) << what;
      const uint64_t forwards = model->runtime->device_dense()->forwards();
      EXPECT_LE(forwards, 5u) << what;
      decode_logits(*model->runtime, tokens_of(2));
      EXPECT_EQ(model->runtime->device_dense()->forwards(), forwards) << what;
    }
  }
}

TEST(DeviceDenseTest, EveryNanosecondIsInTheRecord) {
  const auto model = open_with_device(options_of("micro-qwen2moe-mxfp4.gguf"));
  ASSERT_NE(model, nullptr);
  Session session(*model->runtime, SequenceId(0));
  const std::vector<TokenId> tokens = tokens_of(12);
  const auto record = session.feed(std::span(tokens).first(4), std::span(tokens).subspan(4), {});
  ASSERT_TRUE(record);
  for (const TokenRecord& token : record->tokens) {
    EXPECT_EQ(token.wall_ns, token.causes.total_ns());
    EXPECT_GT(token.causes[Cause::kGpu], 0);
  }
  EXPECT_EQ(model->runtime->device_dense()->forwards(), 8u);
}

TEST(DeviceDenseTest, CpuLeavesAllOfVramToExperts) {
  RuntimeOptions options = options_of("micro-qwen3moe-q4_k_m.gguf");
  options.dense = DensePart::kCpu;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->runtime->device_dense(), nullptr);
  EXPECT_NE(model->runtime->device_experts(), nullptr);
  EXPECT_EQ(model->notice("vram_dense"), "");
}

}  // namespace
}  // namespace offstage
