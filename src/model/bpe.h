// Byte-level BPE, the "gpt2" family: words from a pre-tokenizer, bytes merged within each by the
// rank of the vocabulary's merges (Sennrich et al. 2016; byte-level since GPT-2, 2019).
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <memory>

#include "model/bpe_merge.h"
#include "model/pre_tokenizer.h"
#include "model/tokenizer.h"
#include "model/tokenizer_facts.h"

namespace offstage {

class BytePairTokenizer final : public Tokenizer {
 public:
  // `facts` are checked and complete, `index` is theirs.
  static Result<std::unique_ptr<Tokenizer>> create(VocabularyFacts facts, const TokenIndex& index,
                                                   Notices* notices);

 private:
  BytePairTokenizer(VocabularyFacts facts, PreTokenizer pre_tokenizer, bool composes);

  Status read_merges(const TokenIndex& index);
  void read_tokens(bool ignore_merges);
  void announce(Notices* notices) const;
  void encode_text(std::string_view text, std::vector<TokenId>& ids) const override;
  void encode_word(std::string_view word, MergeScratch& scratch, std::vector<TokenId>& ids) const;

  PreTokenizer pre_tokenizer_;
  bool composes_;                                            // text to NFC first
  std::array<TokenId, 256> token_of_byte_;                   // kNoToken where there is none
  boost::unordered_flat_map<uint64_t, MergeResult> merges_;  // left id << 32 | right id
  // Texts of whole words that are taken without merging; empty unless the family does so. The views
  // point into pieces_.
  boost::unordered_flat_map<std::string_view, TokenId, std::hash<std::string_view>> whole_words_;
};

}  // namespace offstage
