// SentencePiece-style BPE, the "llama" family (Kudo & Richardson 2018): characters of the whole
// text, spaces written as "▁", merged to whatever is a token, best score first; what no token
// stands for becomes byte tokens, or the unknown token where there are none.
//
// No normalisation is done: GGUF carries none, and the models of this family were trained without.
#pragma once

#include <array>
#include <memory>

#include "model/bpe_merge.h"
#include "model/tokenizer.h"
#include "model/tokenizer_facts.h"

namespace offstage {

class SentencePieceTokenizer final : public Tokenizer {
 public:
  // `facts` are checked and complete.
  static Result<std::unique_ptr<Tokenizer>> create(VocabularyFacts facts, Notices* notices);

 private:
  explicit SentencePieceTokenizer(VocabularyFacts facts);

  void read_tokens();
  void rank_tokens();
  void encode_text(std::string_view text, std::vector<TokenId>& ids) const override;
  void encode_stretch(std::string_view escaped, MergeScratch& scratch,
                      std::vector<TokenId>& ids) const;
  void append_unmatched(std::string_view character, std::vector<TokenId>& ids) const;
  size_t stretch_bytes(std::string_view escaped) const;

  TokenIndex texts_;                        // tokens that merging may form: not control, not byte
  std::vector<uint32_t> ranks_;             // by id: 0 for the best score, equal for equal scores
  std::array<TokenId, 256> token_of_byte_;  // kNoToken where there is none
  size_t text_bytes_max_ = 0;               // of the longest token in texts_
  bool splits_at_spaces_ = true;            // no token has a "▁" after something else
};

}  // namespace offstage
