#include "cache/eviction.h"

#include <gtest/gtest.h>

namespace offstage {
namespace {

std::vector<ExpertId> ids(std::initializer_list<uint32_t> values) {
  std::vector<ExpertId> experts;
  for (const uint32_t value : values) experts.push_back(ExpertId(value));
  return experts;
}

class LruTest : public ::testing::Test {
 protected:
  void call(uint32_t layer, std::initializer_list<uint32_t> experts, uint64_t event) {
    for (const ExpertId e : ids(experts)) policy_->on_call(LayerIndex(layer), e, 1, event);
  }
  uint32_t victim(uint32_t layer, std::initializer_list<uint32_t> candidates) {
    return policy_->victim(LayerIndex(layer), ids(candidates)).value;
  }
  std::unique_ptr<EvictionPolicy> policy_ = make_lru_policy(2, 8);
};
using LruDeathTest = LruTest;

TEST_F(LruTest, EvictsTheLeastRecentlyCalled) {
  call(0, {1, 2}, 1);
  call(0, {3}, 2);
  call(0, {1}, 3);
  EXPECT_EQ(victim(0, {1, 2, 3}), 2u);
  EXPECT_EQ(victim(0, {3, 1}), 3u);
  EXPECT_EQ(victim(0, {1}), 1u);
}

TEST_F(LruTest, TiesGoToTheLowerIdWhateverTheirOrder) {
  call(0, {6, 2, 4}, 1);
  EXPECT_EQ(victim(0, {6, 4, 2}), 2u);
  EXPECT_EQ(victim(0, {4, 6}), 4u);
  EXPECT_EQ(victim(0, {7, 5}), 5u);  // never called
}

TEST_F(LruTest, NeverCalledGoFirst) {
  call(0, {0}, 1);
  EXPECT_EQ(victim(0, {0, 7}), 7u);
}

TEST_F(LruTest, LayersDontShareTheirPast) {
  call(0, {1}, 1);
  call(0, {2}, 2);
  call(1, {2}, 3);
  call(1, {1}, 4);
  EXPECT_EQ(victim(0, {1, 2}), 1u);
  EXPECT_EQ(victim(1, {1, 2}), 2u);
}

TEST_F(LruDeathTest, SomethingMustBeLeftToEvict) { EXPECT_DEATH(victim(0, {}), "CHECK"); }

}  // namespace
}  // namespace offstage
