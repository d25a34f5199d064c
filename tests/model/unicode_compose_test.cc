#include "model/unicode_compose.h"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/model/tokenizer_golden.h"

namespace offstage {
namespace {

std::string compose(std::string_view text) { return composed(text).value_or(std::string(text)); }

TEST(UnicodeCompose, ComposesWhatBelongsTogether) {
  EXPECT_EQ(compose("e\u0301te\u0301"), "\u00e9t\u00e9");
  EXPECT_EQ(compose("\u1100\u1161\u11a8"), "\uac01");    // Hangul, by arithmetic
  EXPECT_EQ(compose("\u212b\u2126"), "\u00c5\u03a9");    // singletons
  EXPECT_EQ(compose("a\u0323\u0302"), "\u1ead");         // two marks, one character
  EXPECT_EQ(compose("a\u0302\u0323"), "\u1ead");         // in either order
  EXPECT_EQ(compose("q\u0307\u0323"), "q\u0323\u0307");  // sorted, though nothing composes
  EXPECT_EQ(compose("\u0958"), "\u0915\u093c");          // excluded from composition
  EXPECT_EQ(compose("\u0344"), "\u0308\u0301");          // a mark that is two
  EXPECT_EQ(compose("\ufb01 \u00bd"), "\ufb01 \u00bd");  // compatibility is left alone
  EXPECT_EQ(compose("\u4e2d\U0001f44d\u200d"), "\u4e2d\U0001f44d\u200d");
}

TEST(UnicodeCompose, SaysWhereNothingCanChange) {
  EXPECT_FALSE(composed(""));
  EXPECT_FALSE(composed("plain \u00e9\u00df\u02ff"));
  EXPECT_TRUE(composed("\u0300"));
}

TEST(UnicodeCompose, IllFormedBytesStayAndSeparate) {
  EXPECT_EQ(compose("e\xff\u0301"), "e\xff\u0301");
  EXPECT_EQ(compose("\xcc"), "\xcc");
  EXPECT_EQ(compose("e\u0301\xed\xa0\x80"), "\u00e9\xed\xa0\x80");
}

// Marks in descending order of class are the worst there is to sort.
TEST(UnicodeCompose, LongRunsOfMarksTakeNoLongerThanTheyShould) {
  constexpr int kMarks = 128 << 10;
  std::string text = "a";
  std::string sorted = "\u1ea1";  // the first dot below goes into the letter
  for (int i = 0; i < kMarks / 2; ++i) text += "\u0301";
  for (int i = 0; i < kMarks / 2; ++i) text += "\u0323";
  for (int i = 1; i < kMarks / 2; ++i) sorted += "\u0323";
  for (int i = 0; i < kMarks / 2; ++i) sorted += "\u0301";
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(compose(text), sorted);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), kLongRunSeconds);
}

// Only where the models' own tokenizers do: qwen2 sees one character, gpt-2 two.
TEST(UnicodeCompose, IsDoneForTheFamiliesThatAskForIt) {
  const auto tokenizer_with = [](std::string_view pre) {
    VocabularyFacts facts = facts_of(read_golden("gpt-2"));
    facts.pre = pre;
    return tokenizer_of(std::move(facts));
  };
  for (const std::string_view pre : {"qwen2", "qwen35", "olmo", "command-r"}) {
    const auto tokenizer = tokenizer_with(pre);
    EXPECT_EQ(tokenizer->encode("e\u0301", {}), tokenizer->encode("\u00e9", {})) << pre;
  }
  for (const std::string_view pre : {"gpt-2", "llama-bpe", "gpt-4o", "deepseek-v3", "kimi-k2"}) {
    const auto tokenizer = tokenizer_with(pre);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("e\u0301", {}), true), "e\u0301") << pre;
  }
}

}  // namespace
}  // namespace offstage
