#include <gtest/gtest.h>

#include "cache/route_stats.h"
#include "plan/route_fit.h"
#include "plan/routing_source.h"
#include "tests/cache/synthetic_routes.h"

namespace offstage {
namespace {

constexpr RouteShape kShape = {.n_layers = 4, .n_experts = 16, .n_used = 2};

double reuse_of(const RouteHabits& habits, size_t lag) {
  return route_stats(RouteGenerator(kShape, habits, 7).draw(1500)).reuse_at_lag[lag].value;
}

RouteHabits no_habits() {
  RouteHabits habits;
  habits.popularity = habits.word = habits.topic = habits.mood = habits.whim = 0;
  return habits;
}

TEST(RouteGenerator, DrawsWhatALogMayHold) {
  const RouteLog log = RouteGenerator(kShape, {}, 1).draw(200);
  EXPECT_EQ(log.n_tokens(), 200u);
  EXPECT_TRUE(check_route_log(log, "drawn"));
  EXPECT_EQ(RouteGenerator(kShape, {}, 1).draw(200).experts, log.experts);
  EXPECT_NE(RouteGenerator(kShape, {}, 2).draw(200).experts, log.experts);
}

// Without habits every expert is as likely as the next: 2 of 16 come again.
TEST(RouteGenerator, ChanceAloneHasNoMemory) {
  EXPECT_NEAR(reuse_of(no_habits(), 0), 2.0 / 16, .02);
}

// Each habit makes calls come again, and each in its own way: popularity and topic for long, mood
// for a moment.
TEST(RouteGenerator, EveryHabitShowsInReuse) {
  RouteHabits popular = no_habits(), topical = no_habits(), moody = no_habits(),
              wordy = no_habits();
  popular.popularity = 2;
  topical.topic = 2;
  moody.mood = 2;
  wordy.word = 2;
  wordy.word_exponent = 2;
  const double chance = reuse_of(no_habits(), 0);
  EXPECT_GT(reuse_of(popular, 0), chance + .1);
  EXPECT_GT(reuse_of(popular, 6), chance + .1);
  EXPECT_GT(reuse_of(topical, 6), chance + .1);
  EXPECT_GT(reuse_of(wordy, 0), chance + .1);
  EXPECT_GT(reuse_of(moody, 0), chance + .1);
  EXPECT_LT(reuse_of(moody, 6), chance + .03);  // 64 tokens later it is forgotten
}

// As the recording that the defaults were fitted to: called again 1, 8 and 64 tokens later. (All
// figures within 1.5 points: ARCHITECTURE. So few tokens are noisier.)
TEST(RouteGenerator, ItsDefaultsAreARealModels) {
  const RouteShape gpt_oss = {.n_layers = 24, .n_experts = 32, .n_used = 4};
  const RouteStats stats = route_stats(RouteGenerator(gpt_oss, {}, 1).draw(1500));
  EXPECT_NEAR(stats.reuse_at_lag[0].value, .436, .03);
  EXPECT_NEAR(stats.reuse_at_lag[3].value, .352, .03);
  EXPECT_NEAR(stats.reuse_at_lag[6].value, .333, .03);
}

TEST(RoutingSource, ARecordingBeginsAgainAfterItsEnd) {
  RouteLog log = testing::random_routes(kShape, 5, 3);
  const std::vector<uint16_t> experts = log.experts;
  auto source = recorded_routes(std::move(log), kShape, "recorded.trace");
  ASSERT_TRUE(source);
  const RouteLog drawn = (*source)->draw(12);
  ASSERT_EQ(drawn.n_tokens(), 12u);
  EXPECT_TRUE(check_route_log(drawn, "drawn"));
  EXPECT_EQ(drawn.starts, (std::vector<uint64_t>{0, 5, 10}));
  const size_t token = kShape.calls_per_token();
  for (size_t i = 0; i < drawn.experts.size(); ++i)
    ASSERT_EQ(drawn.experts[i], experts[i % (5 * token)]) << i;
  EXPECT_EQ((*source)->draw(1).experts[0], experts[2 * token]);  // where the last draw ended
}

TEST(RoutingSource, AnotherModelsRecordingIsRefused) {
  RouteShape other = kShape;
  other.n_experts = 32;
  const auto source = recorded_routes(testing::random_routes(kShape, 5, 3), other, "other.trace");
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(source.error().message.find("other.trace"), std::string::npos);
  EXPECT_FALSE(recorded_routes(testing::random_routes(kShape, 0, 3), kShape, "empty.trace"));
}

// Drawn with known habits, a log is found again: the search ends nearer to it than it began.
TEST(RouteFit, FindsHabitsThatReproduceALog) {
  RouteHabits truth;
  truth.popularity = 1;
  truth.topic = .5;
  truth.mood = 1;
  const RouteLog log = RouteGenerator(kShape, truth, 11).draw(600);
  FitOptions options;
  options.tokens = 512;
  options.rounds_max = 3;
  const auto fit = fit_habits(log, options);
  ASSERT_TRUE(fit);
  const RouteFigures wanted = route_figures(log);
  const auto off = [&](const RouteHabits& habits) {
    return points_apart(wanted, route_figures(RouteGenerator(kShape, habits, 1).draw(512)));
  };
  EXPECT_LT(off(fit->habits), off({}));
  EXPECT_GT(fit->worst_points, 0);
}

TEST(RouteFit, AFewTokensSayNothing) {
  const auto fit = fit_habits(testing::random_routes(kShape, 100, 1), {});
  ASSERT_FALSE(fit);
  EXPECT_EQ(fit.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace offstage
