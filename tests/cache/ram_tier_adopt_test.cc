// What a faster tier gives up finds a slot where the layer has something colder, and isn't found
// before its bytes were held against the index.
#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using testing::TierRig;

constexpr LayerIndex kLayer{0};

// Two of eight experts stay in each layer; the policy is LRU.
class RamTierAdoptTest : public ::testing::Test {
 protected:
  // The layer calls it, and somebody else computes it.
  void call_elsewhere(uint32_t expert) {
    const ExpertCall call = {ExpertId(expert), 1};
    rig_.tier().begin(LayerEvent{kLayer, {&call, 1}}, {}, Phase::kDecode);
    rig_.tier().end();
  }
  std::optional<ExpertSpace> adopt(uint32_t expert, bool pays = true) {
    asked_ = 0;
    return rig_.tier().adopt(kLayer, ExpertId(expert), [&](std::optional<ExpertId> leaves) {
      ++asked_;
      leaves_ = leaves;
      return pays;
    });
  }
  void write(uint32_t expert, const ExpertSpace& space) {
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const auto truth = rig_.truth(kLayer, ExpertId(expert), static_cast<ExpertMatrix>(m));
      ASSERT_EQ(space[m].size(), truth.size());
      std::copy(truth.begin(), truth.end(), space[m].begin());
    }
  }
  bool is_resident(uint32_t expert) { return rig_.tier().is_resident(kLayer, ExpertId(expert)); }
  bool adopted(uint32_t expert) { return rig_.tier().adopted(kLayer, ExpertId(expert)); }

  TierRig rig_{{}};
  uint32_t asked_ = 0;
  std::optional<ExpertId> leaves_;
};

TEST_F(RamTierAdoptTest, WhatIsColderMakesWay) {
  rig_.expect_decode(0, {1});
  rig_.expect_decode(0, {2});
  call_elsewhere(3);
  const auto space = adopt(3);
  ASSERT_TRUE(space);
  EXPECT_EQ(leaves_, ExpertId(1));
  EXPECT_FALSE(is_resident(1));
  EXPECT_FALSE(is_resident(3));
  write(3, *space);
  EXPECT_TRUE(adopted(3));
  EXPECT_TRUE(is_resident(3));
  EXPECT_EQ(rig_.tier().counters().adopted, 1u);
  rig_.expect_decode(0, {3, 2});
  EXPECT_EQ(rig_.tier().counters().ram_hits, 2u);
  rig_.expect_baseline();
}

TEST_F(RamTierAdoptTest, WhatIsWarmerDoesNot) {
  rig_.expect_decode(0, {1, 2});
  EXPECT_FALSE(adopt(3));  // never called
  EXPECT_EQ(asked_, 0u);
  call_elsewhere(3);
  EXPECT_FALSE(adopt(3, false));  // it doesn't pay
  EXPECT_EQ(asked_, 1u);
  EXPECT_FALSE(adopt(2));  // it is here
  const ExpertCall call = {ExpertId(1), 1};
  rig_.tier().begin(LayerEvent{kLayer, {&call, 1}}, {}, Phase::kDecode);
  EXPECT_FALSE(adopt(3));  // the layer needs its slots
  rig_.tier().end();
  EXPECT_TRUE(is_resident(1) && is_resident(2));
  rig_.expect_baseline();
}

TEST_F(RamTierAdoptTest, WhatTheFasterTierHasTooLeavesForNothing) {
  rig_.expect_decode(0, {1, 2});
  rig_.elsewhere.insert({0, 2});
  const auto space = adopt(3);
  ASSERT_TRUE(space);
  EXPECT_EQ(leaves_, std::nullopt);
  EXPECT_FALSE(is_resident(2));
  write(3, *space);
  EXPECT_TRUE(adopted(3));
  rig_.expect_baseline();
}

TEST_F(RamTierAdoptTest, WrongBytesAreFoundAndReadAgain) {
  rig_.expect_decode(0, {1});
  const auto space = adopt(3);  // one slot isn't used
  ASSERT_TRUE(space);
  write(3, *space);
  (*space)[1][7] ^= std::byte{16};
  EXPECT_FALSE(adopted(3));
  EXPECT_TRUE(rig_.has_notice("hash"));
  EXPECT_FALSE(is_resident(3));
  rig_.expect_baseline();
  rig_.expect_decode(0, {3});
}

// While it is written, the layer has one slot less, and may read the expert itself.
TEST_F(RamTierAdoptTest, TheLayerGoesOnMeanwhile) {
  rig_.expect_decode(0, {1, 2});
  call_elsewhere(3);
  const auto space = adopt(3);
  ASSERT_TRUE(space);
  EXPECT_FALSE(adopt(4));  // never called
  rig_.expect_decode(0, {4, 5, 6});
  EXPECT_EQ(rig_.tier().resident_count(kLayer), 1u);
  rig_.expect_prefill(0);
  rig_.expect_decode(1, {1, 2, 3});
  rig_.expect_decode(0, {3});
  write(3, *space);
  EXPECT_FALSE(adopted(3));
  EXPECT_TRUE(is_resident(3));
  rig_.expect_decode(0, {3, 4});
  EXPECT_EQ(rig_.tier().resident_count(kLayer), 2u);
  rig_.expect_baseline();
}

}  // namespace
}  // namespace offstage
