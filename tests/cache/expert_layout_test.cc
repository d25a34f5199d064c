#include "cache/expert_layout.h"

#include <gtest/gtest.h>

#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using testing::layout_of;

constexpr LayerIndex kFirst(0), kSecond(1);

ExpertTensorFacts facts(const char* name, uint32_t tensor, uint32_t file, uint64_t offset,
                        uint64_t bytes) {
  return {name, tensor, file, offset, bytes};
}

TEST(ExpertLayoutTest, FindsEveryExpertWhereItsTensorSays) {
  const ExpertLayout layout({{facts("gate", 7, 0, 4096, 8192), facts("up", 8, 1, 64, 8192),
                              facts("down", 9, 1, 9000032, 12288)}},
                            4);
  EXPECT_EQ(layout.extent(kFirst, ExpertId(0), ExpertMatrix::kGate), (Extent{0, 4096, 8192}));
  EXPECT_EQ(layout.extent(kFirst, ExpertId(3), ExpertMatrix::kGate),
            (Extent{0, 4096 + 3 * 8192, 8192}));
  EXPECT_EQ(layout.extent(kFirst, ExpertId(2), ExpertMatrix::kUp),
            (Extent{1, 64 + 2 * 8192, 8192}));
  EXPECT_EQ(layout.extent(kFirst, ExpertId(1), ExpertMatrix::kDown),
            (Extent{1, 9000032 + 12288, 12288}));
  EXPECT_EQ(layout.piece(kFirst, ExpertId(3), ExpertMatrix::kUp).tensor, 8u);
  EXPECT_EQ(layout.piece(kFirst, ExpertId(3), ExpertMatrix::kUp).expert, 3u);
  EXPECT_EQ(layout.tensor_name(kFirst, ExpertMatrix::kDown), "down");
  EXPECT_EQ(layout.expert_bytes(kFirst), 2u * 8192 + 12288);
  EXPECT_EQ(layout.total_expert_bytes(), 4u * (2 * 8192 + 12288));
}

TEST(ExpertLayoutTest, AlignedMatricesNeedNoRoundingInTheSlot) {
  const ExpertLayout layout({{facts("g", 0, 0, 4096, 8192), facts("u", 1, 0, 65536, 8192),
                              facts("d", 2, 0, 131072, 4096)}},
                            4);
  EXPECT_EQ(layout.span_in_slot(kFirst, ExpertMatrix::kGate), 0u);
  EXPECT_EQ(layout.span_in_slot(kFirst, ExpertMatrix::kUp), 8192u);
  EXPECT_EQ(layout.span_in_slot(kFirst, ExpertMatrix::kDown), 16384u);
  EXPECT_EQ(layout.class_bytes(0), 20480u);
}

// 4,096 bytes that begin 32 into a sector lie in two; the next expert begins 32 into one as well.
// 5,000 bytes from offset 0 lie in two sectors, from 5,000 in two, from 10,000 in two, from 15,000
// (end 20,000) in two, but 20,000 … 25,000 touch three (sectors 4, 5 and 6).
TEST(ExpertLayoutTest, ASlotHoldsTheLongestSpanOfItsExperts) {
  const ExpertLayout layout(
      {{facts("g", 0, 0, 32, 4096), facts("u", 1, 0, 0, 5000), facts("d", 2, 0, 65536, 4096)}}, 5);
  EXPECT_EQ(layout.span_in_slot(kFirst, ExpertMatrix::kUp), 8192u);
  EXPECT_EQ(layout.span_in_slot(kFirst, ExpertMatrix::kDown), 8192u + 12288);
  EXPECT_EQ(layout.class_bytes(0), 8192u + 12288 + 4096);
}

TEST(ExpertLayoutTest, EverySpanFitsItsPlaceInTheSlot) {
  const ExpertLayout layout = layout_of({.n_layers = 3, .n_experts = 17, .offset = 4128});
  for (uint32_t l = 0; l < 3; ++l)
    for (uint32_t e = 0; e < 17; ++e)
      for (uint32_t m = 0; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        const uint64_t begin = layout.span_in_slot(LayerIndex(l), matrix);
        const uint64_t end =
            m + 1 == kExpertMatrices
                ? layout.class_bytes(layout.slot_class(LayerIndex(l)))
                : layout.span_in_slot(LayerIndex(l), static_cast<ExpertMatrix>(m + 1));
        EXPECT_EQ(begin % kSectorBytes, 0u);
        EXPECT_LE(begin + span_bytes(layout.extent(LayerIndex(l), ExpertId(e), matrix)), end);
      }
}

TEST(ExpertLayoutTest, LayersOfOneSizeShareAClassSmallestFirst) {
  const ExpertLayerFacts small = {facts("g", 0, 0, 0, 4096), facts("u", 1, 0, 0, 4096),
                                  facts("d", 2, 0, 0, 4096)};
  ExpertLayerFacts large = small;
  large[2].bytes_per_expert = 8192;
  const ExpertLayout layout({large, small, large, small, large}, 2);
  ASSERT_EQ(layout.n_classes(), 2u);
  EXPECT_EQ(layout.class_bytes(0), 12288u);
  EXPECT_EQ(layout.class_bytes(1), 16384u);
  EXPECT_EQ(layout.slot_class(kFirst), 1u);
  EXPECT_EQ(layout.slot_class(kSecond), 0u);
  EXPECT_EQ(layout.class_layers(0), 2u);
  EXPECT_EQ(layout.class_layers(1), 3u);
}

TEST(ExpertLayoutTest, SpansAreTheLayersOwnWithinAClass) {
  const ExpertLayerFacts gate_large = {facts("g", 0, 0, 0, 8192), facts("u", 1, 0, 0, 4096),
                                       facts("d", 2, 0, 0, 4096)};
  const ExpertLayerFacts down_large = {facts("g", 0, 0, 0, 4096), facts("u", 1, 0, 0, 4096),
                                       facts("d", 2, 0, 0, 8192)};
  const ExpertLayout layout({gate_large, down_large}, 2);
  EXPECT_EQ(layout.n_classes(), 1u);
  EXPECT_EQ(layout.span_in_slot(kFirst, ExpertMatrix::kUp), 8192u);
  EXPECT_EQ(layout.span_in_slot(kSecond, ExpertMatrix::kUp), 4096u);
}

}  // namespace
}  // namespace offstage
