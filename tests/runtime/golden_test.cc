// Exact against an independent implementation: transformers in float32 (logits), and llama.cpp
// (mean NLL) on files that llama.cpp's own converter made. See scripts/README.md for the goldens.
#include <algorithm>
#include <cmath>

#include "runtime_fixture.h"

namespace offstage {
namespace {

// |Δ| relative to the largest |logit|: the bound the project promises for F32 files and KV.
constexpr double kToleranceOfMax = 1e-4;

double mean_nll(const std::vector<float>& logits, const std::vector<TokenId>& tokens,
                size_t n_vocab) {
  double sum = 0;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const float* row = &logits[i * n_vocab];
    const double top = *std::max_element(row, row + n_vocab);
    double total = 0;
    for (size_t v = 0; v < n_vocab; ++v) total += std::exp(row[v] - top);
    sum += top + std::log(total) - row[tokens[i + 1]];
  }
  return sum / static_cast<double>(tokens.size() - 1);
}

class Golden : public ::testing::TestWithParam<const char*> {
 protected:
  RuntimeOptions options(KvType kv) const {
    RuntimeOptions options = test_options(model_file(std::string(GetParam()) + ".gguf"));
    options.k_type = options.v_type = kv;
    return options;
  }
  nlohmann::json golden_ = golden_of(GetParam());
};

TEST_P(Golden, LogitsAreTransformersAtEveryPosition) {
  const auto model = open_model(options(KvType::kF32));
  ASSERT_NE(model, nullptr);
  const std::vector<TokenId> tokens = golden_["prompts"]["long"]["tokens"];
  const std::vector<float> expected =
      floats_of(model_file(golden_["logits_file"].get<std::string>()));
  const std::vector<float> actual = score(*model->runtime, tokens);
  ASSERT_EQ(actual.size(), expected.size());
  double largest = 0, delta = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    const double d = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
    ASSERT_FALSE(std::isnan(d)) << "logit " << i;
    delta = std::max(delta, d);
  }
  RecordProperty("max_abs_delta", std::to_string(delta));
  EXPECT_LE(delta, kToleranceOfMax * largest);
  EXPECT_GT(largest, 1.0);
}

TEST_P(Golden, GreedyTokensAreTransformers) {
  const auto model = open_model(options(KvType::kF32));
  ASSERT_NE(model, nullptr);
  for (const auto& [name, prompt] : golden_["prompts"].items()) {
    const std::vector<TokenId> expected = prompt["greedy"];
    EXPECT_EQ(
        generate_greedy(*model->runtime, prompt["tokens"], static_cast<uint32_t>(expected.size())),
        expected)
        << name;
  }
}

TEST_P(Golden, MeanNllIsLlamaCpps) {
  if (std::string(GetParam()) == "phimoe-s2")
    GTEST_SKIP() << "llama.cpp runs an RMS norm where Phi-MoE has a layer norm; the residual of "
                    "phimoe-s1 has mean zero, so that they agree there (scripts/README.md)";
  const auto model = open_model(options(KvType::kF32));
  ASSERT_NE(model, nullptr);
  for (const auto& [name, prompt] : golden_["prompts"].items()) {
    const std::vector<TokenId> tokens = prompt["tokens"];
    const double nll = mean_nll(score(*model->runtime, tokens), tokens, golden_["n_vocab"]);
    EXPECT_NEAR(nll, prompt["llama_cpp_nll"].get<double>(), 1e-4) << name;
  }
}

// What halves in the KV cache change, stated as NLL (README: numbers).
TEST_P(Golden, HalfKvCacheChangesNllByLessThanAHundredth) {
  const auto model = open_model(options(KvType::kF16));
  ASSERT_NE(model, nullptr);
  const auto& prompt = golden_["prompts"]["long"];
  const std::vector<TokenId> tokens = prompt["tokens"];
  const double nll = mean_nll(score(*model->runtime, tokens), tokens, golden_["n_vocab"]);
  RecordProperty("nll_delta", std::to_string(nll - prompt["mean_nll"].get<double>()));
  EXPECT_NEAR(nll, prompt["mean_nll"].get<double>(), 1e-2);
}

TEST_P(Golden, TokenizerGivesThePromptsIds) {
  const auto model = open_model(options(KvType::kF16));
  ASSERT_NE(model, nullptr);
  for (const auto& [name, prompt] : golden_["prompts"].items())
    EXPECT_EQ(model->runtime->tokenizer().encode(prompt["text"].get<std::string>(), {true, false}),
              prompt["tokens"].get<std::vector<TokenId>>())
        << name;
}

// The same weights as MXFP4 blocks: what differs from the F32 file are the activations, int8 with a
// scale per 32, here and in llama.cpp (which rounds that scale to a half as well). Each rounding is
// up to 1/254 of its block's largest; through three or four matrices a layer that moves single NLLs
// by some tenths (by one where a router's choice flips), up as often as down, and their mean by
// less than a hundredth. A wrong nibble order, scale or expert moves it by whole units.
class GoldenMxfp4 : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenMxfp4, MeanNllIsTransformersAndLlamaCpps) {
  const auto golden = golden_of(GetParam());
  RuntimeOptions options = test_options(model_file(golden["mxfp4"]["model"]));
  options.k_type = options.v_type = KvType::kF32;
  const auto model = open_model(options);
  ASSERT_NE(model, nullptr);
  for (const auto& [name, prompt] : golden["prompts"].items()) {
    const std::vector<TokenId> tokens = prompt["tokens"];
    const double nll = mean_nll(score(*model->runtime, tokens), tokens, golden["n_vocab"]);
    EXPECT_NEAR(nll, prompt["mean_nll"].get<double>(), 2e-2) << name;
    EXPECT_NEAR(nll, golden["mxfp4"]["llama_cpp_nll_" + name].get<double>(), 2e-2) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(GptOss, GoldenMxfp4, ::testing::Values("gpt-oss-s1", "gpt-oss-s2"),
                         [](const auto& info) { return std::string(info.param).substr(8); });

INSTANTIATE_TEST_SUITE_P(Families, Golden,
                         ::testing::Values("mixtral-s1", "mixtral-s2", "olmoe-s1", "olmoe-s2",
                                           "qwen2moe-s1", "qwen2moe-s2", "qwen3moe-s1",
                                           "qwen3moe-s2", "llama-s1", "llama-s2", "qwen2-s1",
                                           "qwen3-s1", "gpt-oss-s1", "gpt-oss-s2", "glm4moe-s1",
                                           "glm4moe-s2", "minimax-m2-s1", "minimax-m2-s2",
                                           "granitemoe-s1", "granitemoe-s2", "qwen2-s2", "qwen3-s2",
                                           "phimoe-s1", "phimoe-s2", "deepseek2-v2-s1",
                                           "deepseek2-v2-s2", "deepseek2-v3-s1", "deepseek2-v3-s2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace offstage
