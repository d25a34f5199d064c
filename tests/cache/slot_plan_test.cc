#include "cache/slot_plan.h"

#include <gmock/gmock.h>

#include <numeric>

namespace offstage {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kSmall = 3 * 4096, kLarge = 4 * 4096;

ExpertLayerFacts layer_of(uint64_t down_bytes) {
  return {ExpertTensorFacts{"g", 0, 0, 0, 4096}, ExpertTensorFacts{"u", 1, 0, 0, 4096},
          ExpertTensorFacts{"d", 2, 0, 0, down_bytes}};
}

ExpertLayout uniform(uint32_t n_layers, uint32_t n_experts) {
  return ExpertLayout(std::vector<ExpertLayerFacts>(n_layers, layer_of(4096)), n_experts);
}

// Layers 1 and 3 are larger: two classes of two layers.
ExpertLayout mixed(uint32_t n_experts) {
  return ExpertLayout({layer_of(4096), layer_of(8192), layer_of(4096), layer_of(8192)}, n_experts);
}

SlotPlan plan_of(const ExpertLayout& layout, uint32_t n_used, uint64_t budget) {
  const auto plan = plan_slots(layout, n_used, budget);
  EXPECT_TRUE(plan) << (plan ? "" : plan.error().message);
  return plan ? *plan : SlotPlan();
}

// What must hold of every plan.
void expect_sound(const SlotPlan& plan, const ExpertLayout& layout, uint64_t budget) {
  EXPECT_LE(plan.bytes(), budget);
  uint64_t bytes = 0, slots = 0;
  for (uint32_t c = 0; c < layout.n_classes(); ++c) {
    const SlotClassPlan& slot_class = plan.classes[c];
    uint32_t kept = 0;
    for (uint32_t l = 0; l < layout.n_layers(); ++l)
      if (layout.slot_class(LayerIndex(l)) == c) kept += plan.kept_per_layer[l];
    const uint32_t experts = layout.n_experts() * layout.class_layers(c);
    EXPECT_EQ(slot_class.slot_bytes, layout.class_bytes(c));
    EXPECT_EQ(slot_class.n_slots, slot_class.n_staging + kept) << "budget " << budget;
    EXPECT_LE(slot_class.n_slots, experts) << "budget " << budget;
    // With no staging at all, every expert has its own slot.
    EXPECT_TRUE(slot_class.n_staging >= 2 || kept == experts) << "budget " << budget;
    bytes += slot_class.slot_bytes * slot_class.n_slots;
    slots += slot_class.n_slots;
  }
  EXPECT_EQ(plan.bytes(), bytes);
  EXPECT_EQ(plan.n_slots(), slots);
  for (uint32_t l = 0; l < layout.n_layers(); ++l) {
    const LayerIndex layer(l);
    EXPECT_LE(plan.lent_in_prefill(layer), plan.kept_per_layer[l] / 8);
    EXPECT_LT(plan.streaming_slots(layout, layer), layout.n_experts() + layout.n_layers());
    if (plan.kept_per_layer[l] == layout.n_experts()) {
      EXPECT_EQ(plan.lent_in_prefill(layer), 0u);
    }
  }
}

TEST(SlotPlanTest, LayersLendAPromptWhatALayersExpertsStreamThrough) {
  const ExpertLayout layout = uniform(4, 64);
  const SlotPlan plan = plan_of(layout, 4, 120 * kSmall);  // 5 staging, 28 or 29 kept
  EXPECT_THAT(plan.lent_per_layer, Each(3u));
  EXPECT_EQ(plan.streaming_slots(layout, LayerIndex(2)), 5u + 4 * 3);
  expect_sound(plan, layout, 120 * kSmall);
  // Few are kept: none is lent. All are kept: none is missing.
  EXPECT_THAT(plan_of(layout, 4, 30 * kSmall).lent_per_layer, Each(0u));
  EXPECT_THAT(plan_of(layout, 4, 256 * kSmall).lent_per_layer, Each(0u));
}

TEST(SlotPlanTest, FloorIsTwoSlotsOfEachClass) {
  EXPECT_EQ(slot_floor_bytes(uniform(4, 8)), 2 * kSmall);
  EXPECT_EQ(slot_floor_bytes(mixed(8)), 2 * kSmall + 2 * kLarge);
  EXPECT_EQ(slot_floor_bytes(uniform(1, 1)), kSmall);
}

TEST(SlotPlanTest, AtTheFloorNothingIsKept) {
  const ExpertLayout layout = mixed(8);
  const SlotPlan plan = plan_of(layout, 2, slot_floor_bytes(layout));
  EXPECT_THAT(plan.kept_per_layer, ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(plan.classes[0].n_staging, 2u);
  EXPECT_EQ(plan.classes[1].n_staging, 2u);
  expect_sound(plan, layout, slot_floor_bytes(layout));
}

TEST(SlotPlanTest, BelowTheFloorIsRefusedWithBothNumbers) {
  const auto plan = plan_slots(uniform(4, 8), 2, 2 * kSmall - 1);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, ErrorCode::kBudget);
  EXPECT_THAT(plan.error().message, HasSubstr("24.00 KiB"));  // needed, and left when rounded
}

TEST(SlotPlanTest, StagingGrowsToOneLayersCallsAndOneMore) {
  const ExpertLayout layout = uniform(4, 64);
  EXPECT_EQ(plan_of(layout, 8, 128 * kSmall).classes[0].n_staging, 9u);
  // A quarter of the budget at most.
  EXPECT_EQ(plan_of(layout, 8, 16 * kSmall).classes[0].n_staging, 4u);
}

TEST(SlotPlanTest, LayersGetEqualSharesAndTheFirstOnesWhatIsLeft) {
  const SlotPlan plan = plan_of(uniform(4, 64), 2, (3 + 4 * 10 + 2) * kSmall);
  EXPECT_EQ(plan.classes[0].n_staging, 3u);
  EXPECT_THAT(plan.kept_per_layer, ElementsAre(11, 11, 10, 10));
}

TEST(SlotPlanTest, AFullBudgetKeepsEverythingAndNoSlotMore) {
  const ExpertLayout layout = uniform(4, 8);
  for (const uint64_t budget : {32 * kSmall, 33 * kSmall, 1000 * kSmall}) {
    const SlotPlan plan = plan_of(layout, 2, budget);
    EXPECT_THAT(plan.kept_per_layer, Each(8u)) << budget;
    EXPECT_EQ(plan.n_slots(), 32u) << budget;
    expect_sound(plan, layout, budget);
  }
  EXPECT_LT(plan_of(layout, 2, 32 * kSmall - 1).kept_per_layer[3], 8u);
}

TEST(SlotPlanTest, ModelsSmallerThanTheStagingGetOneSlotPerExpert) {
  for (const uint32_t n_experts : {1u, 2u, 3u}) {
    const ExpertLayout layout = uniform(1, n_experts);
    const SlotPlan plan = plan_of(layout, n_experts, 1000 * kSmall);
    EXPECT_EQ(plan.n_slots(), n_experts);
    EXPECT_THAT(plan.kept_per_layer, Each(n_experts));
    expect_sound(plan, layout, 1000 * kSmall);
  }
}

TEST(SlotPlanTest, EveryBudgetOfAMixedFileGivesASoundPlanThatSpendsIt) {
  const ExpertLayout layout = mixed(6);
  const uint64_t all = 12 * kSmall + 12 * kLarge;
  uint32_t kept_last = 0;
  for (uint64_t budget = slot_floor_bytes(layout); budget <= all + 8 * kLarge; budget += 4096) {
    const SlotPlan plan = plan_of(layout, 2, budget);
    expect_sound(plan, layout, budget);
    const uint32_t kept =
        std::accumulate(plan.kept_per_layer.begin(), plan.kept_per_layer.end(), 0u);
    kept_last = kept;
    // Nothing that would still buy a kept expert is left over.
    EXPECT_TRUE(kept == 24 || budget - plan.bytes() < kLarge) << "budget " << budget;
  }
  EXPECT_EQ(kept_last, 24u);
}

}  // namespace
}  // namespace offstage
