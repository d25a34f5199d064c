#include "model/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "tests/model/tokenizer_golden.h"

namespace offstage {
namespace {

using testing::ElementsAre;

std::vector<std::string> pieces(std::string_view pre, std::string_view text,
                                uint32_t match_limit = PreTokenizer::kMatchLimit) {
  const PreTokenizerFamily* family = find_pre_tokenizer_family(pre);
  if (family == nullptr) {
    ADD_FAILURE() << "no family " << pre;
    return {};
  }
  auto pre_tokenizer = PreTokenizer::create(*family, match_limit);
  if (!pre_tokenizer) {
    ADD_FAILURE() << pre_tokenizer.error().message;
    return {};
  }
  std::vector<std::string> out;
  pre_tokenizer->split(text, [&](std::string_view piece) { out.emplace_back(piece); });
  return out;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += part;
  return text;
}

// Word by word what the independent engine makes of every text.
void expect_splits(std::string_view name, const nlohmann::json& expected,
                   const std::vector<std::string>& texts) {
  ASSERT_EQ(expected.size(), texts.size()) << name;
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<size_t> lengths;
    for (const std::string& piece : pieces(name, texts[i])) lengths.push_back(piece.size());
    EXPECT_EQ(lengths, expected[i].get<std::vector<size_t>>())
        << name << ", text " << i << ": " << testing::PrintToString(texts[i]);
  }
}

TEST(PreTokenizer, SplitsAsTheGoldensDo) {
  const std::string corpus = read_tokenizer_data("corpus.txt");
  std::vector<std::string> texts = lines_of(corpus);
  const auto cases = nlohmann::json::parse(read_tokenizer_data("cases.json"));
  for (const std::string text : cases["cases"]) texts.push_back(text);
  const nlohmann::json splits = read_golden("splits");
  EXPECT_GE(splits.size(), 7u);
  for (const auto& [name, expected] : splits.items()) expect_splits(name, expected, texts);
  texts.push_back(corpus);
  for (const std::string_view name : kBytePairGoldens) {
    expect_splits(name, read_golden(name)["splits"], texts);
  }
}

TEST(PreTokenizer, FamiliesDifferInDigitsAndContractions) {
  const std::string_view text = "IT'S 12345";
  EXPECT_THAT(pieces("gpt-2", text), ElementsAre("IT", "'", "S", " 12345"));
  EXPECT_THAT(pieces("llama-bpe", text), ElementsAre("IT", "'S", " ", "123", "45"));
  EXPECT_THAT(pieces("qwen2", text), ElementsAre("IT", "'S", " ", "1", "2", "3", "4", "5"));
  EXPECT_THAT(pieces("gpt-4o", text), ElementsAre("IT'S", " ", "123", "45"));
  EXPECT_THAT(pieces("deepseek-v3", text), ElementsAre("IT", "'S", " ", "123", "45"));
  EXPECT_THAT(pieces("tekken", text), ElementsAre("IT", "'S", " ", "1", "2", "3", "4", "5"));
}

TEST(PreTokenizer, NamesOfOneFamilyShareIt) {
  EXPECT_EQ(find_pre_tokenizer_family("olmo"), find_pre_tokenizer_family("mpt"));
  EXPECT_EQ(find_pre_tokenizer_family("llama3"), find_pre_tokenizer_family("llama-bpe"));
  EXPECT_EQ(find_pre_tokenizer_family("llama-v3"), find_pre_tokenizer_family("llama-bpe"));
  EXPECT_EQ(find_pre_tokenizer_family("deepseek-r1-qwen"), find_pre_tokenizer_family("stablelm2"));
  EXPECT_EQ(find_pre_tokenizer_family(""), find_pre_tokenizer_family("default"));
  EXPECT_EQ(find_pre_tokenizer_family("no-such"), nullptr);
  EXPECT_THAT(supported_pre_tokenizers(), testing::HasSubstr("qwen2"));
  for (const PreTokenizerFamily& family : pre_tokenizer_families()) {
    EXPECT_EQ(find_pre_tokenizer_family(family.names[0]), &family) << family.name;
  }
}

// The characters of one script stand apart from other letters, and from what precedes them.
TEST(PreTokenizer, KimiKeepsHanApart) {
  EXPECT_THAT(pieces("kimi-k2", "abc\u4e2d\u6587def's"),
              ElementsAre("abc", "\u4e2d\u6587", "def's"));
  EXPECT_THAT(pieces("kimi-k2", "\u3042\u4e2d \u4e2d\u3005"),
              ElementsAre("\u3042", "\u4e2d", " ", "\u4e2d\u3005"));
  EXPECT_THAT(pieces("gpt-4o", "abc\u4e2d\u6587def's"), ElementsAre("abc\u4e2d\u6587def's"));
}

TEST(PreTokenizer, SpacesAreUnicodesAndNotU180e) {
  EXPECT_THAT(pieces("gpt-2", "\u3000\u2003x"), ElementsAre("\u3000", "\u2003", "x"));
  EXPECT_THAT(pieces("gpt-2", "\u180e\u180ex"), ElementsAre("\u180e\u180e", "x"));
}

TEST(PreTokenizer, IllFormedBytesArePiecesOfTheirOwn) {
  for (const PreTokenizerFamily& family : pre_tokenizer_families()) {
    const std::string_view name = family.names.back();
    EXPECT_THAT(pieces(name, "a\xff\xfe b"), ElementsAre("a", "\xff\xfe", " b")) << name;
    // Overlong, surrogate, too large, cut short.
    for (const std::string bad : {"\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe4\xb8"}) {
      EXPECT_THAT(pieces(name, "a" + bad), ElementsAre("a", bad)) << name;
      EXPECT_THAT(pieces(name, bad + "\u4e2d"), ElementsAre(bad, "\u4e2d")) << name;
    }
  }
}

// The limits bind the interpreter and the compiled code differently, but with a limit of one step
// neither gets through a word of some length; whatever comes out is still the whole text.
TEST(PreTokenizer, AMatchLimitLosesNothing) {
  const std::string text =
      "  some words, \u4e2d\u6587 and 12345 digits  \n\n" + std::string(3000, 'A');
  for (const PreTokenizerFamily& family : pre_tokenizer_families()) {
    const std::string_view name = family.names.back();
    for (const uint32_t limit : {0u, 1u, 2u, 5u}) {
      const auto limited = pieces(name, text, limit);
      EXPECT_EQ(joined(limited), text) << name;
      EXPECT_LE(limited.size(), pieces(name, text).size()) << name;
    }
    EXPECT_THAT(pieces(name, text, 0), testing::Not(testing::Eq(pieces(name, text)))) << name;
  }
}

TEST(PreTokenizer, LongRunsTakeLinearTime) {
  const auto repeat = [](std::string_view unit) {
    std::string text;
    while (text.size() < kLongRunBytes) text += unit;
    return text;
  };
  for (const PreTokenizerFamily& family : pre_tokenizer_families()) {
    const std::string_view name = family.names.back();
    for (const std::string_view unit :
         {"a",    "A",    " ",       "\n", "1",   "!",       "\u4e2d",  "\u0301", "\u3000",
          "aA",   " \n",  "\n ",     "'",  "'s",  "\u4e2dA", "A\u4e2d", "\t ",    "\u0378",
          "\x01", "\xff", "a\u0301", "/",  "!\n", " !",      "1a"}) {
      for (const std::string_view tail : {"", "x", "\u4e2d"}) {
        const std::string text = repeat(unit) + std::string(tail);
        const auto begin = std::chrono::steady_clock::now();
        const std::string out = joined(pieces(name, text));
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        EXPECT_EQ(out, text);
        EXPECT_LT(seconds.count(), kLongRunSeconds) << name << " " << testing::PrintToString(unit)
                                                    << " tail " << testing::PrintToString(tail);
      }
    }
  }
}

}  // namespace
}  // namespace offstage
