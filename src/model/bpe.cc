#include "model/bpe.h"

#include <utility>

#include "model/unicode.h"
#include "model/unicode_compose.h"

namespace offstage {
namespace {

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Symbols hold 32-bit offsets: a longer word is cut.
constexpr size_t kWordBytesMax = size_t{1} << 30;

}  // namespace

Result<std::unique_ptr<Tokenizer>> BytePairTokenizer::create(VocabularyFacts facts,
                                                             const TokenIndex& index,
                                                             Notices* notices) {
  const PreTokenizerFamily* family = find_pre_tokenizer_family(facts.pre);
  if (family == nullptr) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: key 'tokenizer.ggml.pre': pre-tokenizer '{}' is not supported; "
                      "supported are {}",
                      facts.source, facts.pre, supported_pre_tokenizers());
  }
  OFFSTAGE_TRY(PreTokenizer pre_tokenizer, PreTokenizer::create(*family));
  std::unique_ptr<BytePairTokenizer> tokenizer(
      new BytePairTokenizer(std::move(facts), std::move(pre_tokenizer), family->composes));
  OFFSTAGE_TRY_VOID(tokenizer->read_merges(index));
  tokenizer->read_tokens(family->ignore_merges);
  tokenizer->announce(notices);
  return tokenizer;
}

BytePairTokenizer::BytePairTokenizer(VocabularyFacts facts, PreTokenizer pre_tokenizer,
                                     bool composes)
    : Tokenizer(std::move(facts)), pre_tokenizer_(std::move(pre_tokenizer)), composes_(composes) {
  token_of_byte_.fill(kNoToken);
}

Status BytePairTokenizer::read_merges(const TokenIndex& index) {
  merges_.reserve(facts_.merges.size());
  for (size_t rank = 0; rank < facts_.merges.size(); ++rank) {
    const std::string_view merge = facts_.merges[rank];
    // Neither part is empty, and neither holds a space: that is U+0120 in this alphabet.
    const size_t space = merge.empty() ? std::string_view::npos : merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: key 'tokenizer.ggml.merges': entry {}: expected 'left right', found "
                        "'{}'",
                        facts_.source, rank, merge);
    }
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = merge.substr(space + 1);
    std::string whole(left);
    whole += right;
    TokenId ids[3];
    const std::string_view texts[3] = {left, right, whole};
    for (int i = 0; i < 3; ++i) {
      const auto found = index.find(texts[i]);
      if (found == index.end()) {
        return make_error(ErrorCode::kCorrupt,
                          "{}: key 'tokenizer.ggml.merges': entry {} '{}' names '{}', which is "
                          "not in the vocabulary",
                          facts_.source, rank, merge, texts[i]);
      }
      ids[i] = found->second;
    }
    // A pair listed twice keeps its first rank.
    merges_.emplace(pair_key(ids[0], ids[1]), MergeResult{static_cast<uint32_t>(rank), ids[2]});
  }
  facts_.merges = {};
  return {};
}

void BytePairTokenizer::read_tokens(bool ignore_merges) {
  pieces_.resize(facts_.tokens.size());
  for (size_t i = 0; i < facts_.tokens.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string& text = facts_.tokens[i];
    const int32_t type = facts_.token_types[i];
    if (type == kTokenByte) {
      pieces_[i] = std::string(1, static_cast<char>(byte_token_value(text)));
      continue;
    }
    const bool is_special =
        type == kTokenControl || type == kTokenUserDefined || type == kTokenUnknown;
    std::optional<std::string> bytes = is_special ? std::nullopt : byte_level_decode(text);
    pieces_[i] = bytes ? *std::move(bytes) : text;
    if (!bytes) continue;
    const std::string& piece = pieces_[i];
    if (piece.size() == 1) token_of_byte_[static_cast<uint8_t>(piece[0])] = id;
    if (ignore_merges && type != kTokenUnused) whole_words_.emplace(piece, id);
  }
}

void BytePairTokenizer::announce(Notices* notices) const {
  if (notices == nullptr) return;
  if (facts_.pre.empty()) {
    notices->add("tokenizer",
                 "the file doesn't name its pre-tokenizer (key 'tokenizer.ggml.pre'): 'default' is "
                 "used, and token ids may differ from those the model was trained with");
  }
  int missing = 0;
  for (const TokenId id : token_of_byte_) missing += id == kNoToken;
  if (missing > 0) {
    notices->add("tokenizer",
                 fmt::format("{} of 256 bytes have no token in this vocabulary: in a prompt they "
                             "are {}",
                             missing, facts_.unknown ? "the unknown token" : "left out"));
  }
  if (!pre_tokenizer_.is_compiled()) {
    notices->add("tokenizer",
                 "PCRE2 has no just-in-time compiler here: pre-tokenizing is interpreted, slower");
  }
}

void BytePairTokenizer::encode_text(std::string_view text, std::vector<TokenId>& ids) const {
  MergeScratch scratch;
  const std::optional<std::string> normal = composes_ ? composed(text) : std::nullopt;
  pre_tokenizer_.split(normal ? std::string_view(*normal) : text, [&](std::string_view word) {
    while (!word.empty()) {
      const std::string_view part = word.substr(0, kWordBytesMax);
      encode_word(part, scratch, ids);
      word.remove_prefix(part.size());
    }
  });
}

void BytePairTokenizer::encode_word(std::string_view word, MergeScratch& scratch,
                                    std::vector<TokenId>& ids) const {
  if (!whole_words_.empty()) {
    if (const auto whole = whole_words_.find(word); whole != whole_words_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  scratch.symbols.clear();
  for (size_t i = 0; i < word.size(); ++i) {
    scratch.symbols.push_back(
        {static_cast<uint32_t>(i), 1, token_of_byte_[static_cast<uint8_t>(word[i])]});
  }
  merge_symbols(scratch, [this](const MergeSymbol& left, const MergeSymbol& right) {
    if (left.id == kNoToken || right.id == kNoToken) return MergeResult{};
    const auto merge = merges_.find(pair_key(left.id, right.id));
    return merge == merges_.end() ? MergeResult{} : merge->second;
  });
  for (const MergeSymbol& symbol : scratch.symbols) {
    if (symbol.id != kNoToken) {
      ids.push_back(symbol.id);
    } else if (facts_.unknown) {
      ids.push_back(static_cast<TokenId>(*facts_.unknown));
    }
  }
}

}  // namespace offstage
