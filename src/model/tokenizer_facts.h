// What a vocabulary must satisfy before a tokenizer is built on it, and what it leaves unsaid.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace offstage {

// The values of tokenizer.ggml.token_type. Others count as normal.
enum TokenType : int32_t {
  kTokenNormal = 1,
  kTokenUnknown = 2,
  kTokenControl = 3,
  kTokenUserDefined = 4,
  kTokenUnused = 5,
  kTokenByte = 6,
};

// Token texts → ids. The views point into the facts' strings, which keep their place when the facts
// are moved.
using TokenIndex =
    boost::unordered_flat_map<std::string_view, TokenId, std::hash<std::string_view>>;

// Lengths, ids in range, byte tokens well-formed, no text twice. Empty texts (padding) aren't in
// the index. Errors (kCorrupt, kUnsupported) name file, key or token, expected and actual.
Result<TokenIndex> check_vocabulary(const VocabularyFacts& facts);

// Fills in what the keys left out, as llama.cpp's readers of such files know it: one type per
// token, the ids 0/1/2 for unknown/BOS/EOS of "llama" files, add_bos, add_eos, add_space_prefix;
// and makes control tokens of those that end a turn. Error: add_bos or add_eos without the id.
Status complete_facts(VocabularyFacts& facts, const TokenIndex& index);

// True for tokens that begin, name and end messages in gpt-oss's format. Files differ in their type
// and a reader of a raw reply has to see them, so they count as user-defined; but unlike others of
// that type, they are never found in text that isn't markup.
bool is_turn_markup(std::string_view text);

// Ids that end a generation, ascending. `facts` are complete.
std::vector<TokenId> end_of_generation_ids(const VocabularyFacts& facts, const TokenIndex& index);

// The value of "<0xNN>", or −1.
int byte_token_value(std::string_view text);

}  // namespace offstage
