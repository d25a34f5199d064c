// Guesses are held against the truth: right ones earn their reads, wrong ones lose them.
#include "runtime/lookahead.h"

#include "runtime_fixture.h"

namespace offstage {
namespace {

// A model opened with few slots, and a Lookahead of the test's own beside the runtime's.
class LookaheadTest : public ::testing::Test {
 protected:
  void open(Prefetch prefetch, const char* io_fault = "") {
    RuntimeOptions options = test_options(model_file("micro-qwen3moe-q4_k_m.gguf"));
    options.prefetch = Prefetch::kOff;  // of the runtime's own
    options.io_fault = io_fault;
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
    draw();
    look(kLayer);
    visit(kLayer, right);
  }

  // A token: every layer is looked at from the one before, and visited, with one stream for all.
  void pass(uint32_t n_layers, bool right) {
    draw();
    for (uint32_t l = 0; l < n_layers; ++l) {
      look(LayerIndex(l));
      visit(LayerIndex(l), right);
    }
  }

  void draw() {
    for (float& x : x_) x = static_cast<float>(rng_.uniform()) - 0.5f;
    ++steps_;
  }
  void look(LayerIndex next) {
    const auto weights = std::span(model_->runtime->weights().layers).subspan(next.value);
    guesses_before_ = named(next);
    guess_ = guess_of(next);  // now: it takes time, in which what is guessed would be read
    lookahead_->look(next, weights, x_.data(), 1);
  }
  uint64_t named(LayerIndex layer) const { return lookahead_->layers()[layer.value].guesses; }

  // The event of the layer that was looked at; it calls what its router makes of the stream, or
  // nothing of that.
  void visit(LayerIndex layer, bool right) {
    Runtime& runtime = *model_->runtime;
    const ModelSpec& spec = runtime.spec();
    std::vector<ExpertCall> calls;
    for (uint32_t e = 0; e < spec.router.n_experts && calls.size() < spec.router.n_used; ++e) {
      const bool guessed = std::find(guess_.begin(), guess_.end(), ExpertId(e)) != guess_.end();
      if (guessed == right) calls.push_back({ExpertId(e), 1});
    }
    runtime.tier().begin(layer, calls, Phase::kDecode);
    lookahead_->learn(layer, calls);
    guesses_ += named(layer) > guesses_before_ ? 1 : 0;
    while (true) {
      const auto pinned = runtime.tier().next();
      ASSERT_TRUE(pinned);
      if (pinned->experts().empty()) break;
    }
    runtime.tier().end();
  }

  // What the layer's own router makes of the stream, computed apart from the code under test.
  std::vector<ExpertId> guess_of(LayerIndex layer) {
    Runtime& runtime = *model_->runtime;
    const ModelSpec& spec = runtime.spec();
    const LayerWeights& weights = runtime.weights().layers[layer.value];
    std::vector<float> normed(spec.hidden), logits(spec.router.n_experts);
    const Kernels& kernels = runtime.kernels();
    kernels.rms_norm(x_.data(), weights.ffn_norm, spec.hidden, spec.norm_eps, normed.data());
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
  uint64_t guesses_before_ = 0;
  std::vector<ExpertId> guess_;
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
  const LayerWeights& weights = model_->runtime->weights().layers[kLayer.value];
  const size_t hidden = model_->runtime->spec().hidden;
  const std::vector<float> x((Lookahead::kRowsMax + 1) * hidden, 0.5f);
  lookahead_->look(kLayer, {&weights, 1}, x.data(), Lookahead::kRowsMax + 1);
  EXPECT_EQ(model_->runtime->tier().counters().prefetches, 0u);
  lookahead_->look(kLayer, {&weights, 1}, x.data(), Lookahead::kRowsMax);
  EXPECT_GT(model_->runtime->tier().counters().prefetches, 0u);
}

// The drive answers late: right guesses are made earlier, as far as there are layers. Then it
// answers at once, and the horizon comes back.
TEST_F(LookaheadTest, LateGuessesMoveTheHorizonOut) {
  open(Prefetch::kAuto, "delay=2ms");
  const uint32_t n_layers = static_cast<uint32_t>(model_->runtime->weights().layers.size());
  ASSERT_GE(n_layers, 3u);
  for (int i = 0; i < 100; ++i) pass(n_layers, true);
  EXPECT_GE(lookahead_->horizon(), 2u);
  const LayerForesight& from_afar = lookahead_->layers(2)[2];
  EXPECT_GT(from_afar.guesses, 0u);
  EXPECT_EQ(from_afar.guessed_hits, from_afar.guesses);
}

TEST(RecentPaybackTest, BreaksEvenWhereTheLossIsTheGain) {
  RecentPayback payback;
  payback.add({.right = 8, .wrong = 8, .saved_ns = 8000, .lost_ns = 800});
  EXPECT_EQ(payback.break_even(), 0);  // little is known
  payback.add({.right = 60, .wrong = 60, .saved_ns = 60'000, .lost_ns = 180'000});
  EXPECT_GT(payback.break_even(), 0.7f);
  EXPECT_LT(payback.break_even(), 0.76f);  // saves 1, loses 3
  payback.add({.right = 600, .wrong = 600, .saved_ns = 600'000, .lost_ns = 180'000});
  EXPECT_LT(payback.break_even(), 0.2f);  // of late nothing is lost
}

// Four of five guesses are right, but a drive that answers after 2 ms has done nothing of a right
// one when it is called, and holds up the called ones with the wrong one.
TEST_F(LookaheadTest, GuessesThatDontPayAreNotRead) {
  open(Prefetch::kAuto, "delay=2ms");
  const TierCounters& counters = model_->runtime->tier().counters();
  for (int i = 0; i < 300; ++i) step(i % 5 != 0);
  const uint64_t before = counters.prefetches;
  EXPECT_GT(before, 0u);
  for (int i = 0; i < 100; ++i) step(i % 5 != 0);
  EXPECT_LE(counters.prefetches - before, 5u);
}

TEST_F(LookaheadTest, WrongGuessesLeaveTheHorizonAlone) {
  open(Prefetch::kAuto, "delay=2ms");
  const uint32_t n_layers = static_cast<uint32_t>(model_->runtime->weights().layers.size());
  for (int i = 0; i < 40; ++i) pass(n_layers, false);
  EXPECT_EQ(lookahead_->horizon(), 1u);
}

}  // namespace
}  // namespace offstage
