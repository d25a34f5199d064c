#include "model/sentencepiece.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "model/unicode.h"

namespace offstage {
namespace {

// Symbols hold 32-bit offsets: a longer stretch is cut.
constexpr size_t kStretchBytesMax = size_t{1} << 30;

std::string unescape_spaces(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (text.substr(at).starts_with(kSpaceMark)) {
      out.push_back(' ');
      at += kSpaceMark.size();
    } else {
      out.push_back(text[at++]);
    }
  }
  return out;
}

void append_escaped(std::string_view text, std::string& out) {
  for (const char c : text) {
    if (c == ' ') {
      out += kSpaceMark;
    } else {
      out.push_back(c);
    }
  }
}

// The first place from `from` on where a "▁" follows something else; npos if there is none.
size_t find_word_start(std::string_view text, size_t from) {
  for (size_t at = from;; at += kSpaceMark.size()) {
    at = text.find(kSpaceMark, at);
    if (at == std::string_view::npos) return at;
    if (at > 0 && !text.substr(0, at).ends_with(kSpaceMark)) return at;
  }
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> SentencePieceTokenizer::create(VocabularyFacts facts,
                                                                  Notices* notices) {
  std::unique_ptr<SentencePieceTokenizer> tokenizer(new SentencePieceTokenizer(std::move(facts)));
  tokenizer->read_tokens();
  tokenizer->rank_tokens();
  const auto& bytes = tokenizer->token_of_byte_;
  const auto missing = std::count(bytes.begin(), bytes.end(), kNoToken);
  if (missing > 0 && notices != nullptr) {
    notices->add(
        "tokenizer",
        fmt::format("{} of 256 bytes have no token in this vocabulary: characters that "
                    "need them are {}",
                    missing, tokenizer->facts_.unknown ? "the unknown token" : "left out"));
  }
  return tokenizer;
}

SentencePieceTokenizer::SentencePieceTokenizer(VocabularyFacts facts)
    : Tokenizer(std::move(facts)) {
  facts_.merges = {};
  token_of_byte_.fill(kNoToken);
}

void SentencePieceTokenizer::read_tokens() {
  pieces_.resize(facts_.tokens.size());
  for (size_t id = 0; id < facts_.tokens.size(); ++id) {
    const std::string& text = facts_.tokens[id];
    switch (facts_.token_types[id]) {
      case kTokenByte: {
        const int byte = byte_token_value(text);
        pieces_[id] = std::string(1, static_cast<char>(byte));
        token_of_byte_[static_cast<size_t>(byte)] = static_cast<TokenId>(id);
        continue;
      }
      case kTokenControl:
      case kTokenUnknown: pieces_[id] = text; continue;
      case kTokenUserDefined: pieces_[id] = text; break;
      default: pieces_[id] = unescape_spaces(text); break;
    }
    if (text.empty()) continue;
    texts_.emplace(text, static_cast<TokenId>(id));
    text_bytes_max_ = std::max(text_bytes_max_, text.size());
    if (find_word_start(text, 0) != std::string_view::npos) splits_at_spaces_ = false;
  }
}

void SentencePieceTokenizer::rank_tokens() {
  std::vector<uint32_t> order(facts_.tokens.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [this](uint32_t a, uint32_t b) { return facts_.scores[a] > facts_.scores[b]; });
  ranks_.resize(order.size());
  uint32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && facts_.scores[order[i]] != facts_.scores[order[i - 1]]) ++rank;
    ranks_[order[i]] = rank;
  }
}

void SentencePieceTokenizer::encode_text(std::string_view text, std::vector<TokenId>& ids) const {
  std::string escaped;
  escaped.reserve(text.size() + text.size() / 2);
  if (*facts_.add_space_prefix) escaped += kSpaceMark;
  append_escaped(text, escaped);
  MergeScratch scratch;
  std::string_view rest = escaped;
  while (!rest.empty()) {
    const size_t bytes = stretch_bytes(rest);
    encode_stretch(rest.substr(0, bytes), scratch, ids);
    rest.remove_prefix(bytes);
  }
}

// Merging the text word by word gives the same ids as merging it whole, and takes a tenth of the
// time, where no token reaches over the start of a word: then no merge does. Most vocabularies
// are so.
size_t SentencePieceTokenizer::stretch_bytes(std::string_view escaped) const {
  const size_t word = splits_at_spaces_ ? find_word_start(escaped, 0) : std::string_view::npos;
  return std::min({word, escaped.size(), kStretchBytesMax});
}

void SentencePieceTokenizer::encode_stretch(std::string_view escaped, MergeScratch& scratch,
                                            std::vector<TokenId>& ids) const {
  const auto id_of = [this](std::string_view text) {
    const auto found = texts_.find(text);
    return found == texts_.end() ? kNoToken : found->second;
  };
  scratch.symbols.clear();
  for (size_t at = 0; at < escaped.size();) {
    // An ill-formed byte is a character of its own.
    const size_t bytes = std::max<size_t>(utf8_character_bytes(escaped.substr(at)), 1);
    scratch.symbols.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(bytes),
                               id_of(escaped.substr(at, bytes))});
    at += bytes;
  }
  merge_symbols(scratch, [&](const MergeSymbol& left, const MergeSymbol& right) {
    const size_t bytes = left.bytes + right.bytes;
    if (bytes > text_bytes_max_) return MergeResult{};
    const TokenId id = id_of(escaped.substr(left.begin, bytes));
    return id == kNoToken ? MergeResult{} : MergeResult{ranks_[static_cast<size_t>(id)], id};
  });
  for (const MergeSymbol& symbol : scratch.symbols) {
    if (symbol.id != kNoToken) {
      ids.push_back(symbol.id);
    } else {
      append_unmatched(escaped.substr(symbol.begin, symbol.bytes), ids);
    }
  }
}

void SentencePieceTokenizer::append_unmatched(std::string_view character,
                                              std::vector<TokenId>& ids) const {
  const auto token_of = [this](char byte) { return token_of_byte_[static_cast<uint8_t>(byte)]; };
  const bool has_bytes = std::all_of(character.begin(), character.end(),
                                     [&](char byte) { return token_of(byte) != kNoToken; });
  if (has_bytes) {
    for (const char byte : character) ids.push_back(token_of(byte));
  } else if (facts_.unknown) {
    // Unknown characters in a row are one unknown token.
    const auto unknown = static_cast<TokenId>(*facts_.unknown);
    if (ids.empty() || ids.back() != unknown) ids.push_back(unknown);
  }
}

}  // namespace offstage
