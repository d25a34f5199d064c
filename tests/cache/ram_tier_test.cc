// What the tier promises while the drive behaves: hits first, every expert once, the file's bytes.
#include "cache/ram_tier.h"

#include <gmock/gmock.h>

#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using ::testing::ElementsAre;
using testing::RigOptions;
using ::testing::SizeIs;
using testing::TierRig;

struct EngineCase {
  const char* name;
  IoEngineKind engine;
  DirectIo direct;
  const char* faults;
};

// Every way to the drive that the runtime has.
class RamTierTest : public ::testing::TestWithParam<EngineCase> {
 protected:
  RigOptions options() const {
    RigOptions options;
    options.engine = GetParam().engine;
    options.direct = GetParam().direct;
    options.faults = GetParam().faults;
    return options;
  }
};

#define OPEN_RIG(rig, options) \
  TierRig rig(options);        \
  if (!rig.ok()) GTEST_SKIP() << "this machine doesn't offer " << GetParam().name

TEST_P(RamTierTest, RunsOnTheEngineThatIsMeant) {
  OPEN_RIG(rig, options());
  const std::string name(rig.engine().name());
  EXPECT_EQ(name.find("uring") != std::string::npos, GetParam().engine == IoEngineKind::kUring);
  EXPECT_EQ(name.find("fault") != std::string::npos, *GetParam().faults != 0);
  if (GetParam().direct == DirectIo::kAuto) return;
  EXPECT_EQ(rig.engine().direct_io(0), GetParam().direct == DirectIo::kOn);
}

TEST_P(RamTierTest, MissesAreReadAndThenHit) {
  OPEN_RIG(rig, options());
  rig.expect_decode(1, {5, 2});
  EXPECT_EQ(rig.tier().counters().drive_reads, 2u);
  EXPECT_EQ(rig.tier().counters().ram_hits, 0u);
  EXPECT_EQ(rig.tier().resident_count(LayerIndex(1)), 2u);
  rig.expect_decode(1, {2, 5});
  EXPECT_EQ(rig.tier().counters().drive_reads, 2u);
  EXPECT_EQ(rig.tier().counters().ram_hits, 2u);
  rig.expect_decode(2, {2, 5});  // another layer's experts are others
  EXPECT_EQ(rig.tier().counters().drive_reads, 4u);
  rig.expect_baseline();
}

TEST_P(RamTierTest, KeepsTheRecentlyCalled) {
  OPEN_RIG(rig, options());
  rig.expect_decode(0, {1, 0});
  rig.expect_decode(0, {2});  // evicts 0: the lighter of two called at once
  rig.expect_decode(0, {1, 2});
  EXPECT_EQ(rig.tier().counters().ram_hits, 2u);
  rig.expect_decode(0, {0});
  EXPECT_EQ(rig.tier().counters().drive_reads, 4u);
  EXPECT_EQ(rig.tier().counters().evictions, 2u);
}

TEST_P(RamTierTest, CallsBeyondTheStagingTakeTurns) {
  OPEN_RIG(rig, options());
  rig.expect_decode(0, {7, 0, 6, 1, 5, 2, 4, 3});
  rig.expect_baseline();
  EXPECT_EQ(rig.tier().resident_count(LayerIndex(0)), 2u);
}

TEST_P(RamTierTest, PrefillHandsOutEveryExpertOnceAndReadsItOnce) {
  OPEN_RIG(rig, options());
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_prefill(layer);
  EXPECT_EQ(rig.tier().counters().drive_reads, 24u);
  EXPECT_EQ(rig.tier().counters().ram_hits, 0u);
  rig.expect_baseline();
}

TEST_P(RamTierTest, PrefillDoesntFlushWhatDecodeLivesOn) {
  OPEN_RIG(rig, options());
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {3, 6});
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_prefill(layer);
  const uint64_t reads = rig.tier().counters().drive_reads;
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {3, 6});
  EXPECT_EQ(rig.tier().counters().drive_reads, reads);
}

TEST_P(RamTierTest, PrefillFlushesNothingWhateverThePolicy) {
  for (const std::string_view policy : policy_names()) {
    RigOptions asked = options();
    asked.policy = policy.data();
    OPEN_RIG(rig, asked);
    for (int round = 0; round < 3; ++round)
      for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {3, 6});
    for (int chunk = 0; chunk < 2; ++chunk)
      for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_prefill(layer);
    const uint64_t reads = rig.tier().counters().drive_reads;
    for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {3, 6});
    EXPECT_EQ(rig.tier().counters().drive_reads, reads) << policy;
    rig.expect_baseline();
  }
}

TEST_P(RamTierTest, TwoSlotsAreEnough) {
  RigOptions two = options();
  two.kept = 0;
  two.staging = 2;
  OPEN_RIG(rig, two);
  for (int round = 0; round < 3; ++round) {
    rig.expect_decode(0, {4, 1, 7, 2});
    rig.expect_prefill(1);
    rig.expect_decode(2, {0});
    rig.expect_baseline();
  }
  EXPECT_EQ(rig.tier().counters().ram_hits, 0u);
}

TEST_P(RamTierTest, OneReadOfRoomIsEnough) {
  RigOptions narrow = options();
  narrow.reads_max = kExpertMatrices;
  narrow.depth = 1;
  OPEN_RIG(rig, narrow);
  rig.expect_decode(0, {4, 1, 7, 2});
  rig.expect_prefill(1);
  rig.expect_baseline();
}

TEST_P(RamTierTest, ASlotForEveryExpertReadsEachOnce) {
  RigOptions full = options();
  full.kept = full.n_experts;
  full.staging = 0;
  OPEN_RIG(rig, full);
  for (int round = 0; round < 3; ++round)
    for (uint32_t layer = 0; layer < 3; ++layer) {
      rig.expect_prefill(layer);
      rig.expect_decode(layer, {6, 0, 3});
    }
  EXPECT_EQ(rig.tier().counters().drive_reads, 24u);
  EXPECT_EQ(rig.tier().counters().evictions, 0u);
  rig.expect_baseline();
}

TEST_P(RamTierTest, LayersOfTwoSizesUseTheirOwnSlots) {
  RigOptions mixed = options();
  mixed.odd_layers_down = 4096;
  OPEN_RIG(rig, mixed);
  ASSERT_EQ(rig.layout().n_classes(), 2u);
  for (int round = 0; round < 2; ++round)
    for (uint32_t layer = 0; layer < 3; ++layer) {
      const auto event = rig.prefill(layer);
      EXPECT_TRUE(event.status);
      EXPECT_EQ(event.wrong_bytes, 0u);
      for (const SlotIndex slot : event.slots)
        EXPECT_EQ(rig.pool()[slot].slot_class, rig.layout().slot_class(LayerIndex(layer)));
    }
  rig.expect_baseline();
}

TEST_P(RamTierTest, AnIncompleteIndexIsFilledByReading) {
  RigOptions empty = options();
  empty.complete_index = false;
  empty.kept = 0;
  OPEN_RIG(rig, empty);
  rig.expect_decode(0, {1, 2});
  EXPECT_EQ(rig.index().counts().provisional, 6u);
  rig.expect_decode(0, {2});  // a second physical read agrees
  EXPECT_EQ(rig.index().counts().provisional, 3u);
  EXPECT_EQ(rig.index().counts().confirmed, 3u);
  EXPECT_EQ(rig.tier().counters().rereads, 0u);
}

INSTANTIATE_TEST_SUITE_P(
    Engines, RamTierTest,
    ::testing::Values(EngineCase{"threads_buffered", IoEngineKind::kThreads, DirectIo::kOff, ""},
                      EngineCase{"threads_direct", IoEngineKind::kThreads, DirectIo::kOn, ""},
                      EngineCase{"uring_direct", IoEngineKind::kUring, DirectIo::kOn, ""},
                      EngineCase{
                          "fault", IoEngineKind::kThreads, DirectIo::kAuto,
                          "nth=2,errno=EIO;nth=5,short=511;nth=9,errno=EAGAIN;nth=12,short=0;"
                          "every=10,errno=EINTR;every=7,delay=2ms"}),
    [](const auto& info) { return std::string(info.param.name); });

// Reads take 300 ms: what is resident is handed out before any of them can have arrived.
TEST(RamTierOrderTest, HitsComeFirstAndDontWaitForMisses) {
  RigOptions options;
  options.faults = "from=13,delay=300ms";
  options.kept = 4;
  TierRig rig(options);
  rig.expect_decode(0, {0, 1, 2, 3});
  const auto event = rig.decode(0, {6, 3, 5, 1});
  ASSERT_TRUE(event.status);
  ASSERT_GE(event.batches.size(), 2u);
  EXPECT_THAT(event.batches[0], ElementsAre(3, 1));
  EXPECT_THAT(event.sorted(), ElementsAre(1, 3, 5, 6));
  EXPECT_EQ(event.wrong_bytes, 0u);
}

TEST(RamTierOrderTest, PrefillKeepsTheMostCalledWhereThereIsRoom) {
  RigOptions options;
  options.kept = 3;
  TierRig rig(options);
  rig.expect_decode(0, {7});
  EXPECT_TRUE(rig.prefill(0, {1, 1, 9, 1, 1, 8, 1, 1}).status);
  EXPECT_EQ(rig.tier().resident_count(LayerIndex(0)), 3u);
  const uint64_t reads = rig.tier().counters().drive_reads;
  rig.expect_decode(0, {2, 5, 7});
  EXPECT_EQ(rig.tier().counters().drive_reads, reads);
}

TEST(RamTierOrderTest, PinnedExpertsStayWhileTheyLive) {
  RigOptions options;
  options.kept = 0;
  options.staging = 2;
  TierRig rig(options);
  const std::vector<ExpertCall> calls = {{ExpertId(0), 1}, {ExpertId(1), 1}, {ExpertId(2), 1}};
  rig.tier().begin(LayerIndex(0), calls, Phase::kDecode);
  size_t seen = 0;
  while (seen < 3) {
    const auto pinned = rig.tier().next();
    ASSERT_TRUE(pinned);
    seen += pinned->experts().size();
    for (const ReadyExpert& ready : pinned->experts()) EXPECT_EQ(rig.pool()[ready.slot].pins, 1u);
  }
  EXPECT_TRUE(rig.tier().next()->experts().empty());
  rig.tier().end();
  rig.expect_baseline();
}

TEST(RamTierOrderTest, AnEventWithNoCallsIsOver) {
  TierRig rig(RigOptions{});
  EXPECT_THAT(rig.decode(0, {}).batches, SizeIs(0));
  rig.expect_baseline();
}

}  // namespace
}  // namespace offstage
