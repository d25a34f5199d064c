// Recall of the next-layer gate, against guesses made here and calls that are known.
#include "runtime/gate_accuracy.h"

#include "runtime_fixture.h"

namespace offstage {
namespace {

class GateAccuracyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = open_model(test_options(model_file("micro-qwen3moe-q4_k_m.gguf")));
    ASSERT_NE(model_, nullptr);
    workers_.emplace(1, model_->notices);
    compute_.emplace(model_->runtime->kernels(), *workers_);
    gate_.emplace(spec(), *compute_, model_->runtime->weights(), kRows);
  }
  const ModelSpec& spec() const { return model_->runtime->spec(); }

  std::vector<float> random_stream() {
    std::vector<float> x(size_t{kRows} * spec().hidden);
    for (float& value : x) value = static_cast<float>(rng_.uniform()) - 0.5f;
    return x;
  }
  // What the layer's gate names for one row, computed apart from the code under test.
  std::vector<ExpertId> named_by(uint32_t layer, const float* row) {
    const Kernels& kernels = model_->runtime->kernels();
    const LayerWeights& weights = model_->runtime->weights().layers[layer];
    std::vector<float> normed(spec().hidden), logits(spec().router.n_experts);
    kernels.rms_norm(row, weights.ffn_norm, spec().hidden, spec().norm_eps, normed.data());
    HostArena memory = *HostArena::create(
        "test", ActivationCache::memory_bytes(1, spec().hidden) + 64, model_->notices);
    ActivationCache forms(memory.take(ActivationCache::memory_bytes(1, spec().hidden), 64), 1,
                          spec().hidden);
    forms.reset(normed.data(), 1);
    compute_->matmul(weights.router, forms.for_weights(weights.router.type, *compute_), 1,
                     logits.data());
    Router router(spec().router, kernels, 1);
    return router.route(logits.data(), 1).experts;
  }
  // Calls of `layer` that the gate named on `x`, except in every third row: others.
  Routing calls(uint32_t layer, const std::vector<float>& x) {
    Routing routing;
    routing.n_rows = kRows;
    routing.n_used = spec().router.n_used;
    for (uint32_t row = 0; row < kRows; ++row) {
      const auto named = named_by(layer, &x[size_t{row} * spec().hidden]);
      const bool right = row % 3 != 0;
      for (uint32_t e = 0, n = 0; e < spec().router.n_experts && n < routing.n_used; ++e) {
        const bool is_named = std::find(named.begin(), named.end(), ExpertId(e)) != named.end();
        if (is_named != right) continue;
        routing.experts.push_back(ExpertId(e));
        ++n;
      }
    }
    return routing;
  }

  static constexpr uint32_t kRows = 11;  // not a multiple of any batch
  std::unique_ptr<OpenModel> model_;
  std::optional<ThreadPool> workers_;
  std::optional<Compute> compute_;
  std::optional<GateAccuracy> gate_;
  Rng rng_{3};
};

TEST_F(GateAccuracyTest, CountsWhatWasNamedOneAndTwoLayersBefore) {
  ASSERT_EQ(spec().n_moe_layers(), 3u);
  const uint64_t called = uint64_t{kRows} * spec().router.n_used;
  const uint64_t named = called - 4 * spec().router.n_used;  // rows 0, 3, 6, 9
  for (uint64_t pass = 1; pass <= 2; ++pass) {
    const std::vector<float> x0 = random_stream(), x1 = random_stream(), x2 = random_stream();
    gate_->at_layer(LayerIndex(0), calls(0, x0), x0.data());
    gate_->at_layer(LayerIndex(1), calls(1, x0), x1.data());  // as layer 1's gate saw it on x0
    gate_->at_layer(LayerIndex(2), calls(2, x0), x2.data());  // as layer 2's gate saw it on x0
    EXPECT_EQ(gate_->recall(1, LayerIndex(0)).called, 0u);
    EXPECT_EQ(gate_->recall(1, LayerIndex(1)).called, pass * called);
    EXPECT_EQ(gate_->recall(1, LayerIndex(1)).named, pass * named);
    EXPECT_EQ(gate_->recall(2, LayerIndex(2)).called, pass * called);
    EXPECT_EQ(gate_->recall(2, LayerIndex(2)).named, pass * named);
    EXPECT_EQ(gate_->mean(2).called, pass * called);
    EXPECT_EQ(gate_->mean(1).called, 2 * pass * called);
    EXPECT_LT(gate_->recall(1, LayerIndex(2)).named, pass * named);  // that guess was made on x1
  }
}

// In a whole run every row of every layer is counted, and no logit changes.
TEST_F(GateAccuracyTest, WatchesARun) {
  Runtime& runtime = *model_->runtime;
  const std::vector<TokenId> tokens = {5, 9, 2, 7, 11, 3, 30, 31, 32, 8, 4};
  const std::vector<float> alone = score(runtime, tokens);
  const GateAccuracy& gate = runtime.measure_gate();
  EXPECT_TRUE(same_bits(score(runtime, tokens), alone));
  const uint64_t called = tokens.size() * spec().router.n_used;
  EXPECT_EQ(gate.mean(1).called, 2 * called);
  EXPECT_EQ(gate.mean(2).called, called);
  EXPECT_LE(gate.mean(1).named, gate.mean(1).called);
  // Random weights hardly change the stream: far above the quarter that chance names.
  EXPECT_GT(gate.mean(1).value(), 0.5);
}

}  // namespace
}  // namespace offstage
