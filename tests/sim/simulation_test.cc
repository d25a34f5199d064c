// Seeded faults against the whole of the cache (RELIABILITY: what is held every time).
#include "tests/sim/simulation.h"

#include <gtest/gtest.h>

#include "tests/sim/campaign.h"

namespace offstage::sim {
namespace {

// 2,400 seeds, eight tests that run beside each other; a quarter of them under sanitizers.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSeedsPerTest = 75;
#else
constexpr uint64_t kSeedsPerTest = 300;
#endif

class SimulationTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SimulationTest, HoldsWhatIsPromised) {
  const CampaignTotals totals = run_seeds(1 + GetParam() * 1000, kSeedsPerTest);
  EXPECT_TRUE(totals.violation.empty()) << totals.violation;
  // The seeds are about something.
  EXPECT_GT(totals.faults, 8 * totals.seeds);
  EXPECT_GT(totals.rereads, totals.seeds / 2);
  EXPECT_GT(totals.hits, totals.seeds);
  EXPECT_GT(totals.prefetches_useful, totals.seeds);
  EXPECT_GT(totals.deadline_misses, totals.seeds / 4);
  EXPECT_LT(totals.failed_forwards, totals.forwards / 3);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimulationTest, ::testing::Range(uint64_t{0}, uint64_t{8}));

TEST(SimulationReplayTest, ASeedIsTheSameEveryTime) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const SimOutcome first = simulate(draw_case(seed), true);
    const SimOutcome again = simulate(draw_case(seed), true);
    EXPECT_EQ(first.tokens_hash, again.tokens_hash) << "seed " << seed;
    EXPECT_EQ(first.log, again.log) << "seed " << seed;
  }
}

}  // namespace
}  // namespace offstage::sim
