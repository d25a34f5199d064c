// What will be called is foretold from what was, and only when it has proven sure.
#include "runtime/chunk_forecast.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace offstage {
namespace {

constexpr uint32_t kLayers = 6, kExperts = 64, kUsed = 4;

class ChunkForecastTest : public ::testing::Test {
 protected:
  ChunkForecastTest()
      : usage_{kLayers, kExperts, 0, std::vector<float>(size_t{kLayers} * kExperts, 0)},
        forecast_(usage_, kUsed, true) {}

  // One forward over a chunk in which expert e is called with probability `p(e)`.
  template <typename P>
  void forward(uint32_t n_rows, P&& p) {
    for (uint32_t l = 0; l < kLayers; ++l) {
      named_ = {};
      for (const ExpertId e : forecast_.foretell(LayerIndex(l), n_rows)) named_.push_back(e);
      std::vector<ExpertCall> calls;
      std::vector<bool> is_called(kExperts);
      for (uint32_t e = 0; e < kExperts; ++e)
        if (rng_.uniform() < p(e)) {
          calls.push_back({ExpertId(e), 1});
          is_called[e] = true;
        }
      for (const ExpertId e : named_) ++(is_called[e.value] ? right_ : wrong_);
      // As the tier's policy does, before the layer's event is learned.
      for (const ExpertCall& call : calls)
        usage_.calls[size_t{l} * kExperts + call.expert.value] +=
            static_cast<float>(n_rows * kUsed) / static_cast<float>(calls.size());
      forecast_.learn(LayerIndex(l), calls);
      n_called_ += calls.size();
    }
  }

  Rng rng_{5};
  ExpertUsage usage_;
  ChunkForecast forecast_;
  std::vector<ExpertId> named_;
  uint64_t right_ = 0, wrong_ = 0, n_called_ = 0;
};

TEST_F(ChunkForecastTest, AColdStartLearnsFromTheFirstLayersThatAllAreCalled) {
  forward(512, [](uint32_t) { return 1.0; });
  EXPECT_EQ(named_.size(), kExperts);           // of the last layer
  EXPECT_LE(right_, (kLayers - 1) * kExperts);  // of the first none: nothing was known
  EXPECT_GE(right_, 2 * kExperts);
  EXPECT_EQ(wrong_, 0u);
}

TEST_F(ChunkForecastTest, ExpertsThatAreNeverCalledAreNotNamed) {
  for (int i = 0; i < 4; ++i) forward(512, [](uint32_t e) { return e < 8 ? 0.0 : 1.0; });
  EXPECT_EQ(named_.size(), kExperts - 8);
  EXPECT_EQ(named_.front(), ExpertId(8));
  EXPECT_LE(wrong_, (right_ + wrong_) / 20);
}

TEST_F(ChunkForecastTest, WhatIsReadInVainStaysUnderATwentieth) {
  for (const double sure : {1.0, 0.98, 0.9, 0.6, 0.2}) {
    right_ = wrong_ = n_called_ = 0;
    for (int i = 0; i < 6; ++i) forward(64, [&](uint32_t e) { return e % 4 == 0 ? 0.1 : sure; });
    EXPECT_LE(static_cast<double>(wrong_), 0.05 * static_cast<double>(n_called_)) << sure;
  }
}

TEST_F(ChunkForecastTest, AFewRowsCallFewAndNothingIsNamed) {
  for (int i = 0; i < 5; ++i) forward(2, [](uint32_t) { return 0.1; });
  EXPECT_EQ(right_ + wrong_, 0u);
}

// Of layers that were never called, the router's early votes are all there is to go by.
TEST_F(ChunkForecastTest, WithoutAPastTheVotesCount) {
  std::vector<uint16_t> votes(kExperts, 0);
  for (uint32_t e = 0; e < 10; ++e) votes[e] = 20;
  votes[10] = 1;
  EXPECT_FALSE(forecast_.has_past(LayerIndex(0)));
  const auto likely = forecast_.foretell(LayerIndex(0), 512, votes);
  ASSERT_EQ(likely.size(), 10u);
  EXPECT_EQ(likely.back(), ExpertId(9));
  // Layer after layer the voted ones aren't called in the end, and votes lose their credit.
  for (uint32_t l = 0; l < kLayers; ++l) {
    (void)forecast_.foretell(LayerIndex(l), 512, votes);
    const ExpertCall other = {ExpertId(40), 1};
    forecast_.learn(LayerIndex(l), {&other, 1});
  }
  EXPECT_TRUE(forecast_.foretell(LayerIndex(0), 512, votes).empty());
  usage_.calls[40] = 1;
  EXPECT_TRUE(forecast_.has_past(LayerIndex(0)));
}

TEST_F(ChunkForecastTest, SwitchedOffItIsSilent) {
  ChunkForecast off(usage_, kUsed, false);
  forward(512, [](uint32_t) { return 1.0; });
  for (uint32_t l = 0; l < kLayers; ++l) {
    EXPECT_TRUE(off.foretell(LayerIndex(l), 512).empty());
    off.learn(LayerIndex(l), {});
  }
}

}  // namespace
}  // namespace offstage
