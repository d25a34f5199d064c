#include "model/tokenizer.h"

#include <algorithm>
#include <utility>

#include "model/bpe.h"
#include "model/sentencepiece.h"
#include "model/tokenizer_facts.h"
#include "model/tokenizer_special.h"

namespace offstage {
namespace {

bool is_shown_as_special_only(int32_t type) {
  return type == kTokenControl || type == kTokenUnknown || type == kTokenUnused;
}

}  // namespace

Tokenizer::~Tokenizer() = default;

Tokenizer::Tokenizer(VocabularyFacts facts) : facts_(std::move(facts)) {
  auto user_defined = std::make_unique<SpecialTokens>();
  auto all = std::make_unique<SpecialTokens>();
  for (size_t i = 0; i < facts_.tokens.size(); ++i) {
    const int32_t type = facts_.token_types[i];
    if (facts_.tokens[i].empty()) continue;
    if (type == kTokenUserDefined) user_defined->add(facts_.tokens[i], static_cast<TokenId>(i));
    if (type == kTokenUserDefined || type == kTokenControl || type == kTokenUnknown) {
      all->add(facts_.tokens[i], static_cast<TokenId>(i));
    }
  }
  user_defined_ = std::move(user_defined);
  all_special_ = std::move(all);
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(VocabularyFacts facts, Notices* notices) {
  if (facts.model != "gpt2" && facts.model != "llama") {
    return make_error(ErrorCode::kUnsupported,
                      "{}: key 'tokenizer.ggml.model': tokenizer '{}' is not supported; supported "
                      "are gpt2, llama",
                      facts.source, facts.model);
  }
  OFFSTAGE_TRY(const TokenIndex index, check_vocabulary(facts));
  OFFSTAGE_TRY_VOID(complete_facts(facts, index));
  std::vector<TokenId> end_of_generation = end_of_generation_ids(facts, index);
  auto tokenizer = facts.model == "gpt2"
                       ? BytePairTokenizer::create(std::move(facts), index, notices)
                       : SentencePieceTokenizer::create(std::move(facts), notices);
  if (tokenizer) (*tokenizer)->end_of_generation_ = std::move(end_of_generation);
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<TokenId> ids;
  if (options.add_special && *facts_.add_bos) ids.push_back(static_cast<TokenId>(*facts_.bos));
  const SpecialTokens& specials = options.parse_special ? *all_special_ : *user_defined_;
  for (size_t at = 0; at < text.size();) {
    const auto match = specials.find(text, at);
    const size_t end = match ? match->begin : text.size();
    if (end > at) encode_text(text.substr(at, end - at), ids);
    if (!match) break;
    ids.push_back(match->id);
    at = match->end;
  }
  if (options.add_special && *facts_.add_eos) ids.push_back(static_cast<TokenId>(*facts_.eos));
  return ids;
}

std::string Tokenizer::piece(TokenId id, bool special) const {
  if (id < 0 || static_cast<size_t>(id) >= pieces_.size()) return {};
  const auto index = static_cast<size_t>(id);
  if (!special && is_shown_as_special_only(facts_.token_types[index])) return {};
  return pieces_[index];
}

std::string Tokenizer::decode(const std::vector<TokenId>& ids, bool special) const {
  std::string text;
  for (const TokenId id : ids) {
    const std::string bytes = piece(id, special);
    const bool is_first = text.empty() && *facts_.add_space_prefix;
    text.append(bytes, is_first && bytes.starts_with(' ') ? 1 : 0);
  }
  return text;
}

bool Tokenizer::is_end_of_generation(TokenId id) const {
  return std::binary_search(end_of_generation_.begin(), end_of_generation_.end(), id);
}

}  // namespace offstage
