// The sampler against a brute-force reference of llama.cpp's order: penalty, top-k, top-p, min-p,
// temperature, draw.
#include "runtime/sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace offstage {
namespace {

using ::testing::HasSubstr;

SamplerOptions options_of(float temperature) {
  SamplerOptions options;
  options.temperature = temperature;
  options.top_k = 0;
  options.top_p = 1;
  options.min_p = 0;
  return options;
}

// Each id's probability, worked out the slow way.
std::map<TokenId, double> reference(std::vector<double> logits, const SamplerOptions& options,
                                    const std::vector<TokenId>& history) {
  std::set<TokenId> recent;
  const size_t n = options.repeat_last_n < 0
                       ? history.size()
                       : std::min(history.size(), static_cast<size_t>(options.repeat_last_n));
  for (size_t i = history.size() - n; i < history.size(); ++i) recent.insert(history[i]);
  for (const TokenId id : recent) {
    double& logit = logits[static_cast<size_t>(id)];
    const auto penalty = static_cast<double>(options.repeat_penalty);
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  std::vector<TokenId> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<TokenId>(i);
  const auto logit = [&](TokenId id) { return logits[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logit(a) > logit(b); });
  if (options.top_k > 0) order.resize(std::min<size_t>(order.size(), options.top_k));
  const auto share = [&](size_t i) {
    double sum = 0;
    for (const TokenId id : order) sum += std::exp(logit(id));
    return std::exp(logit(order[i])) / sum;
  };
  if (options.top_p < 1) {
    size_t kept = 0;
    for (double sum = 0; kept < order.size() && sum < static_cast<double>(options.top_p);)
      sum += share(kept++);
    order.resize(std::max<size_t>(kept, 1));
  }
  if (options.min_p > 0)
    std::erase_if(order, [&, best = share(0)](TokenId id) {
      const auto at =
          static_cast<size_t>(std::find(order.begin(), order.end(), id) - order.begin());
      return share(at) < static_cast<double>(options.min_p) * best * (1 - 1e-9);
    });
  std::map<TokenId, double> probabilities;
  double sum = 0;
  for (const TokenId id : order) sum += std::exp(logit(id) / options.temperature);
  for (const TokenId id : order)
    probabilities[id] = std::exp(logit(id) / options.temperature) / sum;
  return probabilities;
}

std::vector<float> random_logits(Rng& rng, size_t n) {
  std::vector<float> logits(n);
  for (float& logit : logits) logit = static_cast<float>(rng.uniform() * 8 - 4);
  return logits;
}

TEST(SamplerTest, GreedyTakesTheLowestIdOfTheBest) {
  Sampler sampler(options_of(0), 6);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 5, 2, 5, 5, 0}, {}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 3, 3, 3, 3, 3}, {}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{-9, -8, -7, -6, -5, -4}, {}), 5);
  EXPECT_EQ(argmax(std::vector<float>{-INFINITY, -1}), 1);
}

TEST(SamplerTest, NegativeTemperaturesAreGreedyToo) {
  Sampler sampler(options_of(-1), 3);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 5, 2}, {}), 1);
}

TEST(SamplerTest, NanIsNeverDrawn) {
  EXPECT_EQ(argmax(std::vector<float>{NAN, 1, NAN, 2}), 3);
  for (const float temperature : {0.0f, 1.0f}) {
    SamplerOptions options = options_of(temperature);
    options.top_k = 3;
    Sampler sampler(options, 40);
    std::vector<float> logits(40, NAN);
    logits[7] = 1;
    logits[20] = 2;
    logits[39] = 0;
    for (int i = 0; i < 50; ++i) {
      const TokenId token = sampler.sample(logits, {});
      EXPECT_TRUE(token == 7 || token == 20 || token == 39) << token;
    }
    const TokenId none = sampler.sample(std::vector<float>(40, NAN), {});
    EXPECT_TRUE(none >= 0 && none < 40);
  }
}

// Only what the reference allows is drawn, and as often as it says.
TEST(SamplerTest, DrawsWhatTheReferenceAllowsAsOftenAsItSays) {
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    SamplerOptions options = options_of(static_cast<float>(0.3 + rng.uniform() * 1.5));
    if (seed % 2 == 0) options.top_k = static_cast<int32_t>(1 + rng.below(14));
    if (seed % 3 == 0) options.top_p = static_cast<float>(rng.uniform());
    if (seed % 4 == 0) options.min_p = static_cast<float>(rng.uniform() * 0.5);
    if (seed % 5 == 0) options.repeat_penalty = 1.7f;
    options.repeat_last_n = seed % 10 == 0 ? 2 : -1;
    options.seed = seed;
    const std::vector<float> logits = random_logits(rng, 12);
    const std::vector<TokenId> history = {3, 9, 3, 0, 5, 11};
    const auto expected = reference({logits.begin(), logits.end()}, options, history);
    Sampler sampler(options, 12);
    std::map<TokenId, int> drawn;
    constexpr int kDraws = 4000;
    for (int i = 0; i < kDraws; ++i) ++drawn[sampler.sample(logits, history)];
    for (const auto& [id, count] : drawn) EXPECT_TRUE(expected.contains(id)) << "token " << id;
    for (const auto& [id, p] : expected)  // 5 standard deviations
      EXPECT_NEAR(drawn[id], p * kDraws, 5 * std::sqrt(kDraws * p * (1 - p)) + 1) << "token " << id;
  }
}

TEST(SamplerTest, TopKKeepsTheLowerIdOfATie) {
  SamplerOptions options = options_of(1);
  options.top_k = 2;
  Sampler sampler(options, 5);
  for (int i = 0; i < 200; ++i) {
    const TokenId token = sampler.sample(std::vector<float>{0, 1, 1, 1, 0}, {});
    EXPECT_TRUE(token == 1 || token == 2);
  }
}

TEST(SamplerTest, TopPKeepsAtLeastOneAndStopsWhereTheSumIsReached) {
  SamplerOptions options = options_of(1);
  options.top_p = 0;
  Sampler one(options, 3);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(one.sample(std::vector<float>{1, 2, 1.5f}, {}), 1);
  // Shares of 1/2, 1/4, 1/4: a half is reached by the first alone, a little more takes the second.
  const std::vector<float> logits = {0, std::log(2.0f), 0};
  options.top_p = 0.499f;
  Sampler half(options, 3);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(half.sample(logits, {}), 1);
  options.top_p = 0.51f;
  Sampler more(options, 3);
  std::set<TokenId> seen;
  for (int i = 0; i < 200; ++i) seen.insert(more.sample(logits, {}));
  EXPECT_EQ(seen, (std::set<TokenId>{0, 1}));
}

TEST(SamplerTest, MinPIsAShareOfTheBest) {
  SamplerOptions options = options_of(1);
  options.min_p = 0.3f;
  Sampler sampler(options, 4);
  std::set<TokenId> seen;
  const std::vector<float> logits = {std::log(0.29f), 0, std::log(0.31f), std::log(0.9f)};
  for (int i = 0; i < 500; ++i) seen.insert(sampler.sample(logits, {}));
  EXPECT_EQ(seen, (std::set<TokenId>{1, 2, 3}));
}

TEST(SamplerTest, PenaltiesReachGreedyAndLookBackOnlySoFar) {
  SamplerOptions options = options_of(0);
  options.repeat_penalty = 2;
  options.repeat_last_n = 2;
  Sampler sampler(options, 3);
  const std::vector<float> logits = {4, 3, -1};
  EXPECT_EQ(sampler.sample(logits, std::vector<TokenId>{0}), 1);
  EXPECT_EQ(sampler.sample(logits, std::vector<TokenId>{0, 2, 2}), 0);  // too long ago
  EXPECT_EQ(sampler.sample(logits, std::vector<TokenId>{0, 0}), 1);     // penalised once: 2, not 1
  const std::vector<float> close = {4, 1.5f, -1};
  EXPECT_EQ(sampler.sample(close, std::vector<TokenId>{0, 0}), 0);
  const std::vector<float> negative = {-1, -1.5f, -9};
  EXPECT_EQ(sampler.sample(negative, std::vector<TokenId>{0}), 1);  // -1 becomes -2
  options.repeat_last_n = -1;
  Sampler all(options, 3);
  EXPECT_EQ(all.sample(logits, std::vector<TokenId>{0, 2, 2, 2, 2}), 1);
  options.repeat_last_n = 0;
  Sampler off(options, 3);
  EXPECT_EQ(off.sample(logits, std::vector<TokenId>{0}), 0);
}

TEST(SamplerTest, TheSeedDecides) {
  SamplerOptions options = options_of(1);
  const auto draw = [&](uint64_t seed) {
    options.seed = seed;
    Sampler sampler(options, 50);
    Rng rng(99);
    const std::vector<float> logits = random_logits(rng, 50);
    std::vector<TokenId> drawn;
    for (int i = 0; i < 100; ++i) drawn.push_back(sampler.sample(logits, {}));
    return drawn;
  };
  EXPECT_EQ(draw(5), draw(5));
  EXPECT_NE(draw(5), draw(6));
}

TEST(SamplerOptionsTest, WhatCantBeMeantIsNamed) {
  const auto refused = [](auto&& change, const char* flag) {
    SamplerOptions options;
    change(options);
    const Status status = options.check();
    ASSERT_FALSE(status) << flag;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message, HasSubstr(flag));
  };
  EXPECT_TRUE(SamplerOptions().check());
  refused([](auto& o) { o.temperature = NAN; }, "--temp");
  refused([](auto& o) { o.temperature = INFINITY; }, "--temp");
  refused([](auto& o) { o.top_p = NAN; }, "--top-p");
  refused([](auto& o) { o.top_p = -0.1f; }, "--top-p");
  refused([](auto& o) { o.min_p = NAN; }, "--min-p");
  refused([](auto& o) { o.min_p = 1.5f; }, "--min-p");
  refused([](auto& o) { o.repeat_penalty = 0; }, "--repeat-penalty");
  refused([](auto& o) { o.repeat_penalty = -1; }, "--repeat-penalty");
  refused([](auto& o) { o.repeat_penalty = NAN; }, "--repeat-penalty");
}

}  // namespace
}  // namespace offstage
