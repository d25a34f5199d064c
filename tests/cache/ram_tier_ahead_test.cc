// A prompt's experts, read before their layer is reached, and experts read before anybody calls
// any: each once, none wrong, and nothing that decode lives on is lost to them.
#include <gmock/gmock.h>

#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using testing::RigOptions;
using testing::TierRig;

std::vector<ExpertId> all_experts(uint32_t n = 8) {
  std::vector<ExpertId> experts;
  for (uint32_t e = 0; e < n; ++e) experts.push_back(ExpertId(e));
  return experts;
}

std::vector<ExpertPlace> everything(const TierRig& rig) {
  std::vector<ExpertPlace> places;
  for (uint32_t l = 0; l < rig.layout().n_layers(); ++l)
    for (const ExpertId expert : all_experts()) places.push_back({LayerIndex(l), expert});
  return places;
}

// Prefill of all layers in order, each naming the next layer's experts in its event.
void prefill_all(TierRig& rig, const std::vector<ExpertId>& ahead) {
  for (uint32_t layer = 0; layer < rig.layout().n_layers(); ++layer) {
    rig.on_begin = [&, layer] {
      if (layer + 1 < rig.layout().n_layers()) rig.tier().read_ahead(LayerIndex(layer + 1), ahead);
    };
    rig.expect_prefill(layer);
    rig.on_begin = nullptr;
  }
}

TEST(RamTierAheadTest, APromptReadsEveryExpertOnceHoweverFewTheSlots) {
  for (const uint32_t staging : {2u, 3u, 8u, 16u}) {
    for (const char* faults : {"", "every=3,delay=1ms"}) {
      RigOptions options;
      options.kept = 0;
      options.staging = staging;
      options.faults = faults;
      TierRig rig(options);
      prefill_all(rig, all_experts());
      EXPECT_EQ(rig.reads().counters().jobs, 3u * 8 * 3) << staging;
      EXPECT_EQ(rig.tier().counters().drive_reads, 3u * 8);
      EXPECT_GT(rig.tier().counters().prefetches_useful, 0u);
      EXPECT_EQ(rig.tier().counters().prefetch_wasted_bytes, 0u);
      rig.expect_baseline();
    }
  }
}

TEST(RamTierAheadTest, TheNextLayerIsReadWhileThisOneComputes) {
  RigOptions options;
  options.kept = 0;
  options.staging = 8;
  TierRig rig(options);
  rig.on_begin = [&] { rig.tier().read_ahead(LayerIndex(1), all_experts()); };
  rig.expect_prefill(0);
  rig.on_begin = nullptr;
  // Between the events: all eight slots came back, and all eight are being read for layer 1.
  EXPECT_EQ(rig.reads().counters().jobs, 2u * 8 * 3);
  EXPECT_EQ(rig.tier().resident_count(LayerIndex(1)), 8u);
  rig.expect_prefill(1);
  EXPECT_EQ(rig.tier().counters().prefetches_useful, 8u);
  rig.expect_baseline();
}

TEST(RamTierAheadTest, WrongOnesAreWasteAndLeave) {
  RigOptions options;
  options.kept = 1;
  options.staging = 4;
  TierRig rig(options);
  rig.on_begin = [&] { rig.tier().read_ahead(LayerIndex(1), all_experts()); };
  rig.expect_prefill(0);
  rig.on_begin = nullptr;
  const auto event = rig.visit(1, {{ExpertId(7), 2}, {ExpertId(0), 1}}, Phase::kPrefill);
  ASSERT_TRUE(event.status);
  EXPECT_EQ(event.sorted(), (std::vector<uint32_t>{0, 7}));
  EXPECT_EQ(event.wrong_bytes, 0u);
  rig.settle();
  EXPECT_GT(rig.tier().counters().prefetch_wasted_bytes, 0u);
  rig.expect_decode(2, {1, 2});
  rig.expect_baseline();
}

// What decode called before is called from RAM after the prompt.
TEST(RamTierAheadTest, APromptFlushesNothingThatDecodeKeeps) {
  TierRig rig({});  // two kept of each layer
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {2, 5});
  prefill_all(rig, all_experts());
  const uint64_t reads = rig.tier().counters().drive_reads;
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {2, 5});
  EXPECT_EQ(rig.tier().counters().drive_reads, reads);
  rig.expect_baseline();
}

TEST(RamTierAheadTest, LayersLendSlotsToAPromptAndGetThemBack) {
  RigOptions options;
  options.kept = 4;
  options.staging = 2;
  options.lent = 1;
  TierRig rig(options);
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {0, 1, 2, 3});
  prefill_all(rig, all_experts());
  for (uint32_t layer = 0; layer < 3; ++layer)
    EXPECT_EQ(rig.tier().resident_count(LayerIndex(layer)), 3u);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    rig.expect_decode(layer, {4, 5});
    EXPECT_EQ(rig.tier().resident_count(LayerIndex(layer)), 4u);
  }
  rig.expect_baseline();
}

// A forward that failed leaves guesses of a layer that nobody visits: they don't keep the slots.
TEST(RamTierAheadTest, GuessesOfALayerThatNeverComesGiveTheirSlotsBack) {
  for (const char* faults : {"", "delay=3ms"}) {
    RigOptions options;
    options.kept = 0;
    options.staging = 2;
    options.faults = faults;
    TierRig rig(options);
    rig.tier().read_ahead(LayerIndex(1), all_experts());
    rig.expect_decode(0, {3, 4, 5});
    rig.expect_decode(2, {6});
  }
}

TEST(RamTierPreloadTest, EverythingIsResidentBeforeTheFirstCall) {
  for (const uint32_t reads_max : {3u, 64u}) {
    RigOptions options;
    options.kept = 8;
    options.staging = 0;
    options.reads_max = reads_max;
    options.odd_layers_down = 4096;
    options.faults = "nth=5,corrupt=flip";  // read again like any
    TierRig rig(options);
    uint64_t last = 0, total_bytes = 0;
    rig.tier().preload(everything(rig), [&](uint64_t done, uint64_t total) {
      EXPECT_GE(done, last);
      last = done;
      total_bytes = total;
    });
    EXPECT_EQ(rig.tier().counters().preloads, 24u);
    EXPECT_EQ(rig.tier().counters().preload_bytes, rig.layout().total_expert_bytes());
    EXPECT_EQ(total_bytes, rig.layout().total_expert_bytes());
    EXPECT_EQ(rig.tier().counters().rereads, 1u);
    const uint64_t jobs = rig.reads().counters().jobs;
    for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_prefill(layer);
    EXPECT_EQ(rig.reads().counters().jobs, jobs);
    EXPECT_EQ(rig.tier().counters().drive_reads, 0u);
  }
}

TEST(RamTierPreloadTest, TakesNoMoreThanTheSharesHold) {
  TierRig rig({});  // two kept of each layer
  rig.expect_decode(1, {6});
  rig.tier().preload(everything(rig), nullptr);
  EXPECT_EQ(rig.tier().counters().preloads, 5u);
  for (uint32_t layer = 0; layer < 3; ++layer)
    EXPECT_EQ(rig.tier().resident_count(LayerIndex(layer)), 2u);
  EXPECT_TRUE(rig.tier().is_resident(LayerIndex(0), ExpertId(1)));  // the first come first
  EXPECT_TRUE(rig.tier().is_resident(LayerIndex(1), ExpertId(6)));
  rig.expect_baseline();
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {3, 4, 7});
}

TEST(RamTierPreloadTest, AFailureEndsItAndIsTheCallersWhenCalled) {
  RigOptions options;
  options.kept = 8;
  options.staging = 0;
  options.reads_max = 4;
  const ExpertLayout layout = testing::layout_of(options);
  const Extent extent = layout.extent(LayerIndex(1), ExpertId(4), ExpertMatrix::kUp);
  const std::string faults =
      fmt::format("range={}+{},errno=EIO", extent.offset & ~uint64_t{511}, extent.bytes);
  options.faults = faults.c_str();
  TierRig rig(options);
  rig.tier().preload(everything(rig), nullptr);
  EXPECT_TRUE(rig.has_notice("preload"));
  // Layer 0 lies before; of what lies behind, some arrives while that read is tried again.
  EXPECT_GE(rig.tier().counters().preloads, 8u);
  EXPECT_LT(rig.tier().counters().preloads, 24u);
  EXPECT_FALSE(rig.tier().is_resident(LayerIndex(1), ExpertId(4)));
  EXPECT_EQ(rig.reads().unfinished(), 0u);
  rig.expect_baseline();
  rig.expect_prefill(0);
  rig.expect_decode(2, {4});
  const auto event = rig.decode(1, {4});
  ASSERT_FALSE(event.status);
  EXPECT_THAT(event.status.error().message, HasSubstr("offset"));
}

}  // namespace
}  // namespace offstage
