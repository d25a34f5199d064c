// Guesses: right ones save a wait, wrong ones cost bytes, and neither ever shows in what is handed
// out.
#include <gmock/gmock.h>

#include <chrono>

#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using testing::RigOptions;
using testing::TierRig;

std::vector<ExpertId> ids(std::initializer_list<uint32_t> experts) {
  std::vector<ExpertId> result;
  for (const uint32_t e : experts) result.push_back(ExpertId(e));
  return result;
}

// Lets reads of guesses arrive: events of a layer that nothing is guessed for collect them.
void let_arrive(TierRig& rig, uint32_t other_layer) {
  for (int i = 0; i < 2000 && rig.reads().unfinished() != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(rig.decode(other_layer, {}).status);
  }
  ASSERT_EQ(rig.reads().unfinished(), 0u);
}

TEST(RamTierPrefetchTest, ARightGuessIsReadOnceAndReady) {
  TierRig rig({});
  rig.tier().prefetch(LayerIndex(1), ids({5, 2}));
  let_arrive(rig, 0);
  EXPECT_EQ(rig.reads().counters().jobs, 6u);
  const auto event = rig.decode(1, {2, 5});
  EXPECT_EQ(event.batches.size(), 1u);  // both at once: nothing to wait for
  EXPECT_EQ(event.wrong_bytes, 0u);
  EXPECT_EQ(rig.reads().counters().jobs, 6u);
  const TierCounters& counters = rig.tier().counters();
  EXPECT_EQ(counters.drive_reads, 2u);  // they did come from the drive for this call
  EXPECT_EQ(counters.ram_hits, 0u);
  EXPECT_EQ(counters.prefetches_useful, 2u);
  EXPECT_EQ(counters.prefetch_useful_bytes, 2 * rig.layout().expert_bytes(LayerIndex(1)));
  EXPECT_EQ(counters.prefetch_wasted_bytes, 0u);
  const GuessPayback& payback = rig.tier().payback(1);
  EXPECT_EQ(payback.right, 6u);
  EXPECT_GT(payback.saved_ns, 0);
  EXPECT_EQ(payback.wrong, 0u);
  rig.expect_decode(1, {2, 5});
  EXPECT_EQ(counters.ram_hits, 2u);
  rig.expect_baseline();
}

TEST(RamTierPrefetchTest, AGuessStillOnItsWayIsTakenOver) {
  RigOptions options;
  options.faults = "delay=20ms";
  TierRig rig(options);
  rig.tier().prefetch(LayerIndex(1), ids({3, 4}), 3);
  rig.expect_decode(1, {3, 7});
  const TierCounters& counters = rig.tier().counters();
  EXPECT_EQ(counters.prefetches_useful, 1u);
  EXPECT_EQ(counters.prefetches_late, 1u);
  EXPECT_EQ(counters.drive_reads, 2u);
  rig.settle();
  const GuessPayback& payback = rig.tier().payback(3);
  EXPECT_EQ(payback.right, 3u);
  EXPECT_EQ(payback.wrong, 3u);
  EXPECT_EQ(rig.tier().payback(1).right + rig.tier().payback(1).wrong, 0u);
  rig.expect_baseline();
}

TEST(RamTierPrefetchTest, AWrongGuessOnItsWayIsGivenUp) {
  RigOptions options;
  options.faults = "delay=30ms";
  options.depth = 1;
  TierRig rig(options);
  const auto start = std::chrono::steady_clock::now();
  rig.tier().prefetch(LayerIndex(1), ids({3, 4, 6}));
  rig.expect_decode(1, {0});
  EXPECT_GE(rig.reads().counters().cancelled, 8u);  // of nine; one was with the drive
  EXPECT_EQ(rig.tier().counters().prefetches_useful, 0u);
  EXPECT_LE(rig.tier().counters().prefetch_wasted_bytes, 5024u);
  rig.settle();
  const GuessPayback& payback = rig.tier().payback(1);
  EXPECT_EQ(payback.wrong, 9u);
  EXPECT_GT(payback.lost_ns, 0);
  const auto elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_LE(payback.lost_ns, elapsed / 1ns);  // of one: the other eight were never begun
  EXPECT_EQ(payback.right, 0u);
  EXPECT_EQ(payback.saved_ns, 0);
  rig.expect_baseline();
}

TEST(RamTierPrefetchTest, AWrongGuessThatArrivedCountsAsWaste) {
  TierRig rig({});
  rig.tier().prefetch(LayerIndex(1), ids({3}));
  let_arrive(rig, 0);
  rig.expect_decode(1, {0, 1});
  EXPECT_EQ(rig.tier().counters().prefetch_wasted_bytes, rig.layout().expert_bytes(LayerIndex(1)));
  EXPECT_EQ(rig.tier().resident_count(LayerIndex(1)), 2u);
  rig.expect_baseline();
}

TEST(RamTierPrefetchTest, TakesEmptySlotsAndNothingElse) {
  TierRig rig({});  // two kept of each layer, three staging slots
  for (uint32_t layer = 0; layer < 3; ++layer) rig.expect_decode(layer, {0, 1});
  rig.tier().prefetch(LayerIndex(0), ids({0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(rig.tier().counters().prefetches, 3u);
  EXPECT_EQ(rig.tier().counters().evictions, 0u);
  let_arrive(rig, 1);
  const uint64_t before = rig.tier().counters().ram_hits;
  for (uint32_t layer = 1; layer < 3; ++layer) rig.expect_decode(layer, {0, 1});
  rig.expect_decode(0, {0, 1});
  EXPECT_EQ(rig.tier().counters().ram_hits - before, 6u);
}

// All slots hold wrong guesses: the called expert must still get one.
TEST(RamTierPrefetchTest, WrongGuessesNeverStandInTheWay) {
  for (const char* faults : {"", "delay=5ms"}) {
    RigOptions options;
    options.kept = 0;
    options.staging = 2;
    options.faults = faults;
    TierRig rig(options);
    for (int round = 0; round < 3; ++round) {
      rig.tier().prefetch(LayerIndex(2), ids({1, 2}));
      rig.expect_decode(2, {5, 6, 7});
      rig.expect_decode(0, {5, 6, 7});
    }
    rig.settle();
    rig.expect_decode(2, {});
    rig.expect_baseline();
  }
}

// A forward that failed in layer 1 had guessed layer 2; the next one begins at layer 0.
TEST(RamTierPrefetchTest, GuessesOfAForwardThatEndedEarlyMakeRoom) {
  RigOptions options;
  options.kept = 0;
  options.staging = 2;
  TierRig rig(options);
  rig.tier().prefetch(LayerIndex(2), std::vector{ExpertId(0), ExpertId(1)});
  rig.settle();
  EXPECT_EQ(rig.pool().empty_count(0), 0u);
  rig.expect_decode(0, {3, 4});
  EXPECT_EQ(rig.tier().counters().prefetch_wasted_bytes,
            2 * rig.layout().expert_bytes(LayerIndex(2)));
  rig.expect_decode(2, {0, 1});
  rig.expect_baseline();
}

TEST(RamTierPrefetchTest, AGuessThatFailsIsNobodysError) {
  RigOptions options;
  const ExpertLayout layout = testing::layout_of(options);
  const Extent extent = layout.extent(LayerIndex(1), ExpertId(4), ExpertMatrix::kUp);
  const std::string faults =
      fmt::format("range={}+{},errno=EIO", extent.offset & ~uint64_t{511}, extent.bytes);
  options.faults = faults.c_str();
  TierRig rig(options);
  rig.tier().prefetch(LayerIndex(1), ids({4}));
  let_arrive(rig, 0);
  EXPECT_EQ(rig.tier().counters().prefetches_failed, 1u);
  EXPECT_TRUE(rig.has_notice("prefetch"));
  rig.expect_decode(1, {0});
  const auto event = rig.decode(1, {4});  // called, it is an error like any
  ASSERT_FALSE(event.status);
  EXPECT_THAT(event.status.error().message, HasSubstr("offset"));
  rig.settle();
  rig.expect_decode(1, {});
  rig.expect_baseline();
}

TEST(RamTierPrefetchTest, AGuessWithWrongBytesIsReadAgain) {
  RigOptions options;
  options.faults = "seed=2; nth=2,corrupt=flip";  // into the matrix, not the sectors' rest
  TierRig rig(options);
  rig.tier().prefetch(LayerIndex(1), ids({4}));
  let_arrive(rig, 0);
  EXPECT_EQ(rig.tier().counters().rereads, 1u);
  rig.expect_decode(1, {4});
  EXPECT_EQ(rig.tier().counters().prefetches_useful, 1u);
}

}  // namespace
}  // namespace offstage
