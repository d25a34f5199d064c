// Prompts whose experts the device computes, on the simulated device: the same bits whatever lies
// in VRAM, goes through it or stays with the CPU, and whatever fails.
#include "runtime/device_chunks.h"

#include <gmock/gmock.h>

#include <cctype>

#include "tests/runtime/device_fixture.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

// As device_experts_test's.
const char* const kModels[] = {"micro-qwen3moe-q4_k_m.gguf", "micro-qwen2moe-mxfp4.gguf",
                               "gpt-oss-s2-mxfp4.gguf", "micro-deepseek2-q4_k_m.gguf"};
constexpr uint64_t kAmple = 256ull << 20;

std::vector<TokenId> tokens_of(uint32_t n) {
  Rng rng(12);
  std::vector<TokenId> tokens;
  for (uint32_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(3 + rng.below(290)));
  return tokens;
}

RuntimeOptions options_of(const std::string& name) {
  RuntimeOptions options = test_options(model_file(name));
  options.process_bytes = 64ull << 20;
  options.chunk_rows = 16;
  options.warm_start = false;
  options.preload = false;
  options.promote = Promote::kOff;
  options.dense = DensePart::kCpu;
  options.vram_bytes = kAmple;
  return options;
}

std::vector<float> reference(RuntimeOptions options, const std::vector<TokenId>& prompt) {
  options.vram_bytes.reset();
  const auto model = open_model(options);
  return model == nullptr ? std::vector<float>() : score(*model->runtime, prompt);
}

ChunkCounts counts_of(const DeviceModel& model) {
  const DeviceExperts* experts = model.runtime->device_experts();
  return experts == nullptr || experts->chunks() == nullptr ? ChunkCounts()
                                                            : experts->chunks()->counts();
}

// Tokens that bring experts to VRAM, one at a time.
void bring_experts(Runtime& runtime, const std::vector<TokenId>& tokens) {
  decode_logits(runtime, tokens);
}

class ChunkExactness : public ::testing::TestWithParam<const char*> {};

// RAM for a third of the experts and for all; each through VRAM, none, and as it is measured.
TEST_P(ChunkExactness, ThroughVram) {
  RuntimeOptions options = options_of(GetParam());
  const std::vector<TokenId> prompt = tokens_of(40);
  const std::vector<float> expected = reference(options, prompt);
  const auto file = ModelFile::open(options.model_path);
  ASSERT_TRUE(file);
  const uint64_t experts = (*file)->expert_layout().total_expert_bytes();
  const auto probe = open_with_device(options);
  ASSERT_NE(probe, nullptr);
  for (const uint64_t ram : {probe->runtime->plan().floor_bytes + experts / 3, uint64_t{1} << 30}) {
    for (const Placement placement : {Placement::kCopy, Placement::kCpu, Placement::kAuto}) {
      options.ram_bytes = ram;
      options.placement = placement;
      const auto model = open_with_device(options);
      ASSERT_NE(model, nullptr);
      EXPECT_TRUE(same_bits(score(*model->runtime, prompt), expected))
          << static_cast<int>(placement) << ", " << ram << " of RAM";
      const ChunkCounts counts = counts_of(*model);
      EXPECT_EQ(model->notice("vram_prompts"), "");
      EXPECT_EQ(counts.in_place, 0u);
      // As measured, each way may be the faster one throughout: who is chosen when is
      // placement_test's.
      if (placement != Placement::kAuto) {
        EXPECT_EQ(counts.streamed == 0, placement == Placement::kCpu);
        EXPECT_EQ(counts.cpu == 0, placement == Placement::kCopy);
      }
      EXPECT_EQ(model->runtime->device_experts()->vram().counters().visits, counts.streamed);
    }
  }
}

// What tokens have brought to VRAM is computed where it lies; of the rest, all or nothing is
// copied.
TEST_P(ChunkExactness, WhereTheyLie) {
  RuntimeOptions options = options_of(GetParam());
  options.promote = Promote::kAlways;
  const std::vector<TokenId> prompt = tokens_of(40);
  const std::vector<float> expected = reference(options, prompt);
  for (const uint32_t n_tokens : {3u, 40u}) {
    for (const Placement placement : {Placement::kCpu, Placement::kCopy}) {
      options.placement = placement;
      const auto model = open_with_device(options);
      ASSERT_NE(model, nullptr);
      bring_experts(*model->runtime, std::vector(prompt.begin(), prompt.begin() + n_tokens));
      const uint64_t hits = model->runtime->device_experts()->hits();
      const uint32_t resident = model->runtime->device_experts()->vram().resident_count();
      EXPECT_TRUE(same_bits(score(*model->runtime, prompt), expected)) << n_tokens;
      const ChunkCounts counts = counts_of(*model);
      EXPECT_GT(counts.in_place, 0u);
      EXPECT_EQ(model->runtime->device_experts()->hits(), hits + counts.in_place);
      EXPECT_TRUE(counts.cpu + counts.streamed > 0 || n_tokens != 3);
      // A prompt leaves VRAM as it was.
      EXPECT_GE(model->runtime->device_experts()->vram().resident_count(), resident);
      EXPECT_EQ(model->runtime->device_experts()->vram().counters().evictions, 0u);
    }
  }
}

void expect_survival(const RuntimeOptions& options, const std::vector<TokenId>& tokens,
                     const SimDeviceFault& fault, const std::vector<TokenId>& prompt,
                     const std::vector<float>& expected) {
  const auto model = open_with_device(options, {fault});
  ASSERT_NE(model, nullptr);
  Runtime& runtime = *model->runtime;
  ASSERT_NE(runtime.device_experts(), nullptr);
  const std::string what = fmt::format("fault {} at {}", static_cast<int>(fault.kind), fault.nth);
  bring_experts(runtime, tokens);
  EXPECT_EQ(model->device->counters().faults, 0u) << what;
  // How many calls a prompt makes depends on how its experts come: the last may be the next one's.
  for (int prompts = 0; prompts < 3 && model->device->counters().faults == 0; ++prompts)
    EXPECT_TRUE(same_bits(score(runtime, prompt), expected)) << what;
  EXPECT_EQ(model->device->counters().faults, 1u) << what;
  EXPECT_EQ(runtime.vram_state(), VramState::kLost) << what;
  EXPECT_THAT(model->notice("vram"), HasSubstr("the CPU computes all")) << what;
  const ChunkCounts counts = counts_of(*model);
  EXPECT_TRUE(same_bits(score(runtime, prompt), expected)) << what;
  EXPECT_EQ(counts_of(*model).in_place, counts.in_place) << what;
  EXPECT_EQ(counts_of(*model).streamed, counts.streamed) << what;
}

struct Calls {
  uint64_t copies = 0, launches = 0, marks = 0;
};

// Whenever a launch, a copy or an event fails within a prompt, residents' or those on their way,
// and for good: one notice, the same bits.
TEST_P(ChunkExactness, WhateverTheDeviceDoes) {
  RuntimeOptions options = options_of(GetParam());
  options.device_deadline_ns = 100'000;  // the instant device's events come at once or never
  options.promote = Promote::kAlways;
  options.placement = Placement::kCopy;
  const std::vector<TokenId> prompt = tokens_of(24);
  const std::vector<float> expected = reference(options, prompt);
  for (const uint32_t n_tokens : {0u, 2u}) {
    const std::vector<TokenId> tokens(prompt.begin(), prompt.begin() + n_tokens);
    const auto healthy = open_with_device(options);
    ASSERT_NE(healthy, nullptr);
    bring_experts(*healthy->runtime, tokens);
    const auto copies = [&] {
      return healthy->device->counters().copies[static_cast<size_t>(DeviceStream::kToDevice)] +
             healthy->device->counters().copies[static_cast<size_t>(DeviceStream::kToHost)];
    };
    const uint64_t copies_before = copies(), launches_before = healthy->device->counters().launches;
    const uint64_t marks_before = healthy->device->counters().marks;
    score(*healthy->runtime, prompt);
    const ChunkCounts counts = counts_of(*healthy);
    EXPECT_GT(counts.streamed, 0u);
    EXPECT_EQ(counts.in_place > 0, n_tokens > 0);
    const uint64_t n_copies = copies() - copies_before;
    const uint64_t n_launches = healthy->device->counters().launches - launches_before;
    const uint64_t n_marks = healthy->device->counters().marks - marks_before;
    std::vector<SimDeviceFault> faults;
    for (const uint64_t part : {0, 1, 2, 3, 5, 8, 13, 17, 20}) {
      const auto nth = [&](uint64_t before, uint64_t n) {
        return before + 1 + (part < 8 ? part : (n - 2) * part / 20);
      };
      faults.push_back({SimDeviceFaultKind::kCopyError, nth(copies_before, n_copies), 1});
      faults.push_back({SimDeviceFaultKind::kLaunchError, nth(launches_before, n_launches), 1});
      faults.push_back({SimDeviceFaultKind::kNeverReached, nth(marks_before, n_marks), 1});
    }
    for (const SimDeviceFault& fault : faults)
      expect_survival(options, tokens, fault, prompt, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ChunkExactness, ::testing::ValuesIn(kModels), model_test_name);

TEST(DeviceChunksTest, WithoutRoomPromptsStayWithTheCpu) {
  RuntimeOptions options = options_of(kModels[0]);
  options.placement = Placement::kCopy;
  const std::vector<TokenId> prompt = tokens_of(40);
  const std::vector<float> expected = reference(options, prompt);
  const auto ample = open_with_device(options);
  ASSERT_NE(ample, nullptr);
  ASSERT_NE(ample->runtime->device_experts()->chunks(), nullptr);
  const uint64_t chunk_bytes = ample->runtime->device_experts()->chunks()->memory_bytes();
  // All that was allocated is in the budget.
  EXPECT_LE(ample->device->counters().allocated_bytes_max, kAmple);
  options.vram_bytes = 8 * chunk_bytes - 1;
  const auto little = open_with_device(options);
  ASSERT_NE(little, nullptr);
  ASSERT_NE(little->runtime->device_experts(), nullptr);
  EXPECT_EQ(little->runtime->device_experts()->chunks(), nullptr);
  EXPECT_THAT(little->notice("vram_prompts"), HasSubstr("a chunk of 16 tokens works in"));
  EXPECT_TRUE(same_bits(score(*little->runtime, prompt), expected));
  options.vram_bytes = 8 * chunk_bytes;
  const auto enough = open_with_device(options);
  ASSERT_NE(enough, nullptr);
  EXPECT_NE(enough->runtime->device_experts()->chunks(), nullptr);
  EXPECT_LE(enough->device->counters().allocated_bytes_max, *options.vram_bytes);
}

// Refused memory: the device's last allocation, and the pinned one.
TEST(DeviceChunksTest, MemoryThatIsRefusedMeansTheCpu) {
  RuntimeOptions options = options_of(kModels[0]);
  options.placement = Placement::kCopy;
  const std::vector<TokenId> prompt = tokens_of(40);
  const std::vector<float> expected = reference(options, prompt);
  for (const SimDeviceFault& fault : {SimDeviceFault{SimDeviceFaultKind::kOutOfMemory, 7, 1},
                                      SimDeviceFault{SimDeviceFaultKind::kPinRefused, 4, 1}}) {
    const auto model = open_with_device(options, {fault});
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->device->counters().faults, 1u);
    ASSERT_NE(model->runtime->device_experts(), nullptr);
    EXPECT_EQ(model->runtime->device_experts()->chunks(), nullptr);
    EXPECT_THAT(model->notice("vram_prompts"), HasSubstr("stay with the CPU"));
    EXPECT_TRUE(same_bits(score(*model->runtime, prompt), expected));
    EXPECT_EQ(model->runtime->vram_state(), VramState::kInUse);
  }
  // What RAM works in can't be pinned.
  const auto pageable = open_with_device(options, {{SimDeviceFaultKind::kPinRefused, 5, 1}});
  ASSERT_NE(pageable, nullptr);
  EXPECT_THAT(pageable->notice("vram_prompts"), HasSubstr("slower"));
  EXPECT_TRUE(same_bits(score(*pageable->runtime, prompt), expected));
  EXPECT_GT(counts_of(*pageable).streamed, 0u);
}

// VRAM has all experts, RAM next to none: nothing is read for a prompt, called or foretold.
TEST(DeviceChunksTest, WhatLiesInVramNeedsNoRead) {
  RuntimeOptions options = options_of(kModels[0]);
  options.promote = Promote::kAlways;
  options.placement = Placement::kCpu;
  const auto probe = open_model(options);
  ASSERT_NE(probe, nullptr);
  const auto file = ModelFile::open(options.model_path);
  ASSERT_TRUE(file);
  options.ram_bytes =
      probe->runtime->plan().floor_bytes + (*file)->expert_layout().total_expert_bytes() / 2;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  const ModelSpec& spec = model->runtime->spec();
  const VramTier& vram = model->runtime->device_experts()->vram();
  // The prompt's own tokens: all that it calls comes to VRAM, and hardly any is never called.
  for (int turn = 0; turn < 3; ++turn) bring_experts(*model->runtime, tokens_of(100));
  const uint32_t elsewhere = spec.n_moe_layers() * spec.router.n_experts - vram.resident_count();
  ASSERT_LE(elsewhere, 1u);
  const TierCounters before = model->runtime->tier().counters();
  const std::vector<TokenId> prompt = tokens_of(64);
  const auto logits = score(*model->runtime, prompt);
  EXPECT_TRUE(same_bits(logits, reference(options, prompt)));
  const TierCounters& after = model->runtime->tier().counters();
  EXPECT_EQ(after.drive_reads, before.drive_reads);
  EXPECT_LE(after.prefetches - before.prefetches, elsewhere * 4u);  // once a chunk
  EXPECT_EQ(after.ram_hits, before.ram_hits);
  EXPECT_EQ(counts_of(*model).cpu, 0u);
}

// Rows that the device has aren't sent twice: with the dense part there, the stream's go over
// instead of the normed ones.
TEST(DeviceChunksTest, TheDensePartsRowsAreThereAlready) {
  const std::vector<TokenId> prompt = tokens_of(40);
  uint64_t sent[2] = {};
  for (const DensePart dense : {DensePart::kAuto, DensePart::kCpu}) {
    RuntimeOptions options = options_of(kModels[0]);
    options.placement = Placement::kCopy;
    options.dense = dense;
    const auto model = open_with_device(options);
    ASSERT_NE(model, nullptr);
    const auto bytes = [&] {
      return model->device->counters().bytes[static_cast<size_t>(DeviceStream::kToDevice)];
    };
    const uint64_t at_open = bytes();
    EXPECT_TRUE(same_bits(score(*model->runtime, prompt), reference(options, prompt)));
    sent[dense == DensePart::kCpu] = bytes() - at_open;
    EXPECT_GT(counts_of(*model).streamed, 0u);
    EXPECT_EQ(model->runtime->device_dense() != nullptr, dense == DensePart::kAuto);
  }
  EXPECT_EQ(sent[0], sent[1]);
}

TEST(DeviceChunksTest, EveryCallAndEveryNanosecondIsInTheRecord) {
  RuntimeOptions options = options_of(kModels[1]);
  options.promote = Promote::kAlways;
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  const std::vector<TokenId> prompt = tokens_of(16);
  bring_experts(*model->runtime, {prompt[0]});
  const uint64_t hits = model->runtime->device_experts()->hits();
  Session session(*model->runtime, SequenceId(0));
  const auto record = session.feed(prompt, {}, {});
  ASSERT_TRUE(record);
  EXPECT_EQ(record->prefill.wall_ns, record->prefill.causes.total_ns());
  EXPECT_GT(record->prefill.causes[Cause::kGpu], 0);
  EXPECT_GT(record->prefill.causes[Cause::kPcie], 0);
  EXPECT_EQ(record->prefill.vram_hits, model->runtime->device_experts()->hits() - hits);
  const ChunkCounts counts = counts_of(*model);
  EXPECT_EQ(record->prefill.vram_hits, counts.in_place);
  EXPECT_EQ(record->prefill.ram_hits + record->prefill.drive_reads, counts.streamed + counts.cpu);
}

}  // namespace
}  // namespace offstage
