// What is read before it is called is a step's guesses or a chunk's forecast, and both learn.
#include "runtime/read_ahead.h"

#include "runtime_fixture.h"

namespace offstage {
namespace {

constexpr uint32_t kRows = 32;  // of a chunk

// A model without an expert in RAM, and a ReadAhead of the test's own beside the runtime's.
class ReadAheadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    RuntimeOptions options = test_options(model_file("micro-qwen3moe-q4_k_m.gguf"));
    options.prefetch = Prefetch::kOff;  // of the runtime's own
    options.warm_start = options.preload = false;
    model_ = open_model(options);
    ASSERT_NE(model_, nullptr);
    Runtime& runtime = *model_->runtime;
    const ModelSpec& spec = runtime.spec();
    workers_.emplace(1, model_->notices);
    compute_.emplace(runtime.kernels(), *workers_);
    lookahead_.emplace(spec, *compute_, runtime.tier(), runtime.timer(), Prefetch::kAlways);
    usage_ = {spec.n_layers, spec.router.n_experts, 0,
              std::vector<float>(size_t{spec.n_layers} * spec.router.n_experts, 0)};
    forecast_.emplace(usage_, spec.router.n_used, true);
    read_ahead_.emplace(
        ReadAhead::Parts{spec, runtime.weights(), runtime.tier(), *lookahead_, *forecast_});
    Rng rng(7);
    std::vector<float> row(spec.hidden);
    for (float& x : row) x = static_cast<float>(rng.uniform()) - 0.5f;
    for (uint32_t r = 0; r < kRows; ++r) x_.insert(x_.end(), row.begin(), row.end());
  }

  // How many experts of the layer are there or on their way then.
  size_t look(uint32_t layer, uint32_t n_rows, Phase phase) {
    read_ahead_->look(layer, x_.data(), n_rows, phase);
    return at_hand(layer, true).size();
  }
  std::vector<ExpertCall> at_hand(uint32_t layer, bool is) {
    std::vector<ExpertCall> experts;
    const ModelSpec& spec = model_->runtime->spec();
    for (uint32_t e = 0; layer < spec.n_layers && e < spec.router.n_experts; ++e)
      if (model_->runtime->tier().is_at_hand(LayerIndex(layer), ExpertId(e)) == is)
        experts.push_back({ExpertId(e), 1});
    return experts;
  }
  // The layer's event: it calls what was read, or all but that.
  void visit(uint32_t layer, bool right, Phase phase) {
    RamTier& tier = model_->runtime->tier();
    const std::vector<ExpertCall> calls = at_hand(layer, right);
    tier.begin(LayerIndex(layer), calls, phase);
    read_ahead_->learn(LayerIndex(layer), calls);
    while (true) {
      const auto pinned = tier.next();
      ASSERT_TRUE(pinned);
      if (pinned->experts().empty()) break;
    }
    tier.end();
  }

  std::unique_ptr<OpenModel> model_;
  std::optional<ThreadPool> workers_;
  std::optional<Compute> compute_;
  std::optional<Lookahead> lookahead_;
  ExpertUsage usage_;  // nobody counts: every layer is one without a past
  std::optional<ChunkForecast> forecast_;
  std::optional<ReadAhead> read_ahead_;
  std::vector<float> x_;  // [kRows][hidden], all rows alike
};

TEST_F(ReadAheadTest, AChunkIsForetoldUntilThatFails) {
  EXPECT_EQ(look(0, kRows, Phase::kPrefill), model_->runtime->spec().router.n_used);
  visit(0, true, Phase::kPrefill);
  EXPECT_GT(look(1, kRows, Phase::kPrefill), 0u);
  visit(1, false, Phase::kPrefill);
  EXPECT_EQ(look(2, kRows, Phase::kPrefill), 0u);
}

TEST_F(ReadAheadTest, AStepIsGuessedAndTheGuessHeldAgainstTheTruth) {
  const uint32_t n_used = model_->runtime->spec().router.n_used;
  EXPECT_EQ(look(1, 1, Phase::kDecode), n_used);
  visit(1, true, Phase::kDecode);
  EXPECT_EQ(lookahead_->layers()[1].guesses, n_used);
  EXPECT_EQ(lookahead_->layers()[1].guessed_hits, n_used);
}

TEST_F(ReadAheadTest, ThereIsNothingPastTheLastLayer) {
  const uint32_t n_layers = model_->runtime->spec().n_layers;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode})
    EXPECT_EQ(look(n_layers, 1, phase), 0u);
}

}  // namespace
}  // namespace offstage
