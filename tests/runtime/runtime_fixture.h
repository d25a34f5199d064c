// A model opened for a test, and the logits it gives: shared by the golden and exactness suites.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/session.h"

namespace offstage {

inline std::string model_file(const std::string& name) {
  return std::string(OFFSTAGE_TEST_DATA) + "/models/" + name;
}

// What a test of a file's name may be called.
inline std::string model_test_name(const ::testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
}

inline nlohmann::json golden_of(const std::string& name) {
  std::ifstream file(model_file(name + ".golden.json"));
  return nlohmann::json::parse(file);
}

inline std::vector<float> floats_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

struct OpenModel {
  Notices notices;
  std::unique_ptr<Runtime> runtime;
};

// Small defaults: the golden models need a few MiB; --ram is left to the machine unless set.
inline RuntimeOptions test_options(const std::string& path) {
  RuntimeOptions options;
  options.model_path = path;
  options.context = 256;
  options.chunk_rows = 64;
  options.ram_bytes = 1ull << 30;
  options.threads = 2;
  return options;
}

inline std::unique_ptr<OpenModel> open_model(const RuntimeOptions& options) {
  auto model = std::make_unique<OpenModel>();
  auto runtime = Runtime::open(options, model->notices, {});
  if (!runtime) {
    ADD_FAILURE() << runtime.error().message;
    return nullptr;
  }
  model->runtime = std::move(*runtime);
  return model;
}

// Logits after every token, [tokens][n_vocab].
inline std::vector<float> score(Runtime& runtime, const std::vector<TokenId>& tokens,
                                SequenceId sequence = SequenceId(0)) {
  std::vector<float> all;
  Session session(runtime, sequence);
  const Status status = session.score(
      tokens,
      [&](size_t, std::span<const float> logits) {
        all.insert(all.end(), logits.begin(), logits.end());
      },
      nullptr);
  EXPECT_TRUE(status) << (status ? "" : status.error().message);
  return all;
}

inline std::vector<TokenId> generate_greedy(Runtime& runtime, const std::vector<TokenId>& prompt,
                                            uint32_t n, SequenceId sequence = SequenceId(0)) {
  SamplerOptions sampling;
  sampling.temperature = 0;
  Sampler sampler(sampling, runtime.spec().n_vocab);
  GenerateOptions options;
  options.max_tokens = n;
  options.ignore_eos = true;
  Session session(runtime, sequence);
  const auto generation = session.generate(prompt, sampler, options);
  EXPECT_TRUE(generation) << (generation ? "" : generation.error().message);
  return generation ? generation->tokens : std::vector<TokenId>();
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace offstage
