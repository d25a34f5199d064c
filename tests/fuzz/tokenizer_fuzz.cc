// Any bytes through every tokenizer family: no crash, and the text comes back from its ids; as what
// a person wrote in a chat, they make no control token.
//
// The first byte picks the vocabulary and whether special tokens are read; the rest is the text.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "model/pre_tokenizer_patterns.h"
#include "model/tokenizer.h"
#include "model/unicode.h"
#include "model/unicode_compose.h"

namespace offstage {
namespace {

constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6;

void add_token(VocabularyFacts& facts, std::string text, int32_t type, double score = 0) {
  facts.tokens.push_back(std::move(text));
  facts.token_types.push_back(type);
  facts.scores.push_back(score);
}

void add_specials(VocabularyFacts& facts) {
  for (const char* text : {"<|a|>", "<|a|>b", "<|im_end|>"}) add_token(facts, text, kControl);
  add_token(facts, "<t>", kUserDefined);
}

VocabularyFacts byte_pair_facts(std::string_view pre) {
  VocabularyFacts facts;
  facts.source = "fuzz";
  facts.model = "gpt2";
  facts.pre = pre;
  for (int byte = 0; byte < 256; ++byte) {
    std::string text;
    append_utf8(byte_level_code_point(static_cast<uint8_t>(byte)), text);
    add_token(facts, text, kNormal);
  }
  // Pairs that overlap, so that order matters: doubled bytes, then doubled pairs, then mixtures.
  const auto merge = [&facts](std::string left, std::string right) {
    facts.merges.push_back(left + " " + right);
    add_token(facts, left + right, kNormal);
  };
  for (size_t byte = 0; byte < 256; ++byte) merge(facts.tokens[byte], facts.tokens[byte]);
  for (size_t byte = 0; byte < 256; byte += 3) {
    merge(facts.tokens[256 + byte], facts.tokens[256 + byte]);
    merge(facts.tokens[byte], facts.tokens[255 - byte]);
  }
  add_specials(facts);
  return facts;
}

VocabularyFacts sentencepiece_facts() {
  VocabularyFacts facts;
  facts.source = "fuzz";
  facts.model = "llama";
  add_token(facts, "<unk>", kUnknown);
  add_token(facts, "<s>", kControl);
  add_token(facts, "</s>", kControl);
  constexpr char kHex[] = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte) {
    add_token(facts, std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">", kByte);
  }
  const std::string space(kSpaceMark);
  double score = 0;
  for (const std::string& text :
       {space + space, std::string("aa"), space + "a", std::string("ab"), std::string("ba"),
        std::string("aba"), space + space + space + space, std::string("\u4e2d\u6587"),
        std::string("e\u0301"), std::string("a"), std::string("b"), space, std::string("\u4e2d"),
        std::string("\n\n")}) {
    add_token(facts, text, kNormal, --score);
  }
  add_specials(facts);
  return facts;
}

std::vector<std::unique_ptr<Tokenizer>> make_all() {
  std::vector<VocabularyFacts> all{sentencepiece_facts(), sentencepiece_facts()};
  // The second merges across words, so it takes the text as a whole.
  add_token(all[1], "a\xe2\x96\x81", kNormal, -0.5);
  for (const PreTokenizerFamily& family : pre_tokenizer_families()) {
    all.push_back(byte_pair_facts(family.names.back()));
  }
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  for (VocabularyFacts& facts : all) {
    auto tokenizer = Tokenizer::create(std::move(facts));
    if (!tokenizer) check_failed(__FILE__, __LINE__, "create", tokenizer.error().message);
    tokenizers.push_back(std::move(*tokenizer));
  }
  return tokenizers;
}

}  // namespace
}  // namespace offstage

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace offstage;
  static const auto tokenizers = make_all();
  if (size == 0) return 0;
  const Tokenizer& tokenizer = *tokenizers[(data[0] >> 1) % tokenizers.size()];
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const EncodeOptions options{.add_special = false, .parse_special = (data[0] & 1) != 0};
  const std::vector<TokenId> ids = tokenizer.encode(text, options);
  CHECK(ids == tokenizer.encode(text, options));
  const std::string back = tokenizer.decode(ids, true);
  // The "llama" family reads "▁" back as a space, and puts one after each special token. Some
  // byte-level families compose characters.
  if (tokenizer.facts().model == "gpt2") {
    const bool composes = find_pre_tokenizer_family(tokenizer.facts().pre)->composes;
    const auto normal = [&](const std::string& t) {
      return composes ? composed(t).value_or(t) : t;
    };
    CHECK(normal(back) == normal(text));
  }
  for (const TokenId id : ids) {
    CHECK_GE(id, 0);
    CHECK_LT(static_cast<size_t>(id), tokenizer.vocabulary_size());
  }
  // Between a template's own tokens, the text makes no control token.
  const TextPart parts[] = {{"<|a|>", true}, {text}, {"<|im_end|>", true}};
  int control = 0;
  for (const TokenId id : tokenizer.encode_parts(parts, false)) {
    control += tokenizer.facts().token_types[static_cast<size_t>(id)] == kControl;
  }
  CHECK_EQ(control, 2);
  return 0;
}
