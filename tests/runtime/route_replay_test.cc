// A trace in the router's place: its experts, its weights, its k; and the bytes that a run reads
// under it are those that the trace says a cache of that size misses.
#include "runtime/route_replay.h"

#include <algorithm>

#include "cache/replay.h"
#include "runtime_fixture.h"
#include "tests/cache/synthetic_routes.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::TempFile;

constexpr uint32_t kLayers = 3, kExperts = 8;  // of the model

std::vector<TokenId> text(uint32_t n = 40) {
  std::vector<TokenId> tokens;
  for (uint32_t t = 0; t < n; ++t) tokens.push_back(static_cast<TokenId>(3 + t * 7 % 290));
  return tokens;
}

class RouteReplayTest : public ::testing::Test {
 protected:
  RouteReplayTest() : trace_file_({}), record_file_({}) {
    options_ = test_options(model_file("micro-qwen3moe-q4_k_m.gguf"));
    options_.process_bytes = 64ull << 20;
    options_.warm_start = false;
  }
  void give(const RouteLog& trace) {
    ASSERT_TRUE(write_route_log(trace_file_.path(), trace));
    options_.replay_routing = trace_file_.path();
  }
  // Fewer slots than experts, and nothing but LRU and demand reads.
  void make_small() {
    options_.ram_bytes = 93ull << 20;
    options_.cache_policy = "lru";
    options_.prefetch = Prefetch::kOff;
  }
  // Scores `tokens`, recording what was called.
  RouteLog called(const std::vector<TokenId>& tokens) {
    model_ = open_model(options_);
    if (model_ == nullptr) return {};
    EXPECT_TRUE(model_->runtime->record_routes(record_file_.path()));
    logits_ = score(*model_->runtime, tokens);
    EXPECT_TRUE(model_->runtime->close_route_record());
    auto log = read_route_log(record_file_.path());
    EXPECT_TRUE(log);
    return log ? std::move(*log) : RouteLog();
  }
  size_t notices_of(std::string_view subject) const {
    const auto list = model_->notices.list();
    return static_cast<size_t>(std::count_if(
        list.begin(), list.end(), [&](const Notice& notice) { return notice.subject == subject; }));
  }
  Error refusal() {
    Notices notices;
    const auto runtime = Runtime::open(options_, notices, {});
    EXPECT_FALSE(runtime);
    return runtime ? Error() : runtime.error();
  }

  TempFile trace_file_, record_file_;
  RuntimeOptions options_;
  std::unique_ptr<OpenModel> model_;
  std::vector<float> logits_;
};

// Another k than the model's: scratch, plan and look-ahead are the trace's.
TEST_F(RouteReplayTest, CallsWhatTheTraceSaysInChunksOfAnySize) {
  const RouteLog trace = random_routes({kLayers, kExperts, 3, true, false}, 40, 5);
  give(trace);
  const RouteLog whole = called(text());
  EXPECT_EQ(whole.shape.n_used, 3u);
  EXPECT_EQ(whole.experts, trace.experts);
  EXPECT_EQ(whole.probs, trace.probs);
  EXPECT_EQ(model_->runtime->spec().router.n_used, 3u);
  const std::vector<float> logits = logits_;
  options_.chunk_rows = 7;
  EXPECT_EQ(called(text()).experts, trace.experts);
  EXPECT_TRUE(same_bits(logits_, logits));
  EXPECT_EQ(notices_of("replay_routing"), 1u);
}

// Its own routing, given back, is the router's own result but for the weights' rounding.
TEST_F(RouteReplayTest, WeightsAreTheTraces) {
  RouteLog own = called(text());
  const std::vector<float> original = logits_;
  const auto farthest = [&] {
    float most = 0;
    for (size_t i = 0; i < original.size(); ++i)
      most = std::max(most, std::abs(logits_[i] - original[i]));
    return most;
  };
  give(own);
  called(text());
  const float with_weights = farthest();
  own.shape.has_probs = false;
  own.probs.clear();
  give(own);
  EXPECT_EQ(called(text()).weight(7, 1, 0), 0.5f);
  EXPECT_LT(20 * with_weights, farthest());
}

TEST_F(RouteReplayTest, AShortTraceBeginsAgainAndSaysSo) {
  const RouteLog trace = random_routes({kLayers, kExperts, 2, false, false}, 7, 5);
  give(trace);
  options_.chunk_rows = 5;
  const RouteLog log = called(text(16));
  for (uint64_t t = 0; t < 16; ++t)
    for (uint32_t l = 0; l < kLayers; ++l)
      EXPECT_TRUE(std::ranges::equal(log.calls(t, l), trace.calls(t % 7, l))) << t;
  EXPECT_EQ(notices_of("replay_routing"), 2u);
  EXPECT_EQ(model_->runtime->route_replay()->restarts(), 2u);
  EXPECT_EQ(model_->runtime->route_replay()->rows_replayed(), 16u);
}

TEST_F(RouteReplayTest, AForwardThatFailedUsedUpNothing) {
  const RouteLog trace = random_routes({kLayers, kExperts, 2, false, false}, 4, 9);
  give(trace);
  model_ = open_model(options_);
  ASSERT_NE(model_, nullptr);
  auto replay = RouteReplay::open(trace_file_.path(), model_->runtime->spec().router, kLayers, 1.0,
                                  model_->notices);
  ASSERT_TRUE(replay);
  replay->begin_forward(3);
  replay->begin_forward(2);  // after an error
  replay->end_forward();
  EXPECT_EQ(replay->rows_replayed(), 2u);
  EXPECT_EQ(replay->foretold(LayerIndex(1), 0, 1, 1), ExpertId(trace.calls(2, 1)[1]));
}

// The arithmetic of a paced measurement rests on this: bytes that a run reads on demand are those
// that the replay of its trace misses with the same slots, to the byte.
TEST_F(RouteReplayTest, ReadsExactlyWhatLruMisses) {
  constexpr uint32_t kTokens = 60;
  make_small();
  for (const uint64_t less : {300ull << 10, 0ull}) {
    options_.ram_bytes = (93ull << 20) - less;
    const RouteLog trace = random_routes({kLayers, kExperts, 2, true, false}, kTokens, 21);
    give(trace);
    model_ = open_model(options_);
    ASSERT_NE(model_, nullptr);
    Runtime& runtime = *model_->runtime;
    const std::vector<uint32_t>& kept = runtime.plan().slots.kept_per_layer;
    ASSERT_GE(*std::min_element(kept.begin(), kept.end()), 2u);
    ASSERT_LT(*std::max_element(kept.begin(), kept.end()), kExperts);
    const uint64_t loaded = runtime.reads().counters().bytes_read;
    generate_greedy(runtime, {5}, kTokens);  // the last token is generated, and not run
    ASSERT_EQ(runtime.route_replay()->rows_replayed(), kTokens);

    const auto expected = replay(trace, {kept, kTokens}, *make_lru_policy(kLayers, kExperts));
    const LayerHits total = expected.total();
    EXPECT_EQ(runtime.tier().counters().ram_hits, total.hits);
    EXPECT_EQ(runtime.tier().counters().drive_reads, total.lookups - total.hits);
    const ExpertLayout layout = runtime.file().expert_layout();
    EXPECT_EQ(runtime.reads().counters().bytes_read - loaded,
              bytes_missed(expected, layout, runtime.file().file_bytes()));
    EXPECT_GT(total.hits, 0u);
  }
}

// An oracle that tells everything is never wrong and misses no read; its word changes no bit.
TEST_F(RouteReplayTest, TheOracleForetellsTheShareItIsAskedFor) {
  make_small();
  give(random_routes({kLayers, kExperts, 2, true, false}, 60, 33));
  model_ = open_model(options_);
  ASSERT_NE(model_, nullptr);
  const auto tokens = generate_greedy(*model_->runtime, {5}, 60);
  options_.prefetch = Prefetch::kAuto;
  for (const double recall : {1.0, 0.5, 0.0}) {
    options_.oracle_prefetch = recall;
    model_ = open_model(options_);
    ASSERT_NE(model_, nullptr);
    EXPECT_EQ(generate_greedy(*model_->runtime, {5}, 60), tokens);
    const TierCounters& tier = model_->runtime->tier().counters();
    EXPECT_EQ(tier.prefetches_useful, tier.prefetches);
    EXPECT_EQ(tier.prefetch_wasted_bytes, 0u);
    uint64_t told = 0;
    for (const LayerForesight& layer : model_->runtime->lookahead().layers()) {
      EXPECT_EQ(layer.guessed_hits, layer.guesses);
      told += layer.guesses;
    }
    const double share = static_cast<double>(told) / (60 * kLayers * 2);
    EXPECT_NEAR(share, recall, recall == 0.5 ? 0.1 : 0);
    if (recall == 1) {
      EXPECT_GT(tier.prefetches, tier.drive_reads / 2);
    }
    EXPECT_EQ(notices_of("oracle_prefetch"), 1u);
  }
}

TEST_F(RouteReplayTest, TracesThatDontFitAreRefused) {
  give(random_routes({kLayers + 1, kExperts, 2}, 4, 1));
  EXPECT_NE(refusal().message.find("3 layers"), std::string::npos) << refusal().message;
  give(random_routes({kLayers, kExperts + 1, 2}, 4, 1));
  EXPECT_EQ(refusal().code, ErrorCode::kInvalidArgument);
  give(random_routes({kLayers, kExperts, 2}, 0, 1));
  EXPECT_NE(refusal().message.find("no token"), std::string::npos);
  give(random_routes({kLayers, kExperts, 2}, 4, 1));
  options_.model_path = model_file("qwen3-s1.gguf");
  EXPECT_EQ(refusal().code, ErrorCode::kInvalidArgument);
}

TEST_F(RouteReplayTest, AnOracleNeedsATraceAndSomebodyToAskIt) {
  options_.oracle_prefetch = 1;
  EXPECT_EQ(refusal().code, ErrorCode::kInvalidArgument);
  give(random_routes({kLayers, kExperts, 2}, 4, 1));
  options_.prefetch = Prefetch::kOff;
  EXPECT_EQ(refusal().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace offstage
