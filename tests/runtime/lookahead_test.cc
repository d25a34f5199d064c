// Guesses are held against the truth: right ones earn their reads, wrong ones lose them.
#include "runtime/lookahead.h"

#include "runtime_fixture.h"

namespace offstage {
namespace {

// A model opened with few slots, and a Lookahead of the test's own beside the runtime's.
class LookaheadTest : public ::testing::Test {
 protected:
  void open(Prefetch prefetch) {
    RuntimeOptions options = test_options(model_file("micro-qwen3moe-q4_k_m.gguf"));
    options.process_bytes = 64ull << 20;
    options.ram_bytes = 93ull << 20;
    model_ = open_model(options);
    ASSERT_NE(model_, nullptr);
    Runtime& runtime = *model_->runtime;
    ASSERT_LT(runtime.plan().slots.kept_per_layer[0], runtime.spec().router.n_experts);
    workers_.emplace(1, model_->notices);
    compute_.emplace(runtime.kernels(), *workers_);
    lookahead_.emplace(runtime.spec(), *compute_, runtime.tier(), runtime.timer(), prefetch);
    x_.resize(runtime.spec().hidden);
  }

  // One step: a guess at layer 1, then its event, with calls that prove the guess right or wrong.
  void step(bool right) {
    Runtime& runtime = *model_->runtime;
    const ModelSpec& spec = runtime.spec();
    for (float& x : x_) x = static_cast<float>(rng_.uniform()) - 0.5f;
    ++steps_;
    if (lookahead_->wants(kLayer, 1)) {
      ++guesses_;
      lookahead_->guess(kLayer, runtime.weights().layers[kLayer.value], x_.data(), 1);
    }
    const std::vector<ExpertId> guess = guess_of(x_);
    std::vector<ExpertCall> calls;
    for (uint32_t e = 0; e < spec.router.n_experts && calls.size() < spec.router.n_used; ++e) {
      const bool guessed = std::find(guess.begin(), guess.end(), ExpertId(e)) != guess.end();
      if (guessed == right) calls.push_back({ExpertId(e), 1});
    }
    lookahead_->learn(kLayer, calls);
    runtime.tier().begin(kLayer, calls, Phase::kDecode);
    while (true) {
      const auto pinned = runtime.tier().next();
      ASSERT_TRUE(pinned);
      if (pinned->experts().empty()) break;
    }
    runtime.tier().end();
  }

  // What the layer's own router makes of x, computed apart from the code under test.
  std::vector<ExpertId> guess_of(const std::vector<float>& x) {
    Runtime& runtime = *model_->runtime;
    const ModelSpec& spec = runtime.spec();
    const LayerWeights& weights = runtime.weights().layers[kLayer.value];
    std::vector<float> normed(spec.hidden), logits(spec.router.n_experts);
    const Kernels& kernels = runtime.kernels();
    kernels.rms_norm(x.data(), weights.ffn_norm, spec.hidden, spec.norm_eps, normed.data());
    HostArena memory = *HostArena::create(
        "test", ActivationCache::memory_bytes(1, spec.hidden) + 64, model_->notices);
    ActivationCache forms(memory.take(ActivationCache::memory_bytes(1, spec.hidden), 64), 1,
                          spec.hidden);
    forms.reset(normed.data(), 1);
    compute_->matmul(weights.router, forms.for_weights(weights.router.type, *compute_), 1,
                     logits.data());
    Router router(spec.router, kernels, 1);
    return router.route(logits.data(), 1).experts;
  }

  static constexpr LayerIndex kLayer{1};
  std::unique_ptr<OpenModel> model_;
  std::optional<ThreadPool> workers_;
  std::optional<Compute> compute_;
  std::optional<Lookahead> lookahead_;
  std::vector<float> x_;
  Rng rng_{7};
  uint32_t steps_ = 0, guesses_ = 0;
};

TEST_F(LookaheadTest, RightGuessesAreReadAndUseful) {
  open(Prefetch::kAuto);
  for (int i = 0; i < 40; ++i) step(true);
  const TierCounters& counters = model_->runtime->tier().counters();
  EXPECT_GT(counters.prefetches, 20u);
  EXPECT_EQ(counters.prefetches_useful, counters.prefetches);
  EXPECT_EQ(counters.prefetch_wasted_bytes, 0u);
  const LayerForesight& foresight = lookahead_->layers()[kLayer.value];
  EXPECT_EQ(foresight.guessed_hits, foresight.guesses);
  EXPECT_EQ(guesses_, steps_);
}

TEST_F(LookaheadTest, WrongGuessesAreNeverRead) {
  open(Prefetch::kAuto);
  for (int i = 0; i < 64; ++i) step(false);
  EXPECT_EQ(model_->runtime->tier().counters().prefetches, 0u);
  EXPECT_LT(guesses_, steps_ / 2);  // and seldom made
  EXPECT_EQ(lookahead_->layers()[kLayer.value].guessed_hits, 0u);
}

TEST_F(LookaheadTest, GuessesThatTurnWrongStopWithinSixtyFourSteps) {
  open(Prefetch::kAuto);
  for (int i = 0; i < 40; ++i) step(true);
  for (int i = 0; i < 64; ++i) step(false);
  const uint64_t before = model_->runtime->tier().counters().prefetches;
  for (int i = 0; i < 64; ++i) step(false);
  EXPECT_EQ(model_->runtime->tier().counters().prefetches, before);
  for (int i = 0; i < 400; ++i) step(true);  // and come back when they are right again
  EXPECT_GT(model_->runtime->tier().counters().prefetches, before);
}

TEST_F(LookaheadTest, OffMeansNoGuess) {
  open(Prefetch::kOff);
  for (int i = 0; i < 20; ++i) step(true);
  EXPECT_EQ(guesses_, 0u);
  EXPECT_EQ(model_->runtime->tier().counters().prefetches, 0u);
}

TEST_F(LookaheadTest, AlwaysReadsEvenWhatFails) {
  open(Prefetch::kAlways);
  for (int i = 0; i < 40; ++i) step(false);
  const TierCounters& counters = model_->runtime->tier().counters();
  EXPECT_GT(counters.prefetches, 0u);
  EXPECT_EQ(counters.prefetches_useful, 0u);
}

TEST_F(LookaheadTest, WideStepsAreNotGuessed) {
  open(Prefetch::kAlways);
  EXPECT_TRUE(lookahead_->wants(kLayer, Lookahead::kRowsMax));
  EXPECT_FALSE(lookahead_->wants(kLayer, Lookahead::kRowsMax + 1));
}

}  // namespace
}  // namespace offstage
