#include "runtime/router.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/rng.h"

namespace offstage {
namespace {

using ::testing::ElementsAre;

const Kernels& scalar() {
  static const Kernels* kernels = *kernels_for(Isa::kScalar);
  return *kernels;
}

RouterSpec spec_of(uint32_t n_experts, uint32_t n_used, bool normalise = false, float scale = 1) {
  return {n_experts, n_used, normalise, scale};
}

std::vector<uint32_t> ids(const Routing& routing, uint32_t row) {
  std::vector<uint32_t> experts;
  for (uint32_t j = 0; j < routing.n_used; ++j)
    experts.push_back(routing.experts[row * routing.n_used + j].value);
  return experts;
}

TEST(RouterTest, PicksTheHighestInFallingOrder) {
  Router router(spec_of(5, 3), scalar(), 4);
  float logits[] = {0.5f, 2, -1, 3, 1};
  EXPECT_THAT(ids(router.route(logits, 1), 0), ElementsAre(3, 1, 4));
}

TEST(RouterTest, TiesGoToTheLowerId) {
  Router router(spec_of(6, 3), scalar(), 1);
  float logits[] = {1, 2, 1, 2, 2, 1};
  EXPECT_THAT(ids(router.route(logits, 1), 0), ElementsAre(1, 3, 4));
  float equal[] = {0, 0, 0, 0, 0, 0};
  EXPECT_THAT(ids(router.route(equal, 1), 0), ElementsAre(0, 1, 2));
}

TEST(RouterTest, WeightsAreTheSoftmaxOverAllExperts) {
  Router router(spec_of(4, 2), scalar(), 1);
  float logits[] = {1, 0, 3, 2};
  const Routing& routing = router.route(logits, 1);
  const double sum = std::exp(1) + 1 + std::exp(3) + std::exp(2);
  EXPECT_NEAR(routing.weights[0], std::exp(3) / sum, 1e-6);
  EXPECT_NEAR(routing.weights[1], std::exp(2) / sum, 1e-6);
}

TEST(RouterTest, NormalisedWeightsSumToOneThenScale) {
  Router router(spec_of(4, 2, true, 2.5f), scalar(), 1);
  float logits[] = {1, 0, 3, 2};
  const Routing& routing = router.route(logits, 1);
  const double e = std::exp(1);
  EXPECT_NEAR(routing.weights[0], 2.5 * e / (e + 1), 1e-5);
  EXPECT_NEAR(routing.weights[0] + routing.weights[1], 2.5, 1e-5);
}

RouterSpec scored(RouterScore score, uint32_t n_experts, uint32_t n_used) {
  RouterSpec spec = spec_of(n_experts, n_used);
  spec.score = score;
  return spec;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST(RouterTest, SigmoidScoresEachExpertAlone) {
  Router router(scored(RouterScore::kSigmoid, 4, 2), scalar(), 1);
  float logits[] = {1, 0, 3, 2};
  const Routing& routing = router.route(logits, 1);
  EXPECT_THAT(ids(routing, 0), ElementsAre(2, 3));
  EXPECT_NEAR(routing.weights[0], sigmoid(3), 1e-6);
  EXPECT_NEAR(routing.weights[1], sigmoid(2), 1e-6);
}

TEST(RouterTest, SoftmaxOfTheChosenLeavesOutTheOthers) {
  Router router(scored(RouterScore::kSoftmaxOfChosen, 4, 2), scalar(), 1);
  float logits[] = {1, -90, 3, 2};
  const Routing& routing = router.route(logits, 1);
  EXPECT_THAT(ids(routing, 0), ElementsAre(2, 3));
  EXPECT_NEAR(routing.weights[0], sigmoid(1), 1e-6);
  EXPECT_NEAR(routing.weights[1], sigmoid(-1), 1e-6);
}

TEST(RouterTest, TheSelectionBiasChoosesButDoesntWeigh) {
  Router router(scored(RouterScore::kSigmoid, 4, 2), scalar(), 1);
  float logits[] = {1, 0, 3, 2};
  const float bias[] = {0, 1, 0, 0};
  const Routing& routing = router.route(logits, 1, bias);
  EXPECT_THAT(ids(routing, 0), ElementsAre(1, 2));
  EXPECT_NEAR(routing.weights[0], sigmoid(0), 1e-6);
  EXPECT_NEAR(routing.weights[1], sigmoid(3), 1e-6);
}

TEST(RouterTest, GroupsAreAsGoodAsTheirTwoBestExperts) {
  RouterSpec spec = scored(RouterScore::kSigmoid, 6, 2);
  spec.n_groups = 3;
  spec.n_groups_used = 1;
  Router router(spec, scalar(), 1);
  // The best expert is alone in its group; two good ones stand together.
  float logits[] = {3, -9, 2, 1, 0, 0};
  EXPECT_THAT(ids(router.route(logits, 1), 0), ElementsAre(2, 3));
  float again[] = {3, -9, 2, 1, 0, 0};
  const float bias[] = {0, 1, 0, 0, 0, 0};  // lifts its neighbour's group
  EXPECT_THAT(ids(router.route(again, 1, bias), 0), ElementsAre(1, 0));
}

TEST(RouterTest, WeightsThatAllVanishStayFinite) {
  RouterSpec spec = scored(RouterScore::kSigmoid, 3, 2);
  spec.normalise_weights = true;
  Router router(spec, scalar(), 1);
  float logits[] = {-200, -200, -200};
  const Routing& routing = router.route(logits, 1);
  EXPECT_EQ(routing.weights[0], 0.0f);
  EXPECT_EQ(routing.weights[1], 0.0f);
}

// A broken file's NaN: some experts are called, each once, and always the same.
TEST(RouterTest, NanLogitsStillCallDistinctExperts) {
  Router router(spec_of(8, 4), scalar(), 1);
  for (const int nan_at : {0, 3, 7}) {
    float logits[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    logits[nan_at] = NAN;
    std::vector<uint32_t> called = ids(router.route(logits, 1), 0);
    std::sort(called.begin(), called.end());
    EXPECT_EQ(std::unique(called.begin(), called.end()), called.end());
    EXPECT_LT(called.back(), 8u);
  }
}

TEST(RouterTest, CallsStandInRouterOrderOfTheirFirstRow) {
  Router router(spec_of(4, 2), scalar(), 3);
  float logits[] = {0, 9, 0, 8, /**/ 9, 8, 0, 0, /**/ 0, 8, 0, 9};
  const Routing& routing = router.route(logits, 3);
  ASSERT_EQ(routing.calls.size(), 3u);
  EXPECT_EQ(routing.calls[0].expert, ExpertId(1));
  EXPECT_EQ(routing.calls[1].expert, ExpertId(3));
  EXPECT_EQ(routing.calls[2].expert, ExpertId(0));
  EXPECT_EQ(routing.calls[0].uses, 3u);
  EXPECT_EQ(routing.calls[1].uses, 2u);
  EXPECT_EQ(routing.calls[2].uses, 1u);
}

// Whatever was routed: every call has one place, in its expert's range, and its row is found there.
void expect_grouped(const Routing& routing, uint32_t n_experts) {
  const uint32_t n_calls = routing.n_rows * routing.n_used;
  ASSERT_EQ(routing.first[0], 0u);
  ASSERT_EQ(routing.first[n_experts], n_calls);
  std::vector<int> taken(n_calls, 0);
  for (uint32_t c = 0; c < n_calls; ++c) {
    const uint32_t place = routing.place_of[c], expert = routing.experts[c].value;
    ASSERT_LT(place, n_calls);
    ++taken[place];
    EXPECT_GE(place, routing.first[expert]);
    EXPECT_LT(place, routing.first[expert + 1]);
    EXPECT_EQ(routing.call_rows[place], c / routing.n_used);
  }
  EXPECT_EQ(std::count(taken.begin(), taken.end(), 1), static_cast<ptrdiff_t>(n_calls));
  uint32_t uses = 0;
  for (const ExpertCall& call : routing.calls) {
    EXPECT_EQ(call.uses, routing.first[call.expert.value + 1] - routing.first[call.expert.value]);
    uses += call.uses;
  }
  EXPECT_EQ(uses, n_calls);
}

TEST(RouterTest, RowsAreGroupedByExpert) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    const auto n_experts = static_cast<uint32_t>(1 + rng.below(70));
    const auto n_used = static_cast<uint32_t>(1 + rng.below(n_experts));
    Router router(spec_of(n_experts, n_used), scalar(), 40);
    for (int round = 0; round < 3; ++round) {
      const auto n_rows = static_cast<uint32_t>(1 + rng.below(40));
      std::vector<float> logits(size_t{n_rows} * n_experts);
      for (float& logit : logits) logit = static_cast<float>(rng.below(9));  // many ties
      const std::vector<float> given = logits;
      const Routing& routing = router.route(logits.data(), n_rows);
      expect_grouped(routing, n_experts);
      for (uint32_t row = 0; row < n_rows; ++row) {
        std::vector<uint32_t> order(n_experts);
        for (uint32_t e = 0; e < n_experts; ++e) order[e] = e;
        std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
          return given[size_t{row} * n_experts + a] > given[size_t{row} * n_experts + b];
        });
        order.resize(n_used);
        ASSERT_EQ(ids(routing, row), order);
      }
    }
  }
}

TEST(RouterDeathTest, MoreRowsThanMadeForAreABug) {
  Router router(spec_of(2, 1), scalar(), 1);
  float logits[] = {0, 0, 0, 0};
  EXPECT_DEATH(router.route(logits, 2), "CHECK");
}

}  // namespace
}  // namespace offstage
