// Any text comes back from its ids; long runs take no longer than other text.
#include <gtest/gtest.h>

#include <chrono>

#include "base/rng.h"
#include "model/bpe_merge.h"
#include "model/pre_tokenizer_patterns.h"
#include "model/unicode.h"
#include "model/unicode_compose.h"
#include "tests/model/tokenizer_golden.h"

namespace offstage {
namespace {

// Random bytes, or pieces of the corpus cut anywhere, or both.
std::string random_text(Rng& rng, const std::string& corpus) {
  std::string text;
  const uint64_t parts = 1 + rng.below(6);
  for (uint64_t part = 0; part < parts; ++part) {
    const uint64_t bytes = rng.below(40);
    if (rng.below(2) == 0) {
      text += corpus.substr(rng.below(corpus.size()), bytes);
    } else {
      for (uint64_t i = 0; i < bytes; ++i) text.push_back(static_cast<char>(rng.below(256)));
    }
  }
  return text;
}

class BytePairText : public testing::TestWithParam<std::string_view> {};

// As they were, or, where the family composes characters, as composed.
TEST_P(BytePairText, AnyBytesComeBack) {
  const auto tokenizer = golden_tokenizer(GetParam());
  const bool composes = find_pre_tokenizer_family(tokenizer->facts().pre)->composes;
  const auto normal = [composes](const std::string& text) {
    return composes ? composed(text).value_or(text) : text;
  };
  const std::string corpus = read_tokenizer_data("corpus.txt");
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    Rng rng(seed);
    const std::string text = random_text(rng, corpus);
    const bool parse = rng.below(2) == 0;
    const auto ids = tokenizer->encode(text, {.parse_special = parse});
    ASSERT_EQ(normal(tokenizer->decode(ids, true)), normal(text)) << "seed " << seed;
    std::string pieces;
    for (const TokenId id : ids) pieces += tokenizer->piece(id, true);
    ASSERT_EQ(normal(pieces), normal(text)) << "seed " << seed;
  }
}

std::string test_name(const testing::TestParamInfo<std::string_view>& info) {
  std::string name(info.param);
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, BytePairText, testing::ValuesIn(kBytePairGoldens), test_name);

TEST(SentencePieceText, AnyBytesComeBackWhereThereAreByteTokens) {
  const std::string corpus = read_tokenizer_data("corpus.txt");
  for (const std::string_view name : {"llama", "llama_across_words"}) {
    const auto tokenizer = golden_tokenizer(name);
    for (uint64_t seed = 0; seed < 3000; ++seed) {
      Rng rng(seed);
      const std::string text = random_text(rng, corpus);
      if (text.find(kSpaceMark) != std::string::npos) continue;  // reads back as a space
      if (text.find("<tool>") != std::string::npos) continue;    // followed by a space of its own
      ASSERT_EQ(tokenizer->decode(tokenizer->encode(text, {}), false), text) << "seed " << seed;
    }
  }
}

// What the golden of that name is for: a vocabulary whose merges cross the start of a word.
TEST(SentencePieceText, OneGoldenHasTokensAcrossWords) {
  const auto has_one = [](std::string_view name) {
    const VocabularyFacts facts = facts_of(read_golden(name));
    for (const std::string& token : facts.tokens) {
      std::string_view rest = token;
      while (rest.starts_with(kSpaceMark)) rest.remove_prefix(kSpaceMark.size());
      if (rest.find(kSpaceMark) != rest.npos) return true;
    }
    return false;
  };
  EXPECT_TRUE(has_one("llama_across_words"));
  EXPECT_FALSE(has_one("llama"));
}

TEST(SentencePieceText, ControlTokensInTextStayText) {
  const auto tokenizer = golden_tokenizer("llama");
  for (const TokenId id : tokenizer->encode("<s></s><unk><0x41>", {})) {
    EXPECT_GT(id, 2);
    EXPECT_NE(tokenizer->piece(id, true), "A");
  }
}

TEST(TokenizerText, LongRunsAreFast) {
  // What differs between the families before merging has a test of its own (PreTokenizer).
  for (const std::string_view name :
       {"gpt-2", "llama-bpe", "gpt-4o", "llama", "llama_no_bytes", "llama_across_words"}) {
    const auto tokenizer = golden_tokenizer(name);
    for (const std::string_view unit : {"a", " ", "\u4e2d", "\u0301", "ab", "\xff", "<"}) {
      std::string text;
      while (text.size() < kLongRunBytes) text += unit;
      const auto begin = std::chrono::steady_clock::now();
      const auto ids = tokenizer->encode(text, {.parse_special = true});
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      EXPECT_LT(seconds.count(), kLongRunSeconds) << name << " " << testing::PrintToString(unit);
      EXPECT_FALSE(ids.empty());
    }
  }
}

// Both forms of the merge loop give the same symbols.
TEST(BpeMerge, TheHeapAndTheSearchAgree) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Rng rng(seed);
    const uint64_t letters = 1 + rng.below(4);
    std::string text;
    for (uint64_t i = 0, bytes = rng.below(60); i < bytes; ++i) {
      text.push_back(static_cast<char>('a' + rng.below(letters)));
    }
    const uint64_t salt = rng.next_u64();
    const uint64_t ranks = 1 + rng.below(30);  // few: equal ranks have to go left to right
    const auto find = [&](const MergeSymbol& left, const MergeSymbol& right) {
      const std::string_view whole =
          std::string_view(text).substr(left.begin, left.bytes + right.bytes);
      const uint64_t hash = std::hash<std::string_view>()(whole) ^ salt;
      if (hash % 3 == 0) return MergeResult{};
      return MergeResult{static_cast<uint32_t>(hash / 3 % ranks),
                         static_cast<TokenId>(hash & 0xff)};
    };
    MergeScratch scratch[2];
    for (int form = 0; form < 2; ++form) {
      for (size_t i = 0; i < text.size(); ++i) {
        scratch[form].symbols.push_back({static_cast<uint32_t>(i), 1, 0});
      }
      merge_symbols(scratch[form], find, form == 0 ? 0 : SIZE_MAX);
    }
    const auto& a = scratch[0].symbols;
    const auto& b = scratch[1].symbols;
    ASSERT_EQ(a.size(), b.size()) << "seed " << seed;
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(a[i].begin, b[i].begin) << "seed " << seed;
      ASSERT_EQ(a[i].bytes, b[i].bytes) << "seed " << seed;
      ASSERT_EQ(a[i].id, b[i].id) << "seed " << seed;
    }
  }
}

TEST(Unicode, CharactersOfEveryLengthAndNoIllFormedOnes) {
  for (const uint32_t code_point :
       {0u, 0x7fu, 0x80u, 0x7ffu, 0x800u, 0xd7ffu, 0xe000u, 0xffffu, 0x10000u, 0x10ffffu}) {
    std::string text;
    append_utf8(code_point, text);
    uint32_t back = 1;
    EXPECT_EQ(utf8_character_bytes(text, &back), text.size());
    EXPECT_EQ(back, code_point);
    for (size_t cut = 1; cut < text.size(); ++cut) {
      EXPECT_EQ(utf8_character_bytes(text.substr(0, cut)), 0u);
    }
  }
  for (const std::string_view bad : {"\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
                                     "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xff", "\xc3("}) {
    EXPECT_EQ(utf8_character_bytes(bad), 0u) << testing::PrintToString(bad);
    EXPECT_EQ(utf8_valid_prefix_bytes("abcdefghij" + std::string(bad)), 10u);
  }
}

TEST(Unicode, TheByteLevelAlphabetIsABijection) {
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(byte_of_byte_level(byte_level_code_point(static_cast<uint8_t>(byte))), byte);
  }
  EXPECT_EQ(byte_level_decode("\u0120a\u010a"), " a\n");
  EXPECT_EQ(byte_level_decode("a b"), std::nullopt);
  EXPECT_EQ(byte_level_decode("\u4e2d"), std::nullopt);
}

}  // namespace
}  // namespace offstage
