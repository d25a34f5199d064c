// Ids equal to those of independent implementations, text by text.
#include "tests/model/tokenizer_golden.h"

#include <gtest/gtest.h>

namespace offstage {
namespace {

class TokenizerGolden : public testing::TestWithParam<std::string_view> {
 protected:
  // One golden list against the texts it was made from.
  void expect_ids(const nlohmann::json& expected, const std::vector<std::string>& texts,
                  EncodeOptions options) {
    ASSERT_EQ(expected.size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(tokenizer_->encode(texts[i], options), expected[i].get<std::vector<TokenId>>())
          << "text " << i << ": " << testing::PrintToString(texts[i]);
    }
  }

  const nlohmann::json golden_ = read_golden(GetParam());
  const nlohmann::json cases_ = nlohmann::json::parse(read_tokenizer_data("cases.json"));
  const std::string corpus_ = read_tokenizer_data("corpus.txt");
  const std::unique_ptr<Tokenizer> tokenizer_ = tokenizer_of(facts_of(golden_));
};

TEST_P(TokenizerGolden, EveryLineOfTheCorpus) {
  expect_ids(golden_["lines"], lines_of(corpus_), {});
}

TEST_P(TokenizerGolden, TheWholeCorpus) {
  EXPECT_EQ(tokenizer_->encode(corpus_, {}), golden_["whole"].get<std::vector<TokenId>>());
}

TEST_P(TokenizerGolden, AwkwardCases) { expect_ids(golden_["cases"], cases_["cases"], {}); }

TEST_P(TokenizerGolden, SpecialTokensReadAsSuch) {
  expect_ids(golden_["special"], cases_["special_cases"], {.parse_special = true});
}

TEST_P(TokenizerGolden, SpecialTokensReadAsText) {
  expect_ids(golden_["special_as_text"], cases_["special_cases"], {});
}

std::string test_name(const testing::TestParamInfo<std::string_view>& info) {
  std::string name(info.param);
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}

INSTANTIATE_TEST_SUITE_P(BytePair, TokenizerGolden, testing::ValuesIn(kBytePairGoldens), test_name);
INSTANTIATE_TEST_SUITE_P(SentencePiece, TokenizerGolden, testing::ValuesIn(kSentencePieceGoldens),
                         test_name);

}  // namespace
}  // namespace offstage
