// Text ↔ token ids, from the vocabulary that a GGUF carries.
//
// Two families: byte-level BPE (`tokenizer.ggml.model` = "gpt2", split by one of the named
// pre-tokenizers) and SentencePiece-style BPE by score (`llama`). Iterative, and O(n log n) at
// worst in the text's length, 256 KiB runs of one letter included. Immutable after creation, so any
// thread may encode.
//
// Text is bytes, and is taken as it is: ill-formed UTF-8 is encoded byte by byte and comes back
// unchanged. Only where the family's own tokenizer composes characters first (NFC: Qwen2, OLMo),
// text comes back composed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "base/types.h"

namespace offstage {

// The facts a vocabulary is built from: `tokenizer.ggml.*` of a GGUF, already typed. Filled from
// the file by vocabulary.h.
struct VocabularyFacts {
  std::string source;  // file name, for messages
  std::string model;   // tokenizer.ggml.model: "gpt2" or "llama"
  std::string pre;     // tokenizer.ggml.pre; empty if absent
  std::vector<std::string> tokens;
  std::vector<double> scores;        // "llama" only; may be empty otherwise
  std::vector<int32_t> token_types;  // 1 normal 2 unknown 3 control 4 user-defined 5 unused 6 byte
  std::vector<std::string> merges;   // "gpt2" only: "left right"
  std::optional<uint32_t> bos, eos, eot, eom, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

struct EncodeOptions {
  bool add_special = false;    // BOS/EOS as the file says
  bool parse_special = false;  // text such as "<|im_start|>" becomes its one token
};

// A stretch of text for encode_parts().
struct TextPart {
  std::string_view text;
  bool is_markup = false;  // its special tokens are read as such, as with parse_special
};

class SpecialTokens;

class Tokenizer {
 public:
  virtual ~Tokenizer();

  // Errors: unsupported model or pre-tokenizer (named, with the supported ones), merges that name
  // unknown tokens, byte tokens out of range, ids past the vocabulary, duplicate tokens, lists of
  // differing lengths. Announces (subject "tokenizer") a missing pre-tokenizer name and bytes that
  // no token stands for.
  static Result<std::unique_ptr<Tokenizer>> create(VocabularyFacts facts,
                                                   Notices* notices = nullptr);

  // Control tokens are found in the text if `parse_special`, user-defined ones in any case (except
  // those that mark messages, is_turn_markup()): at each position the longest, from the left. Cost
  // beyond merging: the text's length times the longest special token's, at worst. Bytes that
  // neither a token nor an unknown token stands for are left out (announced by create()).
  std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const;

  // Parts of one text, of which only some may hold special tokens: what a person wrote, between
  // what a chat template put around it. Words form across the parts' borders as in one text;
  // special tokens don't, so that no text from outside can make one.
  std::vector<TokenId> encode_parts(std::span<const TextPart> parts, bool add_special) const;

  // The bytes of one token; a UTF-8 character may be split over several. Control, unknown and
  // unused tokens give their text only if `special`. Empty for an id outside the vocabulary.
  std::string piece(TokenId id, bool special) const;
  // The text of many tokens ("llama": without the space that encoding put at the very front; those
  // it put after special tokens stay).
  std::string decode(const std::vector<TokenId>& ids, bool special) const;

  size_t vocabulary_size() const { return facts_.tokens.size(); }
  // As given, with every default filled in (types, ids, flags) and without the merges, which are
  // 10 MB of text that nobody reads twice.
  const VocabularyFacts& facts() const { return facts_; }
  // eos, eot, eom, and tokens known by their text to end a turn ("<|im_end|>", "<|return|>" …).
  bool is_end_of_generation(TokenId id) const;

 protected:
  explicit Tokenizer(VocabularyFacts facts);

  // Appends the ids of text without special tokens: it begins at the start of the whole text, or
  // right after a special token.
  virtual void encode_text(std::string_view text, std::vector<TokenId>& ids) const = 0;

  VocabularyFacts facts_;
  std::vector<std::string> pieces_;  // by id: the bytes a token stands for

 private:
  std::unique_ptr<const SpecialTokens> user_defined_;
  std::unique_ptr<const SpecialTokens> all_special_;
  std::vector<TokenId> end_of_generation_;  // ascending
};

}  // namespace offstage
