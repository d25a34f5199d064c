#include "plan/needs.h"

#include <gtest/gtest.h>

#include "plan/model_shape.h"

namespace offstage {
namespace {

PlannedModel model_of(const char* name, QuantMix mix = QuantMix::kQ4_K_M) {
  const auto shape = find_shape(name);
  EXPECT_TRUE(shape);
  return imagine_model(*spec_of(*shape), shape->tied_embedding, mix);
}

uint64_t kv_of(const char* name) {
  return kv_needs(model_of(name).spec, KvType::kF16, KvType::kF16, 4096).bytes_per_token;
}

// K and V of every KV head in f16; a latent has one row for all heads, and V is its beginning.
TEST(Needs, KvPerToken) {
  EXPECT_EQ(kv_of("mixtral-8x7b"), 32u * 8 * 128 * 2 * 2);
  EXPECT_EQ(kv_of("dense-7b"), 32u * 32 * 128 * 2 * 2);
  EXPECT_EQ(kv_of("qwen3-30b-a3b"), 48u * 4 * 128 * 2 * 2);
  EXPECT_EQ(kv_of("deepseek-v3"), 61u * (512 + 64) * 2);
  EXPECT_EQ(kv_of("gpt-oss-20b"), 24u * 8 * 64 * 2 * 2);
}

TEST(Needs, WindowsLeavePartOfTheKvUnread) {
  const KvNeeds kv = kv_needs(model_of("gpt-oss-20b").spec, KvType::kF16, KvType::kF16, 4096);
  EXPECT_EQ(kv.windowed_layers, 12u);
  EXPECT_EQ(kv.window, 128u);
  EXPECT_EQ(kv.out_of_window_bytes, 12u * (4096 - 128) * 8 * 64 * 2 * 2);
  EXPECT_EQ(
      kv_needs(model_of("dense-7b").spec, KvType::kF16, KvType::kF16, 4096).out_of_window_bytes,
      0u);
}

// What fits runs, and one byte less than the floor doesn't: the floor is plan_memory()'s.
TEST(Needs, TheFloorIsTheLeastThatRuns) {
  const RuntimeOptions options;
  for (const char* name : {"mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "dense-7b"}) {
    const PlannedModel model = model_of(name);
    const auto floor = floor_ram_bytes(model, options);
    ASSERT_TRUE(floor) << floor.error().message;
    EXPECT_TRUE(plan_for(model, options, *floor)) << name;
    const auto below = plan_for(model, options, *floor - (2u << 20));
    ASSERT_FALSE(below) << name;
    EXPECT_EQ(below.error().code, ErrorCode::kBudget);
    EXPECT_GT(*floor, model.weights_bytes - model.experts_bytes()) << name;
  }
}

TEST(Needs, DenseModelsHaveNoFloorBelowTheirWeights) {
  const PlannedModel model = model_of("dense-7b");
  const auto floor = floor_ram_bytes(model, {});
  ASSERT_TRUE(floor);
  EXPECT_GT(*floor, model.weights_bytes);
  EXPECT_EQ(model.experts_bytes(), 0u);
}

TEST(Needs, CapacityGrowsFromRefusedToResident) {
  const std::vector<PlannedModel> models = {model_of("mixtral-8x7b")};
  const std::vector<uint64_t> ram = {1ull << 30, 5ull << 30, 16ull << 30, 64ull << 30};
  const auto table = capacity_table(models, ram, {});
  ASSERT_TRUE(table) << table.error().message;
  ASSERT_EQ(table->size(), 4u);
  EXPECT_EQ((*table)[0].fit, Fit::kBelowFloor);
  EXPECT_EQ((*table)[1].fit, Fit::kFromDrive);
  EXPECT_EQ((*table)[2].fit, Fit::kFromDrive);
  EXPECT_EQ((*table)[3].fit, Fit::kResident);
  EXPECT_LT((*table)[1].kept_share, (*table)[2].kept_share);
  EXPECT_EQ((*table)[3].kept_share, 1);
}

TEST(Needs, EveryRecipeIsThere) {
  const auto dense = needs_by_quant(model_of("dense-7b"), {});
  const auto moe = needs_by_quant(model_of("mixtral-8x7b"), {});
  ASSERT_TRUE(dense && moe);
  EXPECT_EQ(moe->size(), quant_mixes().size());
  EXPECT_EQ(dense->size(), quant_mixes().size() - 1);  // MXFP4 is for experts
  for (const QuantNeeds& q : *moe) {
    EXPECT_EQ(q.weights_bytes, q.dense_bytes + q.experts_bytes) << q.quant;
    EXPECT_GT(q.bits_per_weight, 2) << q.quant;
    EXPECT_LT(q.bits_per_weight, 16.1) << q.quant;
  }
}

}  // namespace
}  // namespace offstage
