#include "cache/eviction.h"

#include <gtest/gtest.h>

#include "tests/cache/synthetic_routes.h"

namespace offstage {
namespace {

std::vector<ExpertId> ids(std::initializer_list<uint32_t> values) {
  std::vector<ExpertId> experts;
  for (const uint32_t value : values) experts.push_back(ExpertId(value));
  return experts;
}

class PolicyTest : public ::testing::Test {
 protected:
  void use(const char* name) {
    auto policy = make_policy(name, {2, 8, 2, {4, 4}});
    ASSERT_TRUE(policy) << policy.error().message;
    policy_ = std::move(*policy);
    EXPECT_EQ(policy_->name(), name);
  }
  void call(uint32_t layer, std::initializer_list<uint32_t> experts, float weight = 0) {
    std::vector<ExpertCall> calls;
    for (const ExpertId e : ids(experts)) calls.push_back({e, 1, weight});
    policy_->on_event({LayerIndex(layer), calls});
  }
  // Rows of one event, each calling one expert.
  void call_rows(std::initializer_list<uint32_t> experts) {
    const std::vector<ExpertId> rows = ids(experts);
    std::vector<ExpertCall> calls;
    for (uint32_t e = 0; e < 8; ++e)
      if (const auto n = std::count(rows.begin(), rows.end(), ExpertId(e)); n != 0)
        calls.push_back({ExpertId(e), static_cast<uint32_t>(n)});
    policy_->on_event({LayerIndex(0), calls, static_cast<uint32_t>(rows.size()), rows});
  }
  uint32_t victim(uint32_t layer, std::initializer_list<uint32_t> candidates) {
    return policy_->victim(LayerIndex(layer), ids(candidates)).value;
  }
  std::unique_ptr<EvictionPolicy> policy_ = make_lru_policy(2, 8);
};
using PolicyDeathTest = PolicyTest;

TEST_F(PolicyTest, LruEvictsTheLeastRecentlyCalled) {
  call(0, {1, 2});
  call(0, {3});
  call(0, {1});
  EXPECT_EQ(victim(0, {1, 2, 3}), 2u);
  EXPECT_EQ(victim(0, {3, 1}), 3u);
  EXPECT_EQ(victim(0, {1}), 1u);
}

TEST_F(PolicyTest, LruWithinAnEventKeepsTheHeavier) {
  call(0, {6, 2, 4});  // router order
  EXPECT_EQ(victim(0, {6, 4, 2}), 4u);
  EXPECT_EQ(victim(0, {2, 6}), 2u);
}

TEST_F(PolicyTest, NeverCalledGoFirstAndTiesToTheLowerId) {
  call(0, {0});
  EXPECT_EQ(victim(0, {0, 7}), 7u);
  EXPECT_EQ(victim(0, {7, 5}), 5u);
}

TEST_F(PolicyTest, LayersDontShareTheirPast) {
  call(0, {1});
  call(0, {2});
  call(1, {2});
  call(1, {1});
  EXPECT_EQ(victim(0, {1, 2}), 1u);
}

TEST_F(PolicyTest, LruSeesThePromptRowByRow) {
  call_rows({5, 3, 1, 3});
  EXPECT_EQ(victim(0, {1, 3, 5}), 5u);
  EXPECT_EQ(victim(0, {1, 3}), 1u);
  call(0, {5});
  EXPECT_EQ(victim(0, {1, 3, 5}), 1u);
}

TEST_F(PolicyTest, LfuForgets) {
  use("lfu");
  for (int i = 0; i < 4; ++i) call(0, {1});
  call(0, {2});
  EXPECT_EQ(victim(0, {1, 2}), 2u);  // LRU would take 1
  // Forgotten by half every 16 events: 4 old calls are worth less than 1 after 33 more.
  for (int i = 0; i < 33; ++i) call(0, {7});
  call(0, {2});
  EXPECT_EQ(victim(0, {1, 2}), 1u);
}

TEST_F(PolicyTest, LfuOfRowsIsThatOfEventsOneByOne) {
  use("lfu");
  call_rows({5, 3, 3, 1, 5, 3});
  const double in_one = policy_->value(LayerIndex(0), ExpertId(3));
  use("lfu");
  for (const uint32_t e : {5u, 3u, 3u, 1u, 5u, 3u}) call(0, {e});
  EXPECT_NEAR(policy_->value(LayerIndex(0), ExpertId(3)), in_one, 1e-12);
}

TEST_F(PolicyTest, SlruProtectsWhatWasCalledTwice) {
  use("slru");  // 4 kept, 2 called: a window of 4 rows
  call(0, {1});
  call(0, {1});
  call(0, {2});
  call(0, {3});
  EXPECT_EQ(victim(0, {1, 2, 3}), 2u);
  for (int i = 0; i < 3; ++i) call(0, {4});
  EXPECT_EQ(victim(0, {1, 4}), 1u);  // not for ever
}

TEST_F(PolicyTest, GatePrefersWeightAndNearMisses) {
  use("gate");
  call(0, {1}, 0.9f);
  call(0, {2}, 0.1f);
  EXPECT_EQ(victim(0, {1, 2}), 2u);
  const std::vector<float> probabilities = {0, 0, 0, 0, 0.4f, 0.3f, 0, 0};
  const ExpertCall call_of_7 = {ExpertId(7), 1, 0.5f};
  policy_->on_event({LayerIndex(0), {&call_of_7, 1}, 1, {}, probabilities});
  EXPECT_EQ(victim(0, {3, 4, 5}), 3u);
  EXPECT_EQ(victim(0, {4, 5}), 5u);
}

// Every policy on the same routing twice: the same values, bit for bit.
TEST_F(PolicyTest, TheSameEventsGiveTheSameValues) {
  const RouteLog log = testing::random_routes({3, 16, 3, true, false}, 200, 5);
  for (const std::string_view name : policy_names()) {
    std::vector<double> values[2];
    for (auto& all : values) {
      const auto policy = make_policy(name, {3, 16, 3, {5, 5, 5}});
      ASSERT_TRUE(policy);
      testing::feed(log, **policy);
      for (uint32_t l = 0; l < 3; ++l)
        for (uint32_t e = 0; e < 16; ++e)
          all.push_back((*policy)->value(LayerIndex(l), ExpertId(e)));
    }
    EXPECT_EQ(values[0], values[1]) << name;
    EXPECT_NE(values[0].front(), values[0].back()) << name;
  }
}

TEST_F(PolicyTest, AnUnknownNameIsAnErrorWithTheList) {
  const auto policy = make_policy("clock", {1, 8, 2, {4}});
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(policy.error().message.find("recall"), std::string::npos);
}

TEST_F(PolicyDeathTest, SomethingMustBeLeftToEvict) { EXPECT_DEATH(victim(0, {}), "CHECK"); }

}  // namespace
}  // namespace offstage
