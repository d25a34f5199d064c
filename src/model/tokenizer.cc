#include "model/tokenizer.h"

#include <algorithm>
#include <utility>

#include "model/bpe.h"
#include "model/sentencepiece.h"
#include "model/tokenizer_facts.h"
#include "model/tokenizer_special.h"

namespace offstage {
namespace {

// What a name that we refuse stands for, for the message.
std::string_view algorithm_of(std::string_view model) {
  if (model == "bert") return " (WordPiece)";
  if (model == "t5") return " (Unigram)";
  if (model == "rwkv") return " (greedy, RWKV's)";
  if (model == "gemma4" || model == "whitespace") return " (BPE over characters)";
  if (model == "no_vocab") return ": this file carries no vocabulary, which";
  return "";
}

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
    if (type == kTokenUserDefined && !is_turn_markup(facts_.tokens[i])) {
      user_defined->add(facts_.tokens[i], static_cast<TokenId>(i));
    }
    if (type == kTokenUserDefined || type == kTokenControl || type == kTokenUnknown) {
      all->add(facts_.tokens[i], static_cast<TokenId>(i));
    }
  }
  user_defined_ = std::move(user_defined);
  all_special_ = std::move(all);
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(VocabularyFacts facts, Notices* notices) {
  if (facts.model != "gpt2" && facts.model != "llama") {
    return make_error(
        ErrorCode::kUnsupported,
        "{}: key 'tokenizer.ggml.model': tokenizer '{}'{} is not supported; supported "
        "are gpt2 (byte-level BPE), llama (SentencePiece BPE)",
        facts.source, facts.model, algorithm_of(facts.model));
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
  const TextPart part{text, options.parse_special};
  return encode_parts({&part, 1}, options.add_special);
}

std::vector<TokenId> Tokenizer::encode_parts(std::span<const TextPart> parts,
                                             bool add_special) const {
  std::vector<TokenId> ids;
  if (add_special && *facts_.add_bos) ids.push_back(static_cast<TokenId>(*facts_.bos));
  std::string stretch;  // text since the last special token
  const auto encode_stretch = [&] {
    if (!stretch.empty()) encode_text(stretch, ids);
    stretch.clear();
  };
  for (const TextPart& part : parts) {
    const SpecialTokens& specials = part.is_markup ? *all_special_ : *user_defined_;
    for (size_t at = 0; at < part.text.size();) {
      const auto match = specials.find(part.text, at);
      stretch += part.text.substr(at, match ? match->begin - at : std::string_view::npos);
      if (!match) break;
      encode_stretch();
      ids.push_back(match->id);
      at = match->end;
    }
  }
  encode_stretch();
  if (add_special && *facts_.add_eos) ids.push_back(static_cast<TokenId>(*facts_.eos));
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
