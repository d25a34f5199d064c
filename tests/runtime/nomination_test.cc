// Experts that the look-ahead names come to VRAM before they are called: more hits, the same
// bits.
#include <algorithm>
#include <set>

#include "tests/cache/synthetic_routes.h"
#include "tests/io/temp_file.h"
#include "tests/runtime/device_fixture.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::TempFile;

constexpr uint32_t kLayers = 3, kExperts = 8, kUsed = 2, kTokens = 60;

// All experts in RAM; a trace chooses them, and an oracle may foretell them.
class NominationTest : public ::testing::Test {
 protected:
  NominationTest() : trace_file_({}) {
    options_ = test_options(model_file("micro-qwen3moe-q4_k_m.gguf"));
    options_.process_bytes = 64ull << 20;
    options_.warm_start = false;
    options_.vram_bytes = 256ull << 20;
    options_.promote = Promote::kAlways;
    options_.placement = Placement::kCpu;
    options_.dense = DensePart::kCpu;
    options_.replay_routing = trace_file_.path();
    trace_ = random_routes({kLayers, kExperts, kUsed, true, false}, kTokens, 21);
    EXPECT_TRUE(write_route_log(trace_file_.path(), trace_));
  }

  struct Outcome {
    std::vector<float> logits;
    uint64_t hits = 0, nominated = 0, promotions = 0;
  };
  // Guesses that are right this often; nothing: no guesses.
  Outcome run(std::optional<double> recall) {
    options_.prefetch = recall ? Prefetch::kAuto : Prefetch::kOff;
    options_.oracle_prefetch = recall;
    const auto model = open_with_device(options_);
    if (model == nullptr || model->runtime->device_experts() == nullptr) {
      ADD_FAILURE() << "no device";
      return {};
    }
    Outcome outcome;
    outcome.logits = decode_logits(*model->runtime, std::vector<TokenId>(kTokens, 5));
    const DeviceExperts& device = *model->runtime->device_experts();
    outcome.hits = device.hits();
    outcome.nominated = device.nominated();
    outcome.promotions = device.vram().counters().promotions;
    return outcome;
  }
  uint64_t distinct_calls() const {
    std::set<std::pair<uint32_t, uint32_t>> called;
    for (uint64_t t = 1; t < trace_.n_tokens(); ++t)
      for (uint32_t l = 0; l < kLayers; ++l)
        for (const uint16_t e : trace_.calls(t, l)) called.insert({l, e});
    return called.size();
  }

  RuntimeOptions options_;
  TempFile trace_file_;
  RouteLog trace_;
};

// But those of the first token, before which no time for copies is known.
TEST_F(NominationTest, WithRoomForAllEveryCallIsAHit) {
  constexpr uint64_t kCalls = uint64_t{kTokens - 1} * kLayers * kUsed;
  const Outcome by_use = run({}), foretold = run(1.0);
  EXPECT_EQ(by_use.hits, kCalls - distinct_calls());
  EXPECT_EQ(by_use.nominated, 0u);
  EXPECT_EQ(foretold.hits, kCalls);
  EXPECT_EQ(foretold.nominated, distinct_calls());
  EXPECT_TRUE(same_bits(foretold.logits, by_use.logits));
}

TEST_F(NominationTest, WithRoomForAThirdThereAreMoreHits) {
  const auto file = ModelFile::open(options_.model_path);
  ASSERT_TRUE(file);
  options_.vram_bytes = (*file)->expert_layout().total_expert_bytes() / 3 + (32u << 10);
  const Outcome by_use = run({}), half = run(0.5), foretold = run(1.0);
  fmt::print("hits in VRAM of {}: by use {}, half of the calls foretold {}, all {}\n",
             kTokens * kLayers * kUsed, by_use.hits, half.hits, foretold.hits);
  EXPECT_GT(half.hits, by_use.hits);
  EXPECT_GT(foretold.hits, half.hits);
  EXPECT_TRUE(same_bits(foretold.logits, by_use.logits));
}

TEST_F(NominationTest, WithoutPromotionsNothingIsBrought) {
  options_.promote = Promote::kOff;
  const Outcome foretold = run(1.0);
  EXPECT_EQ(foretold.nominated, 0u);
  EXPECT_EQ(foretold.promotions, 0u);
}

}  // namespace
}  // namespace offstage
