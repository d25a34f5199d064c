// Experts in VRAM on the simulated device: whole or not at all, only where it pays, and nothing
// that a device does ends more than the tier.
#include "cache/vram_tier.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "tests/cache/vram_rig.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using namespace testing::vram;

TEST(VramTier, AnExpertIsThereOnceItsCopyHasArrived) {
  Rig rig;
  EXPECT_EQ(rig.tier->slots_per_layer(), 2u);
  EXPECT_EQ(rig.read(), (std::vector<int>{0, 0, 0, 0}));
  ASSERT_EQ(rig.promote(2), Promotion::kStarted);
  EXPECT_EQ(rig.promote(2), Promotion::kThere);
  rig.clock.advance_ns(kCopyNs - 1);
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(2)));
  rig.clock.advance_ns(1);
  const auto arrived = rig.tier->poll();
  ASSERT_EQ(arrived.size(), 1u);
  EXPECT_EQ(arrived[0].layer, LayerIndex(1));
  EXPECT_EQ(arrived[0].expert, ExpertId(2));
  EXPECT_TRUE(rig.tier->is_resident(LayerIndex(1), ExpertId(2)));
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(0), ExpertId(2)));
  EXPECT_EQ(rig.read(), (std::vector<int>{0, 0, 3, 0}));
}

TEST(VramTier, TheLeastExpectedLeavesAndKernelsUnderWayKeepIt) {
  Rig rig;
  rig.bring(3);
  rig.bring(2);
  std::vector<int> seen;
  rig.launch_reader(&seen);  // 100 µs with both; the simulated device ends the program for a race
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(3)));
  EXPECT_TRUE(rig.tier->is_resident(LayerIndex(1), ExpertId(2)));
  rig.clock.advance_ns(kCopyNs + 1'000);
  EXPECT_TRUE(rig.tier->poll().empty());  // behind the kernel
  rig.settle();
  EXPECT_EQ(rig.tier->poll().size(), 1u);
  EXPECT_EQ(seen, (std::vector<int>{0, 0, 3, 4}));
  EXPECT_EQ(rig.read(), (std::vector<int>{1, 0, 3, 0}));
  EXPECT_EQ(rig.tier->counters().evictions, 1u);
}

TEST(VramTier, APromotionMustPay) {
  Rig rig;
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 1}, 1'000), Promotion::kUnpaid);
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 2}, 1'000), Promotion::kStarted);
  EXPECT_EQ(rig.promote(2, {0, 0, 2, 2}, 1'000), Promotion::kStarted);
  EXPECT_EQ(rig.promote(1, {0, 9, 2, 2}, 1'000), Promotion::kBusy);
  rig.settle();
  EXPECT_EQ(rig.tier->poll().size(), 2u);
  rig.settle();
  // What the one that leaves saves is lost.
  EXPECT_EQ(rig.promote(1, {0, 3, 2, 2}, 1'000), Promotion::kUnpaid);
  EXPECT_EQ(rig.tier->counters().unpaid, 2u);
  EXPECT_EQ(rig.tier->counters().busy, 1u);
}

TEST(VramTier, CopiesTakeAShareOfTheTokensTime) {
  Rig rig;
  rig.tier->token_done(4);  // one token's share is all that is saved up: 1 ns
  EXPECT_EQ(rig.promote(0), Promotion::kStarted);
  EXPECT_EQ(rig.promote(1), Promotion::kNoTime);
  rig.tier->token_done(2'000);  // a debt of 1,023 ns isn't paid by 500
  EXPECT_EQ(rig.promote(1), Promotion::kNoTime);
  rig.tier->token_done(4'000);
  EXPECT_EQ(rig.promote(1), Promotion::kStarted);
}

TEST(VramTier, MemoryRefusedAtStartMeansFewerSlots) {
  Rig fewer({{SimDeviceFaultKind::kOutOfMemory, 1, 2}}, 4);
  ASSERT_TRUE(fewer.tier);
  EXPECT_EQ(fewer.tier->slots_per_layer(), 2u);
  ASSERT_EQ(fewer.notices.list().size(), 1u);
  EXPECT_THAT(fewer.notices.list()[0].text, HasSubstr("2 experts per layer instead of 4"));
  fewer.bring(1);
  Rig none({{SimDeviceFaultKind::kOutOfMemory, 1, 100}}, 4);
  ASSERT_TRUE(none.refusal);
  EXPECT_EQ(none.refusal->code, ErrorCode::kOutOfMemory);
  Rig floor({}, 0);
  ASSERT_TRUE(floor.refusal);
  EXPECT_EQ(floor.refusal->code, ErrorCode::kBudget);
  EXPECT_THAT(floor.refusal->message, HasSubstr("2304"));
}

TEST(VramTier, AFailedCopyEmptiesItForGoodAndSaysSoOnce) {
  Rig rig({{SimDeviceFaultKind::kCopyError, 4, 1}});  // the second expert's first matrix
  rig.bring(1);
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  rig.settle();
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(1)));
  EXPECT_EQ(rig.promote(2), Promotion::kLost);
  EXPECT_TRUE(rig.tier->poll().empty());
  ASSERT_EQ(rig.notices.list().size(), 1u);
  EXPECT_THAT(rig.notices.list()[0].text, HasSubstr("simulated fault"));
}

// Marks: the first is of the copy itself.
TEST(VramTier, ACopyThatNeverEndsIsGivenUpAtItsDeadline) {
  Rig rig({{SimDeviceFaultKind::kNeverReached, 1, 1}});
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  for (int i = 0; i < 3; ++i) {
    rig.settle();
    EXPECT_TRUE(rig.tier->poll().empty());
  }
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(0)));
  EXPECT_FALSE(rig.tier->is_lost());
  EXPECT_EQ(rig.read(), (std::vector<int>{0, 0, 0, 0}));
  rig.clock.advance_ns(kDeadlineNs);
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_TRUE(rig.tier->is_lost());
  ASSERT_EQ(rig.notices.list().size(), 1u);
  EXPECT_THAT(rig.notices.list()[0].text, HasSubstr("isn't done after 5 ms"));
}

// Copies of 1,024 bytes take 4 µs, latencies and all, and 1 byte a ns was believed.
TEST(VramTier, WhatCopiesCostIsLearnedFromThem) {
  Rig rig({}, 3);
  rig.promote(0);
  rig.clock.advance_ns(kCopyNs - 1);
  EXPECT_TRUE(rig.tier->poll().empty());  // so it takes longer than that
  rig.clock.advance_ns(1);
  EXPECT_EQ(rig.tier->poll().size(), 1u);
  rig.settle();
  // A quarter of the way from 1 ns a byte to 4: what saves 1,700 ns doesn't pay any more.
  EXPECT_EQ(rig.tier->copy_ns(LayerIndex(1)), 1'773);
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 1}, 1'700), Promotion::kUnpaid);
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 1}, 1'800), Promotion::kStarted);
}

// A reader is still at it when the expert is told to leave, and the newcomer's copy must wait until
// it is away: for a race the simulated device ends the program.
TEST(VramTier, WhoLeavesIsBroughtAwayFirst) {
  Rig rig({}, 1, 1);
  rig.bring(3);
  rig.room = *rig.device.allocate_pinned(kExpertBytes);
  std::vector<int> seen;
  rig.launch_reader(&seen);
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  EXPECT_EQ(rig.left, (std::vector<uint32_t>{3}));
  rig.clock.advance_ns(100'000 + kCopyNs);
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_TRUE(rig.tier->departed().empty());
  rig.settle();
  ASSERT_EQ(rig.tier->poll().size(), 1u);
  ASSERT_EQ(rig.tier->departed().size(), 1u);
  EXPECT_EQ(rig.tier->departed()[0].layer, LayerIndex(1));
  EXPECT_EQ(rig.tier->departed()[0].expert, ExpertId(3));
  EXPECT_EQ(std::count(rig.room, rig.room + kExpertBytes, std::byte{4}), 1024);
  EXPECT_EQ(seen, (std::vector<int>{0, 0, 0, 4}));
  EXPECT_EQ(rig.tier->counters().demotions, 1u);
  EXPECT_EQ(rig.tier->counters().demoted_bytes, kExpertBytes);
  rig.settle();
  EXPECT_EQ(rig.read(), (std::vector<int>{1, 0, 0, 0}));
  // A visitor leaves like a guest, and an expert nobody has room for is dropped.
  ASSERT_EQ(rig.visit(1, {}), Visit::kLeaves);
  rig.settle();
  rig.tier->end_visits();
  rig.settle();
  rig.room = nullptr;
  ASSERT_EQ(rig.promote(1, {1, 9, 0, 0}), Promotion::kStarted);
  EXPECT_EQ(rig.left, (std::vector<uint32_t>{3, 0}));
  rig.settle();
  EXPECT_EQ(rig.tier->poll().size(), 1u);
  EXPECT_TRUE(rig.tier->departed().empty());
  EXPECT_EQ(rig.tier->counters().demotions, 1u);
}

TEST(VramTier, ADepartureThatFailsEndsTheTier) {
  Rig rig({{SimDeviceFaultKind::kCopyError, 4, 1}}, 1);  // the first matrix brought away
  rig.bring(3);
  rig.room = *rig.device.allocate_pinned(kExpertBytes);
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  rig.settle();
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_TRUE(rig.tier->departed().empty());
  EXPECT_TRUE(rig.tier->is_lost());
}

TEST(VramTier, LayersWithoutKernelsGetNoSlots) {
  ManualClock clock;
  Notices notices;
  SimDevice device(small_card(), clock);
  VramPlan plan;
  plan.n_experts = kExperts;
  plan.matrix_bytes = {kMatrixBytes, {}, kMatrixBytes};
  plan.budget_bytes = kTableBytes + 2 * 3 * kExpertBytes;
  auto tier = VramTier::create({device, clock, notices, Rig::write_entry}, plan);
  ASSERT_TRUE(tier);
  EXPECT_EQ((*tier)->slots_per_layer(), 3u);
  EXPECT_TRUE((*tier)->has_slots(LayerIndex(2)));
  EXPECT_FALSE((*tier)->has_slots(LayerIndex(1)));
  EXPECT_EQ((*tier)->offset(LayerIndex(2), ExpertMatrix::kDown), 768u);
  const std::vector<double> calls(kExperts, 100);
  EXPECT_EQ((*tier)->promote(LayerIndex(1), ExpertId(0), {}, calls, 1'000), Promotion::kNoSlot);
}

}  // namespace
}  // namespace offstage
