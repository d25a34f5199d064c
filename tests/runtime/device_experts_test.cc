// Experts in VRAM, on the simulated device: the same bits whatever lies there and whatever fails,
// every call and every nanosecond in the record.
#include "runtime/device_experts.h"

#include <gmock/gmock.h>

#include <cctype>

#include "tests/runtime/device_fixture.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

// Q4_K with Q6_K, MXFP4 with Q8_0 and a shared expert, clamped activations with biases, grouped
// routing behind a dense layer.
const char* const kModels[] = {"micro-qwen3moe-q4_k_m.gguf", "micro-qwen2moe-mxfp4.gguf",
                               "gpt-oss-s2-mxfp4.gguf", "micro-deepseek2-q4_k_m.gguf"};
constexpr uint64_t kAmple = 256ull << 20;
constexpr uint64_t kWorking = 32ull << 10;     // what a forward of the smallest works in, and more
constexpr uint64_t kSomeSlots = 256ull << 10;  // of experts smaller than a sector

std::vector<TokenId> tokens_of(uint32_t n) {
  Rng rng(11);
  std::vector<TokenId> tokens;
  for (uint32_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(3 + rng.below(290)));
  return tokens;
}

RuntimeOptions options_of(const std::string& name) {
  RuntimeOptions options = test_options(model_file(name));
  options.process_bytes = 64ull << 20;
  options.chunk_rows = 8;
  options.warm_start = false;
  options.preload = false;
  options.promote = Promote::kAlways;
  options.dense = DensePart::kCpu;
  return options;
}

std::vector<float> reference(RuntimeOptions options, const std::vector<TokenId>& tokens) {
  options.vram_bytes.reset();
  const auto model = open_model(options);
  return model == nullptr ? std::vector<float>() : decode_logits(*model->runtime, tokens);
}

class DeviceExactness : public ::testing::TestWithParam<const char*> {};

// VRAM for none, one, some and all of the experts, and RAM for a third and for all of them.
TEST_P(DeviceExactness, AcrossBudgetsOfVramAndRam) {
  RuntimeOptions options = options_of(GetParam());
  const std::vector<TokenId> tokens = tokens_of(16);
  const std::vector<float> expected = reference(options, tokens);
  const auto file = ModelFile::open(options.model_path);
  ASSERT_TRUE(file);
  const uint64_t experts = (*file)->expert_layout().total_expert_bytes();
  const auto probe = open_with_device(options);
  ASSERT_NE(probe, nullptr);
  const uint64_t floor = probe->runtime->plan().floor_bytes;
  for (const uint64_t ram : {floor + experts / 2 + kSomeSlots, uint64_t{1} << 30}) {
    uint64_t hits_of_less = 0;
    for (const uint64_t vram : {uint64_t{0}, uint64_t{1}, experts / 2 + kWorking, kAmple}) {
      options.vram_bytes = vram;
      options.ram_bytes = ram;
      const auto model = open_with_device(options);
      ASSERT_NE(model, nullptr);
      EXPECT_TRUE(same_bits(decode_logits(*model->runtime, tokens), expected))
          << vram << " of VRAM, " << ram << " of RAM";
      const DeviceExperts* device = model->runtime->device_experts();
      if (vram <= 1) {
        EXPECT_EQ(device, nullptr);
        EXPECT_EQ(model->runtime->vram_state(),
                  vram == 0 ? VramState::kOff : VramState::kUnavailable);
        EXPECT_THAT(model->notice("vram"), vram == 0 ? HasSubstr("") : HasSubstr("no effect"));
        continue;
      }
      ASSERT_NE(device, nullptr) << model->notice("vram");
      EXPECT_GT(device->hits(), 0u);
      EXPECT_GE(device->hits(), hits_of_less);
      hits_of_less = device->hits();
    }
  }
}

// A prompt, then two sequences side by side.
std::vector<float> logits_in_company(Runtime& runtime) {
  const std::vector<TokenId> prompt = tokens_of(20);
  std::vector<float> all = decode_logits(runtime, prompt);
  const auto of_prompt = score(runtime, prompt, SequenceId(1));
  all.insert(all.end(), of_prompt.begin(), of_prompt.end());
  for (uint32_t i = 0; i < 6; ++i) {
    const Row rows[] = {{SequenceId(0), i, prompt[i], true},
                        {SequenceId(1), i, prompt[i + 7], true}};
    EXPECT_TRUE(
        runtime.forward().run(rows, Phase::kDecode, [&](size_t, std::span<const float> logits) {
          all.insert(all.end(), logits.begin(), logits.end());
        }));
  }
  return all;
}

TEST_P(DeviceExactness, WithPromptsAndCompany) {
  RuntimeOptions options = options_of(GetParam());
  options.n_sequences = 2;
  const auto plain = open_model(options);
  ASSERT_NE(plain, nullptr);
  const std::vector<float> expected = logits_in_company(*plain->runtime);
  options.vram_bytes = kAmple;
  const auto resident = open_with_device(options);
  ASSERT_NE(resident, nullptr);
  EXPECT_TRUE(same_bits(logits_in_company(*resident->runtime), expected));
  EXPECT_GT(resident->runtime->device_experts()->hits(), 0u);
  // Nothing lies there, and whatever is called is copied.
  options.promote = Promote::kOff;
  options.placement = Placement::kCopy;
  const auto copied = open_with_device(options);
  ASSERT_NE(copied, nullptr);
  EXPECT_TRUE(same_bits(logits_in_company(*copied->runtime), expected));
  const DeviceExperts& device = *copied->runtime->device_experts();
  EXPECT_EQ(device.hits(), 0u);
  EXPECT_GT(device.placements().ram_copied, 0u);
  ASSERT_NE(device.chunks(), nullptr);
  EXPECT_GT(device.chunks()->counts().streamed, 0u);
  EXPECT_EQ(device.vram().counters().visits,
            device.placements().copied() + device.chunks()->counts().streamed);
}

void expect_survival(const RuntimeOptions& options, const SimDeviceFault& fault,
                     const std::vector<TokenId>& tokens, const std::vector<float>& expected) {
  const auto model = open_with_device(options, {fault});
  ASSERT_NE(model, nullptr);
  Runtime& runtime = *model->runtime;
  ASSERT_NE(runtime.device_experts(), nullptr);
  const std::string what = fmt::format("fault {} at {}", static_cast<int>(fault.kind), fault.nth);
  EXPECT_TRUE(same_bits(decode_logits(runtime, tokens), expected)) << what;
  EXPECT_EQ(model->device->counters().faults, 1u) << what;
  // A copy begun last is found missing by those who come after.
  EXPECT_TRUE(same_bits(decode_logits(runtime, tokens), expected)) << what;
  EXPECT_EQ(runtime.vram_state(), VramState::kLost) << what;
  EXPECT_THAT(model->notice("vram"), HasSubstr("the CPU computes all")) << what;
  const uint64_t hits = runtime.device_experts()->hits();
  const uint64_t copied = runtime.device_experts()->placements().copied();
  decode_logits(runtime, std::vector(tokens.begin(), tokens.begin() + 2));
  EXPECT_EQ(runtime.device_experts()->hits(), hits) << what;
  EXPECT_EQ(runtime.device_experts()->placements().copied(), copied) << what;
}

// Whenever a launch, a copy, an event or the memory fails, and for good: one notice, the same bits.
TEST_P(DeviceExactness, WhateverTheDeviceDoes) {
  RuntimeOptions options = options_of(GetParam());
  options.vram_bytes = kAmple;
  options.device_deadline_ns = 100'000;  // the instant device's events come at once or never
  const std::vector<TokenId> tokens = tokens_of(10);
  const std::vector<float> expected = reference(options, tokens);
  for (const Placement placement : {Placement::kCpu, Placement::kCopy}) {
    options.placement = placement;
    options.promote = placement == Placement::kCopy ? Promote::kOff : Promote::kAlways;
    const auto healthy = open_with_device(options);
    ASSERT_NE(healthy, nullptr);
    const SimDeviceCounters at_open = healthy->device->counters();
    const uint64_t copies = at_open.copies[static_cast<size_t>(DeviceStream::kToDevice)];
    std::vector<SimDeviceFault> faults;
    for (const uint64_t later : {1, 2, 9, 25}) {
      if (later < 25) faults.push_back({SimDeviceFaultKind::kCopyError, copies + later, 1});
      faults.push_back({SimDeviceFaultKind::kLaunchError, at_open.launches + later, 1});
      faults.push_back({SimDeviceFaultKind::kNeverReached, 1 + later, 1});
    }
    for (const SimDeviceFault& fault : faults) expect_survival(options, fault, tokens, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, DeviceExactness, ::testing::ValuesIn(kModels), model_test_name);

TEST(DeviceExpertsTest, MemoryThatIsRefusedMeansFewerExpertsOrNone) {
  RuntimeOptions options = options_of(kModels[0]);
  options.vram_bytes = kAmple;
  const std::vector<TokenId> tokens = tokens_of(8);
  const std::vector<float> expected = reference(options, tokens);
  // The slots are asked for first, then what a forward works in.
  const auto fewer = open_with_device(options, {{SimDeviceFaultKind::kOutOfMemory, 1, 1}});
  ASSERT_NE(fewer, nullptr);
  ASSERT_NE(fewer->runtime->device_experts(), nullptr);
  EXPECT_THAT(fewer->notice("vram"), HasSubstr("the device refused the memory for more"));
  EXPECT_TRUE(same_bits(decode_logits(*fewer->runtime, tokens), expected));
  EXPECT_GT(fewer->runtime->device_experts()->hits(), 0u);
  for (const SimDeviceFault& fault : {SimDeviceFault{SimDeviceFaultKind::kOutOfMemory, 1, 100},
                                      SimDeviceFault{SimDeviceFaultKind::kOutOfMemory, 2, 1},
                                      SimDeviceFault{SimDeviceFaultKind::kPinRefused, 1, 1}}) {
    const auto none = open_with_device(options, {fault});
    ASSERT_NE(none, nullptr);
    EXPECT_EQ(none->runtime->device_experts(), nullptr);
    EXPECT_THAT(none->notice("vram"), HasSubstr("everything is computed on the CPU"));
    EXPECT_TRUE(same_bits(decode_logits(*none->runtime, tokens), expected));
  }
  // The hand-over is pinned; the RAM tier's slots can't be.
  const auto pageable = open_with_device(options, {{SimDeviceFaultKind::kPinRefused, 3, 1}});
  ASSERT_NE(pageable, nullptr);
  EXPECT_THAT(pageable->notice("vram"), HasSubstr("copies to the device are slower"));
  EXPECT_TRUE(same_bits(decode_logits(*pageable->runtime, tokens), expected));
}

TEST(DeviceExpertsTest, FormatsWithoutKernelsStayWithTheCpu) {
  RuntimeOptions options = options_of("qwen3moe-s1.gguf");  // F32
  options.vram_bytes = kAmple;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->runtime->device_experts(), nullptr);
  EXPECT_EQ(model->runtime->vram_state(), VramState::kUnavailable);
  EXPECT_THAT(model->notice("vram"), HasSubstr("the GPU has kernels for experts in Q8_0"));
}

TEST(DeviceExpertsTest, EveryCallAndEveryNanosecondIsInTheRecord) {
  RuntimeOptions options = options_of(kModels[0]);
  options.vram_bytes = kAmple;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  Session session(*model->runtime, SequenceId(0));
  const std::vector<TokenId> tokens = tokens_of(30);
  const auto record = session.feed(std::span(tokens).first(1), std::span(tokens).subspan(1), {});
  ASSERT_TRUE(record);
  const ModelSpec& spec = model->runtime->spec();
  uint64_t vram_hits = 0;
  CauseTimes causes;
  for (const TokenRecord& token : record->tokens) {
    EXPECT_EQ(token.wall_ns, token.causes.total_ns());
    EXPECT_EQ(token.vram_hits + token.ram_hits + token.drive_reads,
              spec.n_moe_layers() * spec.router.n_used);
    vram_hits += token.vram_hits;
    causes += token.causes;
  }
  EXPECT_EQ(vram_hits + record->prefill.vram_hits, model->runtime->device_experts()->hits());
  EXPECT_GT(record->tokens.back().vram_hits, 0u);
  EXPECT_GT(causes[Cause::kGpu], 0);
  EXPECT_GT(causes[Cause::kPcie], 0);
  // All that was ever called came to VRAM, once.
  const DeviceExperts& device = *model->runtime->device_experts();
  EXPECT_GT(device.vram().counters().promotions, 0u);
  EXPECT_EQ(device.vram().counters().evictions, 0u);
  EXPECT_LE(device.vram().resident_count(), device.vram().counters().promotions);
}

// Copied for a call, an expert is in the record as what it was: in RAM, or read.
TEST(DeviceExpertsTest, WhatIsCopiedForACallIsNoHit) {
  RuntimeOptions options = options_of(kModels[0]);
  options.vram_bytes = kAmple;
  options.promote = Promote::kOff;
  options.placement = Placement::kCopy;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  Session session(*model->runtime, SequenceId(0));
  const std::vector<TokenId> tokens = tokens_of(12);
  const auto record = session.feed(std::span(tokens).first(1), std::span(tokens).subspan(1), {});
  ASSERT_TRUE(record);
  const ModelSpec& spec = model->runtime->spec();
  for (const TokenRecord& token : record->tokens) {
    EXPECT_EQ(token.wall_ns, token.causes.total_ns());
    EXPECT_EQ(token.vram_hits, 0u);
    EXPECT_EQ(token.ram_hits + token.drive_reads, spec.n_moe_layers() * spec.router.n_used);
  }
  const PlacementCounts& placed = model->runtime->device_experts()->placements();
  EXPECT_EQ(placed.ram_cpu + placed.drive_cpu, 0u);
  EXPECT_EQ(placed.copied(), tokens.size() * spec.n_moe_layers() * spec.router.n_used);
}

// Real threads, a real file, and a bus of 20 ms a matrix: whatever is measured of them, every call
// is somebody's. (Who is chosen when is placement_test's, where no machine has a say.)
TEST(DeviceExpertsTest, OnASlowBusEveryCallIsComputedOnce) {
  RuntimeOptions options = options_of(kModels[0]);
  options.vram_bytes = kAmple;
  options.promote = Promote::kOff;
  SimDeviceModel card = instant_card();
  card.copy_latency_ns = 20'000'000;
  const auto model = open_with_device(options, {}, stand_in_kernels, card);
  ASSERT_NE(model, nullptr);
  const std::vector<TokenId> tokens = tokens_of(12);
  EXPECT_TRUE(same_bits(decode_logits(*model->runtime, tokens), reference(options, tokens)));
  const PlacementCounts& placed = model->runtime->device_experts()->placements();
  const ModelSpec& spec = model->runtime->spec();
  EXPECT_EQ(placed.ram_cpu + placed.drive_cpu + placed.copied(),
            tokens.size() * spec.n_moe_layers() * spec.router.n_used);
}

// VRAM for a third of the experts, RAM for less than the others. Nothing is guessed and the device
// takes no time, so that the reads don't depend on the machine.
TEST(DeviceExpertsTest, WhatLeavesVramGoesToRamAndNeedsNoRead) {
  RuntimeOptions options = options_of(kModels[0]);
  options.prefetch = Prefetch::kOff;
  options.cache_policy = "lru";
  options.placement = Placement::kCpu;
  const auto file = ModelFile::open(options.model_path);
  ASSERT_TRUE(file);
  const uint64_t experts = (*file)->expert_layout().total_expert_bytes();
  const auto probe = open_model(options);
  ASSERT_NE(probe, nullptr);
  options.ram_bytes = probe->runtime->plan().floor_bytes + experts / 2 + kSomeSlots;
  const std::vector<TokenId> tokens = tokens_of(60);
  const std::vector<float> expected = reference(options, tokens);
  uint64_t reads[2];
  for (const bool demote : {false, true}) {
    options.vram_bytes = experts / 3 + kWorking;
    options.demote = demote;
    const auto model = open_with_device(options);
    ASSERT_NE(model, nullptr);
    EXPECT_TRUE(same_bits(decode_logits(*model->runtime, tokens), expected));
    const VramCounters& counters = model->runtime->device_experts()->vram().counters();
    const TierCounters& tier = model->runtime->tier().counters();
    reads[demote] = tier.drive_reads;
    EXPECT_EQ(counters.demotions > 0, demote);
    EXPECT_EQ(tier.adopted > 0, demote);
    EXPECT_LE(tier.adopted, counters.demotions);
    fmt::print("{} experts left VRAM, {} for RAM; {} reads\n", counters.evictions,
               counters.demotions, tier.drive_reads);
  }
  EXPECT_LT(reads[1], reads[0]);
}

TEST(DeviceExpertsTest, WhateverPays) {
  RuntimeOptions options = options_of(kModels[0]);
  options.vram_bytes = kAmple;
  options.promote = Promote::kAuto;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  const std::vector<TokenId> tokens = tokens_of(12);
  EXPECT_TRUE(same_bits(decode_logits(*model->runtime, tokens), reference(options, tokens)));
}

TEST(DeviceExpertsTest, PromoteOffCopiesNothing) {
  RuntimeOptions options = options_of(kModels[0]);
  options.vram_bytes = kAmple;
  options.promote = Promote::kOff;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  decode_logits(*model->runtime, tokens_of(8));
  EXPECT_EQ(model->runtime->device_experts()->vram().counters().promotions, 0u);
}

TEST(PromotionValueTest, CallsExpectedFollowTheShareOfTheTokens) {
  PromotionValue value(2, 4);
  const std::vector<ExpertCall> often = {{ExpertId(1), 1}};
  const std::vector<ExpertCall> both = {{ExpertId(1), 1}, {ExpertId(3), 1}};
  for (int token = 0; token < 2000; ++token)
    value.add_calls(LayerIndex(1), token % 4 == 0 ? both : often);
  const auto expected = value.calls_expected(LayerIndex(1));
  EXPECT_NEAR(expected[1], PromotionValue::kHorizonTokens, 1);
  EXPECT_NEAR(expected[3], PromotionValue::kHorizonTokens / 4, 1);
  EXPECT_EQ(expected[0], 0);
  EXPECT_EQ(value.calls_expected(LayerIndex(0))[1], 0);
}

TEST(PromotionValueTest, ACallSavesTheCpusTimeAndTheWaitingLessTheDevices) {
  PromotionValue value(1, 4);
  EXPECT_EQ(value.saved_ns_per_call(), 0);
  value.add_costs({.calls = 4, .cpu_ns = 4'000, .wait_ns = 0});
  EXPECT_EQ(value.saved_ns_per_call(), 1'000);
  value.add_device(2, 600, true);
  EXPECT_EQ(value.saved_ns_per_call(), 700);
  value.add_device(2, 5'000, false);  // the CPU was slower: the device took that long at most
  EXPECT_EQ(value.saved_ns_per_call(), 700);
  value.add_device(2, 200, false);
  EXPECT_EQ(value.saved_ns_per_call(), 900);
  for (int i = 0; i < 1000; ++i) value.add_costs({.calls = 2, .cpu_ns = 2'000, .wait_ns = 10'000});
  EXPECT_NEAR(static_cast<double>(value.saved_ns_per_call()), 5'900, 10);
  value.add_device(1, 1'000'000, true);
  EXPECT_EQ(value.saved_ns_per_call(), 0);
}

}  // namespace
}  // namespace offstage
