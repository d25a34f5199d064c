// Beside a faster tier: what that one has needs no slot here, what it is being given stays, and
// what it fails to compute is brought after all.
#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using testing::RigOptions;
using testing::TierRig;

std::vector<ExpertCall> calls_of(std::initializer_list<uint32_t> experts) {
  std::vector<ExpertCall> calls;
  for (const uint32_t e : experts) calls.push_back({ExpertId(e), 1});
  return calls;
}

std::vector<uint32_t> take_all(TierRig& rig) {
  std::vector<uint32_t> experts;
  while (true) {
    auto pinned = rig.tier().next();
    EXPECT_TRUE(pinned);
    if (!pinned || pinned->experts().empty()) return experts;
    for (const ReadyExpert& ready : pinned->experts()) experts.push_back(ready.expert.value);
  }
}

TEST(RamTierElsewhereTest, WhatAnotherTierHasLeavesFirst) {
  TierRig rig({});  // two stay
  rig.expect_decode(0, {1, 2});
  rig.elsewhere.insert({0, 2});
  rig.expect_decode(0, {1});
  rig.expect_decode(0, {3});  // least recently called is 2 anyway; now let it be the latest
  EXPECT_FALSE(rig.tier().is_resident(LayerIndex(0), ExpertId(2)));
  EXPECT_TRUE(rig.tier().is_at_hand(LayerIndex(0), ExpertId(2)));
  rig.elsewhere = {{0, 3}};
  rig.expect_decode(0, {4});
  EXPECT_FALSE(rig.tier().is_resident(LayerIndex(0), ExpertId(3)));
  EXPECT_TRUE(rig.tier().is_resident(LayerIndex(0), ExpertId(1)));  // the oldest, and nowhere else
  rig.expect_baseline();
}

TEST(RamTierElsewhereTest, WhatAnotherTierHasIsNotGuessed) {
  TierRig rig({});
  rig.elsewhere.insert({1, 5});
  const std::vector<ExpertId> guesses = {ExpertId(5), ExpertId(6)};
  rig.tier().prefetch(LayerIndex(1), guesses);
  EXPECT_EQ(rig.tier().counters().prefetches, 1u);
  rig.expect_decode(1, {6});
  rig.settle();
}

TEST(RamTierElsewhereTest, CallsThatOthersTookCanComeBackWithinTheEvent) {
  TierRig rig({});
  rig.expect_decode(0, {1});
  const auto calls = calls_of({1, 4, 6});
  const LayerEvent event = {LayerIndex(0), calls};
  rig.tier().begin(event, std::span(calls).subspan(1, 1), Phase::kDecode);
  EXPECT_EQ(take_all(rig), (std::vector<uint32_t>{4}));
  const auto lost = calls_of({1, 6});
  rig.tier().call(lost);
  auto brought = take_all(rig);
  std::sort(brought.begin(), brought.end());
  EXPECT_EQ(brought, (std::vector<uint32_t>{1, 6}));
  rig.tier().end();
  EXPECT_EQ(rig.tier().counters().ram_hits, 1u);
  EXPECT_EQ(rig.tier().counters().drive_reads, 3u);
  rig.expect_baseline();
}

TEST(RamTierElsewhereTest, WhatWasHandedOutCanBeHandedOutAgain) {
  TierRig rig({});
  rig.expect_decode(0, {1});
  EXPECT_TRUE(rig.tier().is_ready(LayerIndex(0), ExpertId(1)));
  EXPECT_FALSE(rig.tier().is_ready(LayerIndex(0), ExpertId(4)));
  const auto calls = calls_of({1, 4});
  rig.tier().begin(LayerIndex(0), calls, Phase::kDecode);
  EXPECT_EQ(take_all(rig), (std::vector<uint32_t>{1, 4}));
  rig.tier().call_again(calls);
  auto again = take_all(rig);
  std::sort(again.begin(), again.end());
  EXPECT_EQ(again, (std::vector<uint32_t>{1, 4}));
  rig.tier().end();
  EXPECT_EQ(rig.tier().counters().ram_hits, 1u);
  EXPECT_EQ(rig.tier().counters().drive_reads, 2u);
  rig.expect_baseline();
}

TEST(RamTierElsewhereTest, AHeldExpertStaysAndNoMoreAreHeldThanTheLayerKeeps) {
  RigOptions options;
  options.kept = 3;
  options.lent = 1;  // a prompt leaves two
  TierRig rig(options);
  rig.expect_decode(0, {1, 2, 3});
  const auto held = rig.tier().hold(LayerIndex(0), ExpertId(1));
  ASSERT_TRUE(held);
  for (uint32_t m = 0; m < kExpertMatrices; ++m) {
    const auto truth = rig.truth(LayerIndex(0), ExpertId(1), static_cast<ExpertMatrix>(m));
    EXPECT_TRUE(std::equal(truth.begin(), truth.end(), (*held)[m].begin(), (*held)[m].end()));
  }
  ASSERT_TRUE(rig.tier().hold(LayerIndex(0), ExpertId(2)));
  EXPECT_FALSE(rig.tier().hold(LayerIndex(0), ExpertId(3)));  // a prompt couldn't go back to two
  EXPECT_FALSE(rig.tier().hold(LayerIndex(0), ExpertId(7)));  // not here
  EXPECT_FALSE(rig.tier().hold(LayerIndex(1), ExpertId(1)));
  rig.expect_decode(0, {4, 5, 6});
  rig.expect_prefill(0);
  for (const uint32_t e : {1u, 2u}) {
    EXPECT_TRUE(rig.tier().is_resident(LayerIndex(0), ExpertId(e))) << e;
    rig.tier().release(LayerIndex(0), ExpertId(e));
  }
  rig.expect_decode(0, {4, 5, 6});
  EXPECT_FALSE(rig.tier().is_resident(LayerIndex(0), ExpertId(1)));
  EXPECT_TRUE(rig.tier().hold(LayerIndex(0), ExpertId(4)));
  rig.tier().release(LayerIndex(0), ExpertId(4));
  rig.expect_baseline();
}

}  // namespace
}  // namespace offstage
