// The state machine that keeps drives and kernels out of each other's slots (promise 3).
#include "cache/slot_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "base/check.h"
#include "io/extent.h"

namespace offstage {
namespace {

constexpr LayerIndex kLayer(3);
constexpr ExpertId kExpert(5);

class SlotPoolTest : public ::testing::Test {
 protected:
  SlotPoolTest() {
    SlotPlan plan;
    plan.classes = {{8192, 3, 2}, {12288, 2, 2}};
    auto pool = SlotPool::create(plan, notices_);
    CHECK(pool.has_value());
    pool_.emplace(std::move(*pool));
  }
  SlotPool& pool() { return *pool_; }

  SlotIndex in_state(SlotState state) {
    const SlotIndex slot = *pool().take_empty(0);
    if (state == SlotState::kEmpty) return slot;
    pool().begin_read(slot, kLayer, kExpert);
    if (state == SlotState::kReading) return slot;
    pool().verified(slot);
    if (state == SlotState::kInUse) pool().pin(slot);
    return slot;
  }

  Notices notices_;
  std::optional<SlotPool> pool_;
};
using SlotPoolDeathTest = SlotPoolTest;

TEST_F(SlotPoolTest, SlotsAreAlignedApartAndOfTheirClass) {
  ASSERT_EQ(pool().size(), 5u);
  EXPECT_EQ(pool().memory().size(), kHugePageBytes);  // no slot in small pages
  std::set<const std::byte*> starts;
  for (uint32_t i = 0; i < 5; ++i) {
    const Slot& slot = pool()[SlotIndex(i)];
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slot.memory) % kSectorBytes, 0u);
    EXPECT_GE(slot.memory, pool().memory().data());
    EXPECT_LE(slot.memory + (slot.slot_class == 0 ? 8192 : 12288),
              pool().memory().data() + pool().memory().size());
    starts.insert(slot.memory);
  }
  EXPECT_EQ(starts.size(), 5u);
  const std::byte* before = nullptr;
  for (const std::byte* start : starts) {
    EXPECT_TRUE(before == nullptr || start - before >= 8192);
    before = start;
  }
}

TEST_F(SlotPoolTest, EmptySlotsRunOutByClassAndComeBack) {
  std::set<SlotIndex> taken;
  for (int i = 0; i < 3; ++i) taken.insert(*pool().take_empty(0));
  EXPECT_EQ(taken.size(), 3u);
  EXPECT_FALSE(pool().take_empty(0));
  EXPECT_EQ(pool().empty_count(1), 2u);
  const SlotIndex slot = *taken.begin();
  pool().begin_read(slot, kLayer, kExpert);
  pool().verified(slot);
  pool().clear(slot);
  EXPECT_EQ(pool().empty_count(0), 1u);
  EXPECT_EQ(pool().take_empty(0), slot);
}

TEST_F(SlotPoolTest, GoesTheWholeWayRound) {
  const SlotIndex slot = *pool().take_empty(0);
  for (uint32_t round = 1; round <= 3; ++round) {
    EXPECT_EQ(pool()[slot].state, SlotState::kEmpty);
    pool().begin_read(slot, kLayer, kExpert);
    EXPECT_EQ(pool()[slot].state, SlotState::kReading);
    EXPECT_EQ(pool()[slot].generation, round);
    EXPECT_EQ(pool()[slot].layer, kLayer);
    EXPECT_EQ(pool()[slot].expert, kExpert);
    pool().read_started(slot);
    pool().read_started(slot);
    pool().read_returned(slot);
    pool().read_returned(slot);
    pool().verified(slot);
    EXPECT_EQ(pool()[slot].state, SlotState::kVerified);
    pool().pin(slot);
    pool().pin(slot);
    pool().unpin(slot);
    EXPECT_EQ(pool()[slot].state, SlotState::kInUse);
    pool().unpin(slot);
    EXPECT_EQ(pool()[slot].state, SlotState::kVerified);
    pool().clear(slot);
    EXPECT_EQ(pool().take_empty(0), slot);
  }
}

TEST_F(SlotPoolTest, AGivenUpReadEmptiesWithoutBeingVerified) {
  const SlotIndex slot = in_state(SlotState::kReading);
  pool().read_started(slot);
  pool().read_returned(slot);
  pool().clear(slot);
  EXPECT_EQ(pool()[slot].state, SlotState::kEmpty);
}

#ifndef NDEBUG
TEST_F(SlotPoolTest, AnEmptiedSlotHoldsNoWeights) {
  const SlotIndex slot = in_state(SlotState::kVerified);
  std::memset(pool()[slot].memory, 1, 8192);
  pool().clear(slot);
  for (size_t i = 0; i < 8192; ++i) ASSERT_EQ(pool()[slot].memory[i], std::byte{0xFF});
}
#endif

TEST_F(SlotPoolDeathTest, ReadsBeginOnlyInEmptySlots) {
  for (const SlotState state : {SlotState::kReading, SlotState::kVerified, SlotState::kInUse}) {
    const SlotIndex slot = in_state(state);
    EXPECT_DEATH(pool().begin_read(slot, kLayer, kExpert), "CHECK");
  }
}

TEST_F(SlotPoolDeathTest, BuffersGoToTheDriveOnlyInReading) {
  EXPECT_DEATH(pool().read_started(in_state(SlotState::kEmpty)), "CHECK");
  EXPECT_DEATH(pool().read_started(in_state(SlotState::kVerified)), "CHECK");
  EXPECT_DEATH(pool().read_started(in_state(SlotState::kInUse)), "CHECK");
  EXPECT_DEATH(pool().read_returned(in_state(SlotState::kReading)), "reads_outstanding");
}

TEST_F(SlotPoolDeathTest, NothingIsVerifiedWhileTheDriveMayWrite) {
  const SlotIndex slot = in_state(SlotState::kReading);
  pool().read_started(slot);
  EXPECT_DEATH(pool().verified(slot), "reads_outstanding");
  EXPECT_DEATH(pool().verified(in_state(SlotState::kEmpty)), "CHECK");
  EXPECT_DEATH(pool().verified(in_state(SlotState::kInUse)), "CHECK");
}

TEST_F(SlotPoolDeathTest, KernelsSeeOnlyVerifiedSlots) {
  EXPECT_DEATH(pool().pin(in_state(SlotState::kEmpty)), "CHECK");
  EXPECT_DEATH(pool().pin(in_state(SlotState::kReading)), "CHECK");
  EXPECT_DEATH(pool().unpin(in_state(SlotState::kVerified)), "CHECK");
}

TEST_F(SlotPoolDeathTest, NoSlotEmptiesWhileReadOrPinned) {
  const SlotIndex reading = in_state(SlotState::kReading);
  pool().read_started(reading);
  EXPECT_DEATH(pool().clear(reading), "reads_outstanding");
  EXPECT_DEATH(pool().clear(in_state(SlotState::kInUse)), "CHECK");
  EXPECT_DEATH(pool().clear(in_state(SlotState::kEmpty)), "CHECK");
}

// A state each, and one memory a class: for reads that bring no bytes.
TEST(SharedSlotPool, SlotsOfAClassLieInOnePlace) {
  SlotPlan plan;
  plan.classes = {{8192, 1000, 2}, {12288, 0, 0}, {12288, 7, 2}};
  Notices notices;
  const auto pool = SlotPool::create_shared(plan, notices);
  ASSERT_TRUE(pool) << pool.error().message;
  ASSERT_EQ(pool->size(), 1007u);
  EXPECT_EQ(pool->memory().size(), 8192u + 12288u);
  EXPECT_EQ((*pool)[SlotIndex(0)].memory, (*pool)[SlotIndex(999)].memory);
  EXPECT_EQ((*pool)[SlotIndex(1000)].memory, (*pool)[SlotIndex(0)].memory + 8192);
  EXPECT_EQ(pool->empty_count(0), 1000u);
}

}  // namespace
}  // namespace offstage
