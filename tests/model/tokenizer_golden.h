// The vocabularies and expected ids of tests/data/tokenizer (scripts/make_tokenizer_goldens.py).
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace offstage {

inline constexpr std::string_view kBytePairGoldens[] = {
    "gpt-2",        "starcoder",      "default",     "llama-bpe", "qwen2",
    "deepseek-llm", "deepseek-coder", "deepseek-v3", "gpt-4o"};
inline constexpr std::string_view kSentencePieceGoldens[] = {"llama", "llama_no_bytes",
                                                             "llama_across_words"};

// So many bytes of anything, and what they may take. Sanitizers cost a factor of ten and more, and
// look for other mistakes.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
inline constexpr size_t kLongRunBytes = 32 << 10;
inline constexpr double kLongRunSeconds = 10;
#else
inline constexpr size_t kLongRunBytes = 256 << 10;
inline constexpr double kLongRunSeconds = 1;
#endif

inline std::string read_tokenizer_data(std::string_view file) {
  std::ifstream in(std::string(OFFSTAGE_TEST_DATA "/tokenizer/") + std::string(file),
                   std::ios::binary);
  EXPECT_TRUE(in.good()) << file;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline nlohmann::json read_golden(std::string_view name) {
  return nlohmann::json::parse(read_tokenizer_data(std::string(name) + ".json"));
}

inline VocabularyFacts facts_of(const nlohmann::json& golden) {
  VocabularyFacts facts;
  facts.source = "golden";
  facts.model = golden["model"];
  facts.pre = golden["pre"];
  golden["tokens"].get_to(facts.tokens);
  golden["types"].get_to(facts.token_types);
  facts.bos = golden["bos"];
  facts.eos = golden["eos"];
  if (golden.contains("merges")) golden["merges"].get_to(facts.merges);
  if (golden.contains("scores")) golden["scores"].get_to(facts.scores);
  return facts;
}

inline std::unique_ptr<Tokenizer> tokenizer_of(VocabularyFacts facts) {
  auto tokenizer = Tokenizer::create(std::move(facts));
  if (!tokenizer) {
    ADD_FAILURE() << tokenizer.error().message;
    return nullptr;
  }
  return std::move(*tokenizer);
}

inline std::unique_ptr<Tokenizer> golden_tokenizer(std::string_view name) {
  return tokenizer_of(facts_of(read_golden(name)));
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0;;) {
    const size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    if (end == std::string::npos) return lines;
    begin = end + 1;
  }
}

}  // namespace offstage
