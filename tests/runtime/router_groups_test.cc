// Routing in the way of DeepSeek-V3: sigmoids weigh, sigmoids and a bias choose, in the best
// groups.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "runtime/router.h"

namespace offstage {
namespace {

using ::testing::ElementsAre;

RouterSpec grouped(uint32_t n_experts, uint32_t n_used, uint32_t n_groups, uint32_t n_groups_used,
                   RouterScore score = RouterScore::kSigmoid) {
  RouterSpec spec;
  spec.n_experts = n_experts;
  spec.n_used = n_used;
  spec.score = score;
  spec.n_groups = n_groups;
  spec.n_groups_used = n_groups_used;
  return spec;
}

std::vector<uint32_t> choose(const RouterSpec& spec, std::vector<float> logits,
                             const float* bias = nullptr) {
  Router router(spec, **kernels_for(Isa::kScalar), 1);
  const Routing& routing = router.route(logits.data(), 1, bias);
  std::vector<uint32_t> chosen;
  for (const ExpertId expert : routing.experts) chosen.push_back(expert.value);
  return chosen;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST(RouterGroups, TheBestExpertIsOutWhereItsGroupIs) {
  // Sums of two best: 0 has the highest expert, 1 and 2 the better pairs.
  const std::vector<float> logits = {9, -9, -9, -9, /**/ 1, 2, -9, 0, /**/ 2, 2.5f, 0, 0};
  EXPECT_THAT(choose(grouped(12, 3, 3, 2), logits), ElementsAre(9, 5, 8));
  EXPECT_THAT(choose(grouped(12, 3, 1, 1), logits), ElementsAre(0, 9, 5));
}

TEST(RouterGroups, AGroupIsAsGoodAsItsTwoBestNotItsBestOrItsSum) {
  const std::vector<float> logits = {3, -5, -5, 0, /**/ 2, 2, -5, -5, /**/ 0.5f, 0.5f, 0.5f, 0.5f};
  EXPECT_THAT(choose(grouped(12, 2, 3, 1), logits), ElementsAre(4, 5));
}

TEST(RouterGroups, SoftmaxScoresGroupLikeSigmoids) {
  const std::vector<float> logits = {3, -5, -5, 0, /**/ 2.9f, 2.9f, -5, -5};
  EXPECT_THAT(choose(grouped(8, 2, 2, 1, RouterScore::kSoftmax), logits), ElementsAre(4, 5));
}

TEST(RouterGroups, TiesGoToTheLowerGroupAndTheLowerExpert) {
  EXPECT_THAT(choose(grouped(8, 3, 4, 2), std::vector<float>(8, 0.5f)), ElementsAre(0, 1, 2));
  const std::vector<float> logits = {0, 0, 1, 1, 1, 1, 1, 1};
  EXPECT_THAT(choose(grouped(8, 3, 4, 2), logits), ElementsAre(2, 3, 4));
}

TEST(RouterGroups, TheBiasChoosesAndDoesNotWeigh) {
  RouterSpec spec = grouped(4, 2, 1, 1);
  spec.normalise_weights = true;
  spec.weights_scale = 2.5f;
  Router router(spec, **kernels_for(Isa::kScalar), 1);
  float logits[] = {2, 1, 0, -1};
  const float bias[] = {-1, 0, 0, 1};
  const Routing& routing = router.route(logits, 1, bias);
  EXPECT_EQ(routing.experts[0].value, 3u);  // by score + bias
  EXPECT_EQ(routing.experts[1].value, 1u);
  const double sum = sigmoid(-1) + sigmoid(1);
  EXPECT_NEAR(routing.weights[0], 2.5 * sigmoid(-1) / sum, 1e-6);
  EXPECT_NEAR(routing.weights[1], 2.5 * sigmoid(1) / sum, 1e-6);
}

TEST(RouterGroups, TheBiasMovesGroups) {
  const std::vector<float> logits = {1, 1, 0, 0};
  const float bias[] = {0, 0, 0.5f, 0.5f};
  EXPECT_THAT(choose(grouped(4, 2, 2, 1), logits, bias), ElementsAre(2, 3));
}

// Sums of sigmoids near zero are divided by 2⁻¹⁴ at least, as in llama.cpp.
TEST(RouterGroups, WeightsOfHopelessExpertsStaySmall) {
  RouterSpec spec = grouped(4, 2, 1, 1);
  spec.normalise_weights = true;
  Router router(spec, **kernels_for(Isa::kScalar), 1);
  float logits[] = {-30, -30, -30, -30};
  const Routing& routing = router.route(logits, 1);
  EXPECT_NEAR(routing.weights[0], sigmoid(-30) * 0x1p14, 1e-12);
}

// A broken file: distinct experts are called, always the same, and the weights don't look sound.
TEST(RouterGroups, NanAndInfinityStillCallDistinctExperts) {
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (uint32_t at = 0; at < 8; ++at) {
      std::vector<float> logits = {1, 2, 3, 4, 5, 6, 7, 8};
      std::vector<float> bias(8, 0.1f);
      bias[at] = bad;
      std::vector<uint32_t> chosen = choose(grouped(8, 3, 4, 2), logits, bias.data());
      std::sort(chosen.begin(), chosen.end());
      EXPECT_EQ(std::unique(chosen.begin(), chosen.end()), chosen.end()) << bad << ' ' << at;
      EXPECT_LT(chosen.back(), 8u);
    }
}

// Against the definition, sorted instead of partly sorted.
TEST(RouterGroups, IsTheDefinitionOnRandomRows) {
  Rng rng(20);
  constexpr uint32_t kGroups = 8, kSize = 8, kUsed = 4, kGroupsUsed = 3;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> logits, bias;
    for (uint32_t i = 0; i < kGroups * kSize; ++i) {
      logits.push_back(static_cast<float>(rng.below(4000)) / 500.0f - 4);
      bias.push_back(static_cast<float>(rng.below(400)) / 1000.0f - 0.2f);
    }
    std::vector<std::pair<double, uint32_t>> groups, experts;
    const auto merit = [&](uint32_t i) { return sigmoid(logits[i]) + double{bias[i]}; };
    for (uint32_t g = 0; g < kGroups; ++g) {
      std::vector<double> merits;
      for (uint32_t i = 0; i < kSize; ++i) merits.push_back(merit(g * kSize + i));
      std::sort(merits.rbegin(), merits.rend());
      groups.emplace_back(-(merits[0] + merits[1]), g);
    }
    std::sort(groups.begin(), groups.end());
    for (uint32_t rank = 0; rank < kGroupsUsed; ++rank)
      for (uint32_t i = 0; i < kSize; ++i) {
        const uint32_t expert = groups[rank].second * kSize + i;
        experts.emplace_back(-merit(expert), expert);
      }
    std::sort(experts.begin(), experts.end());
    std::vector<uint32_t> expected;
    for (uint32_t j = 0; j < kUsed; ++j) expected.push_back(experts[j].second);
    EXPECT_EQ(choose(grouped(kGroups * kSize, kUsed, kGroups, kGroupsUsed), logits, bias.data()),
              expected)
        << "trial " << trial;
  }
}

}  // namespace
}  // namespace offstage
