// Text ↔ token ids, from the vocabulary that a GGUF carries.
//
// Two families: byte-level BPE (`tokenizer.ggml.model` = "gpt2", split by one of the named
// pre-tokenizers) and SentencePiece-style BPE by score (`llama`). Linear and iterative in the
// text's length, 256 KiB runs of one letter included. Immutable after creation, so any thread may
// encode.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace offstage {

// The facts a vocabulary is built from: `tokenizer.ggml.*` of a GGUF, already typed. Filled by
// src/runtime (this folder doesn't know the file format).
struct VocabularyFacts {
  std::string source;  // file name, for messages
  std::string model;   // tokenizer.ggml.model: "gpt2" or "llama"
  std::string pre;     // tokenizer.ggml.pre; empty if absent
  std::vector<std::string> tokens;
  std::vector<double> scores;        // "llama" only; may be empty otherwise
  std::vector<int32_t> token_types;  // 1 normal 2 unknown 3 control 4 user-defined 5 unused 6 byte
  std::vector<std::string> merges;   // "gpt2" only: "left right"
  std::optional<uint32_t> bos, eos, eot, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

struct EncodeOptions {
  bool add_special = false;    // BOS/EOS as the file says
  bool parse_special = false;  // text such as "<|im_start|>" becomes its one token
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Errors: unsupported model or pre-tokenizer (named, with the supported ones), merges that name
  // unknown tokens, byte tokens out of range, ids past the vocabulary, duplicate tokens.
  static Result<std::unique_ptr<Tokenizer>> create(VocabularyFacts facts);

  virtual std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const = 0;

  // The bytes of one token; a UTF-8 character may be split over several. Control tokens give their
  // text only if `special`.
  virtual std::string piece(TokenId id, bool special) const = 0;
  // The text of many tokens ("llama": without the space that encoding put in front).
  virtual std::string decode(const std::vector<TokenId>& ids, bool special) const = 0;

  size_t vocabulary_size() const { return facts_.tokens.size(); }
  const VocabularyFacts& facts() const { return facts_; }
  bool is_end_of_generation(TokenId id) const;  // eos, eot, and control tokens known as such

 protected:
  explicit Tokenizer(VocabularyFacts facts) : facts_(std::move(facts)) {}
  VocabularyFacts facts_;
};

}  // namespace offstage
