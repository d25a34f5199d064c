// Bad vocabularies are errors that name what is wrong; silent keys get their usual values.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "model/unicode.h"
#include "tests/model/tokenizer_golden.h"

namespace offstage {
namespace {

using testing::HasSubstr;

// Tokens 0–255 are the bytes; "ab" is 256, "abc" 257.
VocabularyFacts byte_pair_facts() {
  VocabularyFacts facts;
  facts.source = "x.gguf";
  facts.model = "gpt2";
  facts.pre = "gpt-2";
  for (int byte = 0; byte < 256; ++byte) {
    std::string text;
    append_utf8(byte_level_code_point(static_cast<uint8_t>(byte)), text);
    facts.tokens.push_back(text);
  }
  facts.tokens.insert(facts.tokens.end(), {"ab", "abc"});
  facts.merges = {"a b", "ab c"};
  return facts;
}

VocabularyFacts sentencepiece_facts() {
  VocabularyFacts facts;
  facts.source = "x.gguf";
  facts.model = "llama";
  facts.tokens = {"<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "ab"};
  facts.token_types = {2, 3, 3, 6, 1, 1, 1, 1};
  facts.scores = {0, 0, 0, 0, -1, -2, -3, -4};
  return facts;
}

void expect_error(VocabularyFacts facts, ErrorCode code, std::vector<std::string> words) {
  const auto tokenizer = Tokenizer::create(std::move(facts));
  ASSERT_FALSE(tokenizer) << words[0];
  EXPECT_EQ(tokenizer.error().code, code);
  words.push_back("x.gguf");
  for (const std::string& word : words) EXPECT_THAT(tokenizer.error().message, HasSubstr(word));
}

TEST(TokenizerVocabulary, SoundOnesAreAccepted) {
  EXPECT_EQ(tokenizer_of(byte_pair_facts())->encode("abc", {}), std::vector<TokenId>{257});
  EXPECT_EQ(tokenizer_of(sentencepiece_facts())->encode("ab", {}), (std::vector<TokenId>{4, 7}));
}

// Whichever of the two is listed first.
TEST(TokenizerVocabulary, EqualScoresMergeFromTheLeft) {
  auto facts = sentencepiece_facts();
  facts.tokens.push_back("ba");  // 8
  facts.token_types.push_back(1);
  facts.scores.push_back(facts.scores[7]);
  const auto tokenizer = tokenizer_of(facts);
  EXPECT_EQ(tokenizer->encode("aba", {}), (std::vector<TokenId>{4, 7, 5}));
  EXPECT_EQ(tokenizer->encode("bab", {}), (std::vector<TokenId>{4, 8, 6}));
}

TEST(TokenizerVocabulary, UnsupportedKindsAreNamedWithTheSupportedOnes) {
  auto facts = byte_pair_facts();
  facts.model = "bert";
  expect_error(facts, ErrorCode::kUnsupported, {"'bert' (WordPiece)", "gpt2", "llama"});
  facts = byte_pair_facts();
  facts.pre = "klingon";
  expect_error(facts, ErrorCode::kUnsupported, {"klingon", "llama-bpe", "qwen2", "gpt-4o"});
}

TEST(TokenizerVocabulary, Empty) {
  auto facts = byte_pair_facts();
  facts.tokens.clear();
  expect_error(facts, ErrorCode::kCorrupt, {"tokenizer.ggml.tokens", "found 0"});
}

TEST(TokenizerVocabulary, MergesThatNameUnknownTokens) {
  for (const std::string merge : {"ab d", "zz a", "a zz", "b a"}) {
    auto facts = byte_pair_facts();
    facts.merges.push_back(merge);
    expect_error(facts, ErrorCode::kCorrupt, {"tokenizer.ggml.merges", "entry 2", merge});
  }
}

TEST(TokenizerVocabulary, MergesThatAreNoPairs) {
  for (const std::string merge : {"", " ", "a", "ab", "a ", " a"}) {
    auto facts = byte_pair_facts();
    facts.merges[0] = merge;
    expect_error(facts, ErrorCode::kCorrupt, {"tokenizer.ggml.merges", "entry 0"});
  }
}

TEST(TokenizerVocabulary, ByteTokensOutOfRange) {
  for (const std::string text :
       {"<0x-1>", "<0x100>", "<0xZZ>", "<0x1Z>", "<0x4>", "0x41", "", "<0x41", "<0x 1>"}) {
    auto facts = sentencepiece_facts();
    facts.tokens[3] = text;
    expect_error(facts, ErrorCode::kCorrupt, {"token 3", "<0x00> to <0xFF>", text});
  }
}

TEST(TokenizerVocabulary, DuplicateTokens) {
  auto facts = byte_pair_facts();
  facts.tokens.push_back("ab");
  expect_error(facts, ErrorCode::kCorrupt, {"tokens 256 and 258", "'ab'"});
}

TEST(TokenizerVocabulary, EmptyTextsAreNoDuplicates) {
  auto facts = byte_pair_facts();
  facts.tokens.insert(facts.tokens.end(), {"", ""});
  const auto tokenizer = tokenizer_of(facts);
  EXPECT_EQ(tokenizer->piece(259, true), "");
}

TEST(TokenizerVocabulary, ListsOfDifferingLengths) {
  auto facts = sentencepiece_facts();
  facts.scores.pop_back();
  expect_error(facts, ErrorCode::kCorrupt, {"tokenizer.ggml.scores", "expected 8", "found 7"});
  facts = sentencepiece_facts();
  facts.scores.clear();
  expect_error(facts, ErrorCode::kCorrupt, {"tokenizer.ggml.scores", "found 0"});
  facts = sentencepiece_facts();
  facts.token_types.push_back(1);
  expect_error(facts, ErrorCode::kCorrupt, {"tokenizer.ggml.token_type", "expected 8", "found 9"});
}

TEST(TokenizerVocabulary, ScoresThatAreNoNumbers) {
  auto facts = sentencepiece_facts();
  facts.scores[5] = std::numeric_limits<double>::quiet_NaN();
  expect_error(facts, ErrorCode::kCorrupt, {"tokenizer.ggml.scores", "entry 5"});
}

TEST(TokenizerVocabulary, SpecialIdsPastTheEnd) {
  const std::pair<const char*, std::optional<uint32_t> VocabularyFacts::*> ids[] = {
      {"bos", &VocabularyFacts::bos},
      {"eos", &VocabularyFacts::eos},
      {"eot", &VocabularyFacts::eot},
      {"unknown", &VocabularyFacts::unknown},
      {"padding", &VocabularyFacts::padding}};
  for (const auto& [name, id] : ids) {
    for (const uint32_t bad : {258u, UINT32_MAX}) {
      auto facts = byte_pair_facts();
      facts.*id = bad;
      expect_error(
          facts, ErrorCode::kCorrupt,
          {std::string("tokenizer.ggml.") + name + "_token_id", std::to_string(bad), "258"});
    }
  }
}

TEST(TokenizerVocabulary, AddingATokenThatIsNotNamed) {
  auto facts = byte_pair_facts();
  facts.add_bos = true;
  expect_error(facts, ErrorCode::kCorrupt, {"add_bos_token", "tokenizer.ggml.bos_token_id"});
  facts = byte_pair_facts();
  facts.add_eos = true;
  expect_error(facts, ErrorCode::kCorrupt, {"add_eos_token", "tokenizer.ggml.eos_token_id"});
}

TEST(TokenizerVocabulary, DefaultsOfSilentKeys) {
  const EncodeOptions special{.add_special = true};
  auto facts = byte_pair_facts();
  facts.bos = 0;
  facts.eos = 1;
  EXPECT_EQ(tokenizer_of(facts)->encode("abc", special), std::vector<TokenId>{257});
  facts.pre = "llama-bpe";
  EXPECT_EQ(tokenizer_of(facts)->encode("abc", special), (std::vector<TokenId>{0, 257}));
  EXPECT_EQ(tokenizer_of(facts)->encode("abc", {}), std::vector<TokenId>{257});
  facts.add_bos = false;
  facts.add_eos = true;
  EXPECT_EQ(tokenizer_of(facts)->encode("abc", special), (std::vector<TokenId>{257, 1}));

  auto llama = sentencepiece_facts();
  EXPECT_EQ(tokenizer_of(llama)->encode("ab", special), (std::vector<TokenId>{1, 4, 7}));
  EXPECT_EQ(tokenizer_of(llama)->encode("", special), std::vector<TokenId>{1});
  EXPECT_TRUE(tokenizer_of(llama)->is_end_of_generation(2));
  llama.add_space_prefix = false;
  EXPECT_EQ(tokenizer_of(llama)->encode("ab", special), (std::vector<TokenId>{1, 7}));
}

TEST(TokenizerVocabulary, AnnouncesWhatItHadToGuessOrLacks) {
  Notices notices;
  auto facts = byte_pair_facts();
  facts.pre = "";
  facts.tokens[7] = "[PAD]";
  ASSERT_TRUE(Tokenizer::create(facts, &notices));
  ASSERT_EQ(notices.list().size(), 2u);
  EXPECT_EQ(notices.list()[0].subject, "tokenizer");
  EXPECT_THAT(notices.list()[0].text, HasSubstr("tokenizer.ggml.pre"));
  EXPECT_THAT(notices.list()[1].text, HasSubstr("1 of 256 bytes"));
}

TEST(TokenizerVocabulary, BytesWithoutATokenBecomeTheUnknownToken) {
  auto facts = byte_pair_facts();
  facts.tokens['b'] = "[PAD]";
  facts.tokens[256] = "xy";
  facts.tokens[257] = "xyz";
  facts.merges.clear();
  EXPECT_EQ(tokenizer_of(facts)->encode("abc", {}), (std::vector<TokenId>{'a', 'c'}));
  facts.unknown = 5;
  EXPECT_EQ(tokenizer_of(facts)->encode("abc", {}), (std::vector<TokenId>{'a', 5, 'c'}));

  auto llama = sentencepiece_facts();  // of the byte tokens it has "A" only
  EXPECT_EQ(tokenizer_of(llama)->encode("aAzyb\xff", {}), (std::vector<TokenId>{4, 5, 3, 0, 6, 0}));
}

}  // namespace
}  // namespace offstage
