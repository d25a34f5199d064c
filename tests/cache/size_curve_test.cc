// The curve of cache sizes says what replay says, size by size.
#include "cache/size_curve.h"

#include <gmock/gmock.h>

#include "cache/replay.h"
#include "tests/cache/synthetic_routes.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::routes_of;

TEST(SizeCurve, EveryPointIsAReplay) {
  const RouteLog log = random_routes({2, 32, 4}, 200, 5);
  const auto curve = size_curve(log, "lru", std::vector<uint32_t>{10, 11});
  ASSERT_TRUE(curve);
  EXPECT_EQ(curve->tokens, 200u);
  EXPECT_EQ(curve->skipped, 50u);
  ASSERT_EQ(curve->points.size(), kSizeCurvePoints);
  EXPECT_EQ(curve->points.front().kept, 4u);
  EXPECT_EQ(curve->points.back().kept, 32u);
  const auto rate = [&](std::vector<uint32_t> kept, EvictionPolicy& policy) {
    return replay(log, {std::move(kept), UINT64_MAX, 50}, policy).total().hit_rate();
  };
  for (const SizeCurve::Point& point : curve->points) {
    const std::vector<uint32_t> kept(2, point.kept);
    EXPECT_DOUBLE_EQ(point.policy, rate(kept, *make_lru_policy(2, 32))) << point.kept;
    EXPECT_DOUBLE_EQ(point.optimum, rate(kept, *make_belady_policy(log))) << point.kept;
  }
  EXPECT_DOUBLE_EQ(curve->at_run_size, rate({10, 11}, *make_lru_policy(2, 32)));
  EXPECT_DOUBLE_EQ(curve->optimum_at_run_size, rate({10, 11}, *make_belady_policy(log)));
}

// More room never hurts the optimum, the optimum is never beaten, and all experts hit always once
// the cache is filled.
TEST(SizeCurve, GrowsToEverything) {
  const RouteLog log = random_routes({1, 16, 2}, 400, 9);
  const auto curve = size_curve(log, "recall", std::vector<uint32_t>{8});
  ASSERT_TRUE(curve);
  for (size_t i = 0; i < curve->points.size(); ++i) {
    EXPECT_LE(curve->points[i].policy, curve->points[i].optimum + 1e-12);
    if (i != 0) {
      EXPECT_GE(curve->points[i].optimum, curve->points[i - 1].optimum);
    }
  }
  EXPECT_DOUBLE_EQ(curve->points.back().policy, 1);
}

TEST(SizeCurve, OfNothingAndOfFewExperts) {
  const auto empty = size_curve(routes_of({1, 4, 1}, {}), "lru", std::vector<uint32_t>{2});
  ASSERT_TRUE(empty);
  EXPECT_TRUE(empty->points.empty());
  const auto few = size_curve(routes_of({1, 4, 2}, {{0, 1}, {0, 1}}), "lru",
                              std::vector<uint32_t>{0});  // as where all slots are staging
  ASSERT_TRUE(few);
  EXPECT_EQ(few->points.size(), 3u);  // 2, 3 and 4
  EXPECT_FALSE(size_curve(routes_of({1, 4, 1}, {{0}}), "no such", std::vector<uint32_t>{2}));
  EXPECT_FALSE(size_curve(routes_of({1, 4, 1}, {{0}}), "lru", std::vector<uint32_t>{2, 2}));
}

}  // namespace
}  // namespace offstage
