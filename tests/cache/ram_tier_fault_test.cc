// What the tier promises when the drive lies, stalls or fails: unverified bytes never reach a
// kernel, a slot isn't reused while the drive may write to it, and after an error it goes on.
#include <gmock/gmock.h>

#include <thread>

#include "cache/ram_tier.h"
#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using testing::RigOptions;
using testing::TierRig;

constexpr int64_t kMillisecond = 1'000'000;

// The part of the file that holds one matrix, as a condition of a fault plan.
std::string range_of(const RigOptions& options, uint32_t layer, uint32_t expert,
                     ExpertMatrix matrix) {
  const Extent extent =
      testing::layout_of(options).extent(LayerIndex(layer), ExpertId(expert), matrix);
  // A whole sector inside the extent (down has one): the first and last are shared with neighbours.
  return fmt::format("range={}+1", round_up(extent.offset, kSectorBytes));
}

RigOptions bare(const char* faults) {
  RigOptions options;
  options.kept = 0;
  options.staging = 2;
  options.faults = faults;
  return options;
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class RamTierCorruptTest : public ::testing::TestWithParam<const char*> {};

// Reads 1, 6 and 11 are the first, second and third matrix of their events: each event takes three
// reads and one more for the one that was altered.
// Matrices are whole sectors: no altered byte lies in the rounding, where nobody would mind.
TEST_P(RamTierCorruptTest, AlteredBytesAreReadAgainAndNeverHandedOut) {
  const std::string faults =
      fmt::format("nth=1,corrupt={0};nth=6,corrupt={0};nth=11,corrupt={0}", GetParam());
  RigOptions options = bare(faults.c_str());
  options.offset = 8192;
  for (uint64_t& bytes : options.bytes) bytes = 8192;
  TierRig rig(options);
  rig.expect_decode(0, {0});
  rig.expect_decode(0, {3});
  rig.expect_decode(2, {7});
  EXPECT_EQ(rig.tier().counters().rereads, 3u);
  EXPECT_EQ(rig.index().counts().mismatches, 3u);
  EXPECT_TRUE(rig.has_notice("hash"));
  rig.expect_baseline();
}

INSTANTIATE_TEST_SUITE_P(Kinds, RamTierCorruptTest,
                         ::testing::Values("flip", "zeros", "stale", "elsewhere", "torn"),
                         [](const auto& info) { return std::string(info.param); });

TEST(RamTierHashTest, AMismatchThatStaysIsAnErrorThatNamesEverything) {
  RigOptions options;
  TierRig rig(options);
  const PieceId piece = rig.layout().piece(LayerIndex(1), ExpertId(4), ExpertMatrix::kUp);
  rig.index().confirm(piece, 0x1234);
  const auto event = rig.decode(1, {2, 4});
  ASSERT_FALSE(event.status);
  EXPECT_EQ(event.status.error().code, ErrorCode::kHashMismatch);
  const Extent extent = rig.layout().extent(LayerIndex(1), ExpertId(4), ExpertMatrix::kUp);
  EXPECT_THAT(event.status.error().message,
              AllOf(HasSubstr(rig.path()), HasSubstr("'blk.1.ffn_up_exps.weight'"),
                    HasSubstr("expert 4"), HasSubstr(fmt::format("offset {}", extent.offset))));
  EXPECT_EQ(rig.tier().counters().rereads, 1u);
  EXPECT_EQ(event.wrong_bytes, 0u);
  EXPECT_THAT(event.experts(), ::testing::Not(Contains(4u)));
  rig.settle();
  rig.expect_baseline();
  rig.expect_decode(1, {2, 5});  // usable afterwards, also the same expert once the index is right
  rig.index().confirm(piece, hash_piece(rig.truth(LayerIndex(1), ExpertId(4), ExpertMatrix::kUp)));
  rig.expect_decode(1, {4});
}

// Provisional, contradicted, decided.
TEST(RamTierHashTest, AThirdReadDecidesBetweenTwo) {
  for (const char* faults : {"nth=1,corrupt=flip", "nth=4,corrupt=flip"}) {
    RigOptions options = bare(faults);
    options.offset = 8192;
    for (uint64_t& bytes : options.bytes) bytes = 8192;
    options.complete_index = false;
    TierRig rig(options);
    EXPECT_TRUE(rig.decode(0, {5}).status);  // with nth=1 what it gave was wrong and provisional
    rig.expect_decode(0, {5});
    EXPECT_EQ(rig.tier().counters().rereads, 1u) << faults;
    EXPECT_EQ(rig.index().counts().confirmed, 3u) << faults;
    EXPECT_TRUE(rig.has_notice("hash"));
    rig.expect_decode(0, {5});  // the right bytes were the ones confirmed
    EXPECT_EQ(rig.tier().counters().rereads, 1u) << faults;
    rig.expect_baseline();
  }
}

TEST(RamTierReadTest, AnErrorForEverEndsTheEventAndLeaksNothing) {
  RigOptions options;
  const std::string faults = range_of(options, 0, 3, ExpertMatrix::kDown) + ",errno=EIO";
  options.faults = faults.c_str();
  TierRig rig(options);
  for (int round = 0; round < 3; ++round) {
    const auto event = rig.decode(0, {3, 1});
    ASSERT_FALSE(event.status);
    EXPECT_EQ(event.status.error().code, ErrorCode::kIo);
    EXPECT_THAT(event.status.error().message, AllOf(HasSubstr(rig.path()), HasSubstr("offset")));
    EXPECT_EQ(event.wrong_bytes, 0u);
    rig.expect_decode(0, {1, 2, 7});
    rig.expect_prefill(1);
    rig.settle();
    rig.expect_baseline();
  }
  const auto prefill = rig.prefill(0);
  EXPECT_FALSE(prefill.status);
  rig.expect_decode(0, {6});
}

// Each seventh matrix of the file fails when it is first read, and the time after.
TEST(RamTierReadTest, EverySeventhMatrixFailingOnceChangesNothing) {
  RigOptions options;
  std::string faults;
  const uint32_t n_matrices = options.n_layers * options.n_experts * kExpertMatrices;
  for (uint32_t i = 0; i < n_matrices; i += 7)
    faults += range_of(options, i / 24, i / 3 % 8, static_cast<ExpertMatrix>(i % 3)) +
              ",times=2,errno=EIO;";
  options.faults = faults.c_str();
  TierRig rig(options);
  for (int round = 0; round < 4; ++round)
    for (uint32_t layer = 0; layer < 3; ++layer) {
      rig.expect_prefill(layer);
      rig.expect_decode(layer, {0, 4, 2, 6});
    }
  EXPECT_GT(rig.reads().counters().errors, 10u);
  rig.expect_baseline();
}

TEST(RamTierReadTest, ShortReadsAreCompleted) {
  for (const char* faults :
       {"nth=1,short=511;nth=9,short=511", "nth=2,short=0;nth=7,short=0", "every=2,short=4096",
        "every=3,short=-4096", "nth=3,short=1;nth=4,short=8191", "every=3,errno=EINTR"}) {
    RigOptions options;
    options.faults = faults;
    TierRig rig(options);
    rig.expect_prefill(0);
    rig.expect_decode(1, {5, 6, 7});
    EXPECT_GT(rig.reads().counters().retries, 0u) << faults;
    EXPECT_EQ(rig.tier().counters().rereads, 0u) << faults;  // whole before it was hashed
  }
}

// The late read writes into its slot long after the event was given up. Were the slot reused
// before, the bytes of whoever got it would change under the kernel. False: a drive that stalled
// for longer than the late read left nothing to be tried.
bool late_read_keeps_its_slot() {
  RigOptions options = bare("nth=1,delay=3000ms");
  options.deadline_ns = 400 * kMillisecond;
  TierRig rig(options);
  const auto late = rig.decode(0, {2});
  EXPECT_FALSE(late.status);
  if (late.status) return true;
  EXPECT_EQ(late.status.error().code, ErrorCode::kDeadline);
  EXPECT_THAT(late.status.error().message, HasSubstr(rig.path()));
  EXPECT_EQ(rig.reads().quarantined(), 1u);
  EXPECT_EQ(rig.pool().empty_count(0), 1u);
  std::set<SlotIndex> used;
  for (uint32_t e = 0; e < 4; ++e) {
    const auto event = rig.decode(0, {e, e + 4});
    EXPECT_EQ(event.wrong_bytes, 0u);
    if (!event.status || rig.reads().quarantined() != 1) return false;
    used.insert(event.slots.begin(), event.slots.end());
  }
  EXPECT_EQ(used.size(), 1u);
  rig.settle();
  rig.expect_decode(0, {2, 3});
  EXPECT_EQ(rig.reads().quarantined(), 0u);
  rig.expect_baseline();
  return true;
}

TEST(RamTierDeadlineTest, ALateReadKeepsItsSlot) {
  constexpr int kAttempts = 5;
  for (int attempt = 0; attempt < kAttempts; ++attempt)
    if (late_read_keeps_its_slot()) return;
  FAIL() << "no event went well within the deadline in " << kAttempts << " attempts";
}

// Every slot is with the drive: the next event is an error at once, and the one after the reads
// came back goes well, although nothing else was being read.
TEST(RamTierDeadlineTest, ComesBackWhenEverySlotWasLate) {
  RigOptions options = bare("until=6,delay=5000ms");
  options.deadline_ns = 2000 * kMillisecond;
  TierRig rig(options);
  EXPECT_FALSE(rig.decode(0, {2, 3}).status);
  EXPECT_EQ(rig.pool().empty_count(0), 0u);
  const auto refused = rig.decode(0, {4});
  ASSERT_FALSE(refused.status);
  EXPECT_EQ(refused.status.error().code, ErrorCode::kDeadline);
  EXPECT_THAT(refused.status.error().message, HasSubstr("layer 0"));
  Status status = refused.status;
  for (int attempt = 0; attempt < 1000 && !status; ++attempt) {
    sleep_ms(10);
    status = rig.decode(0, {4}).status;
  }
  EXPECT_TRUE(status) << status.error().message;
  rig.expect_decode(0, {2, 3});
  rig.settle();
  rig.expect_baseline();
}

TEST(RamTierDeadlineTest, AReadThatNeverComesCostsItsSlotAndNoMore) {
  RigOptions options = bare("nth=2,never");
  options.deadline_ns = 4000 * kMillisecond;  // a drive may stall, and that isn't what is tried
  TierRig rig(options);
  EXPECT_FALSE(rig.decode(0, {2}).status);
  for (uint32_t e = 0; e < 8; ++e) rig.expect_decode(1, {e});
  rig.expect_prefill(2);
  EXPECT_EQ(rig.pool().empty_count(0), 1u);
}

// More dead reads than the scheduler has room for: errors, not the end of the process.
TEST(RamTierDeadlineTest, ADeadDriveFailsEveryEventAndNothingElse) {
  RigOptions options;
  options.faults = "never";
  options.kept = 8;
  options.staging = 8;
  options.reads_max = 6;
  options.depth = 64;
  options.deadline_ns = 100 * kMillisecond;
  TierRig rig(options);
  for (uint32_t i = 0; i < 8; ++i) {
    const auto event = rig.decode(i % 3, {i, (i + 1) % 8, (i + 2) % 8});
    ASSERT_FALSE(event.status);
    EXPECT_EQ(event.status.error().code, ErrorCode::kDeadline);
    EXPECT_TRUE(event.batches.empty());
  }
}

// The event fails by a matrix of expert 0 while the other reads are still under way; they hold both
// slots. The next event waits for them instead of failing as well.
TEST(RamTierReadTest, TheEventAfterAnErrorWaitsForSlotsThatComeBack) {
  RigOptions options = bare("");
  const std::string faults =
      range_of(options, 0, 0, ExpertMatrix::kDown) + ",errno=EIO;until=6,delay=200ms";
  options.faults = faults.c_str();
  TierRig rig(options);
  const auto failed = rig.decode(0, {0, 1});
  ASSERT_FALSE(failed.status);
  EXPECT_EQ(failed.status.error().code, ErrorCode::kIo);
  EXPECT_EQ(rig.pool().empty_count(0), 0u);
  rig.expect_decode(0, {4, 5});
  rig.settle();
  rig.expect_baseline();
}

class RamTierStressTest : public ::testing::TestWithParam<uint64_t> {};

// Thousands of events in random order over a drive that does everything wrong now and then.
TEST_P(RamTierStressTest, EveryByteHandedOutIsTheFiles) {
  const uint64_t seed = GetParam();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  const std::string faults = fmt::format(
      "seed={};p=0.01,errno=EIO;p=0.02,short=511;p=0.01,short=0;p=0.01,corrupt=flip;"
      "p=0.01,corrupt=stale;p=0.01,corrupt=elsewhere;p=0.01,corrupt=torn;p=0.01,errno=EAGAIN;"
      "p=0.02,delay=2ms;p=0.0005,delay=150ms",
      seed);
  Rng rng(seed);
  RigOptions options;
  options.faults = faults.c_str();
  options.deadline_ns = 100 * kMillisecond;
  options.kept = static_cast<uint32_t>(rng.below(4));
  options.staging = 2 + static_cast<uint32_t>(rng.below(4));
  options.odd_layers_down = rng.below(2) * 4096;
  options.reads_max = static_cast<uint32_t>(3 + rng.below(20));
  TierRig rig(options);
  uint32_t failed = 0;
  constexpr uint32_t kEvents = 1200;
  for (uint32_t i = 0; i < kEvents; ++i) {
    std::vector<ExpertCall> calls;
    for (uint32_t e = 0; e < 8; ++e)
      if (rng.below(3) == 0)
        calls.push_back({ExpertId(e), 1 + static_cast<uint32_t>(rng.below(9))});
    for (size_t c = calls.size(); c > 1; --c) std::swap(calls[c - 1], calls[rng.below(c)]);
    const Phase phase = rng.below(4) == 0 ? Phase::kPrefill : Phase::kDecode;
    // Guesses, half of them wrong, for this event or one that comes later.
    std::vector<ExpertId> guesses;
    for (uint32_t e = 0; e < 8; ++e)
      if (rng.below(4) == 0) guesses.push_back(ExpertId(e));
    rig.tier().prefetch(LayerIndex((i + static_cast<uint32_t>(rng.below(2))) % 3), guesses);
    const auto event = rig.visit(i % 3, calls, phase);
    ASSERT_EQ(event.wrong_bytes, 0u) << "event " << i;
    failed += event.status ? 0 : 1;
    if (!event.status) sleep_ms(10);  // no storm of events while a late read holds the last slot
    ASSERT_TRUE(!event.status || event.experts().size() == calls.size()) << "event " << i;
  }
  EXPECT_LT(failed, kEvents / 10);  // two wrong reads of one matrix in a row, or a late one
  EXPECT_GT(rig.tier().counters().rereads, 20u);
  EXPECT_GT(rig.tier().counters().prefetches_useful, 50u);
  rig.settle();
  for (uint32_t layer = 0; layer < 3; ++layer) rig.decode(layer, {});  // no guess is left over
  rig.settle();
  rig.expect_baseline();
}

INSTANTIATE_TEST_SUITE_P(Seeds, RamTierStressTest, ::testing::Values(1, 2, 3, 4));

}  // namespace
}  // namespace offstage
