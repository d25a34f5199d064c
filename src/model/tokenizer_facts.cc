#include "model/tokenizer_facts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "model/pre_tokenizer_patterns.h"

namespace offstage {
namespace {

// Texts that end a turn or a document in one model family or another. Files mark few of them as
// such: GGUF has keys for eos and eot only.
constexpr std::string_view kEndNames[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",  // gpt-oss
    "<|call|>",    // gpt-oss
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
    // "<｜end▁of▁sentence｜>" of DeepSeek
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
    // The ends of fill-in-the-middle parts: padding, repository, file.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
};

// gpt-oss writes its messages with these: text that the reader of a reply has to see.
constexpr std::string_view kAlwaysShown[] = {"<|channel|>", "<|message|>", "<|start|>",
                                             "<|constrain|>"};

// In gpt-oss's format "<|end|>" closes a message and the turn goes on.
bool end_closes_a_message_only(const TokenIndex& index) {
  const bool call = index.contains("<|call|>") || index.contains("<|calls|>");
  return call && (index.contains("<|return|>") || index.contains("<|flush|>"));
}

// Then the token is text like any other, whatever it looks like: a "</s>" of HTML.
bool is_formed_by_merging(const VocabularyFacts& facts, std::string_view text) {
  return std::any_of(facts.merges.begin(), facts.merges.end(), [text](std::string_view merge) {
    const size_t space = merge.size() == text.size() + 1 ? merge.find(' ', 1) : merge.npos;
    return space != merge.npos && text.starts_with(merge.substr(0, space)) &&
           text.ends_with(merge.substr(space + 1));
  });
}

// Tokens known by their text, whatever type the file gave them.
void correct_types(VocabularyFacts& facts, const TokenIndex& index) {
  const auto set_type = [&](std::string_view text, TokenType type) {
    const auto at = index.find(text);
    if (at == index.end()) return;
    int32_t& stated = facts.token_types[static_cast<size_t>(at->second)];
    if (stated == kTokenNormal && is_formed_by_merging(facts, text)) return;
    stated = type;
  };
  for (const std::string_view text : kEndNames) set_type(text, kTokenControl);
  for (const std::string_view text : kAlwaysShown) set_type(text, kTokenUserDefined);
  if (end_closes_a_message_only(index)) set_type("<|end|>", kTokenUserDefined);
}

struct SpecialId {
  std::string_view key;
  std::optional<uint32_t> VocabularyFacts::*id;
};
constexpr SpecialId kSpecialIds[] = {
    {"tokenizer.ggml.bos_token_id", &VocabularyFacts::bos},
    {"tokenizer.ggml.eos_token_id", &VocabularyFacts::eos},
    {"tokenizer.ggml.eot_token_id", &VocabularyFacts::eot},
    {"tokenizer.ggml.eom_token_id", &VocabularyFacts::eom},
    {"tokenizer.ggml.unknown_token_id", &VocabularyFacts::unknown},
    {"tokenizer.ggml.padding_token_id", &VocabularyFacts::padding},
};

Status check_lists(const VocabularyFacts& facts) {
  const size_t size = facts.tokens.size();
  if (size == 0 || size > static_cast<size_t>(std::numeric_limits<TokenId>::max())) {
    return make_error(ErrorCode::kCorrupt,
                      "{}: key 'tokenizer.ggml.tokens': expected 1 to {} tokens, found {}",
                      facts.source, std::numeric_limits<TokenId>::max(), size);
  }
  if (!facts.token_types.empty() && facts.token_types.size() != size) {
    return make_error(ErrorCode::kCorrupt,
                      "{}: key 'tokenizer.ggml.token_type': expected {} entries, one per token, "
                      "found {}",
                      facts.source, size, facts.token_types.size());
  }
  if (facts.model == "llama" && facts.scores.size() != size) {
    return make_error(ErrorCode::kCorrupt,
                      "{}: key 'tokenizer.ggml.scores': expected {} entries, one per token, found "
                      "{}",
                      facts.source, size, facts.scores.size());
  }
  for (size_t id = 0; id < facts.scores.size(); ++id) {
    if (std::isnan(facts.scores[id])) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: key 'tokenizer.ggml.scores': entry {} is not a number", facts.source,
                        id);
    }
  }
  for (const auto& [key, id] : kSpecialIds) {
    if (const auto& value = facts.*id; value && *value >= size) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: key '{}': token {} is past the end of the vocabulary of {} tokens",
                        facts.source, key, *value, size);
    }
  }
  return {};
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

bool is_turn_markup(std::string_view text) {
  return text == "<|end|>" || std::find(std::begin(kAlwaysShown), std::end(kAlwaysShown), text) !=
                                  std::end(kAlwaysShown);
}

int byte_token_value(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const int high = hex_value(text[3]);
  const int low = hex_value(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

Result<TokenIndex> check_vocabulary(const VocabularyFacts& facts) {
  OFFSTAGE_TRY_VOID(check_lists(facts));
  TokenIndex index;
  index.reserve(facts.tokens.size());
  for (size_t id = 0; id < facts.tokens.size(); ++id) {
    const std::string& text = facts.tokens[id];
    if (!facts.token_types.empty() && facts.token_types[id] == kTokenByte &&
        byte_token_value(text) < 0) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: key 'tokenizer.ggml.tokens': token {} is of type byte; expected "
                        "<0x00> to <0xFF>, found '{}'",
                        facts.source, id, text);
    }
    if (text.empty()) continue;
    const auto [other, is_new] = index.emplace(text, static_cast<TokenId>(id));
    if (!is_new) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: key 'tokenizer.ggml.tokens': tokens {} and {} are the same, '{}'",
                        facts.source, other->second, id, text);
    }
  }
  return index;
}

Status complete_facts(VocabularyFacts& facts, const TokenIndex& index) {
  const bool is_llama = facts.model == "llama";
  const bool has_types = !facts.token_types.empty();
  facts.token_types.resize(facts.tokens.size(), kTokenNormal);
  if (is_llama) {
    // SentencePiece's own order where a file is silent. 0, 1, 2 may be past a test's tiny end.
    const auto fill = [&facts](std::optional<uint32_t>& id, uint32_t usual) {
      if (!id && usual < facts.tokens.size()) id = usual;
    };
    fill(facts.unknown, 0);
    fill(facts.bos, 1);
    fill(facts.eos, 2);
    for (size_t id = 0; !has_types && id < facts.tokens.size(); ++id) {
      if (byte_token_value(facts.tokens[id]) >= 0) facts.token_types[id] = kTokenByte;
    }
  }
  correct_types(facts, index);
  const auto check = [&facts](std::string_view what, std::optional<bool> add,
                              std::optional<uint32_t> id) -> Status {
    if (!add.value_or(false) || id) return {};
    return make_error(ErrorCode::kCorrupt,
                      "{}: key 'tokenizer.ggml.add_{}_token' is true; expected key "
                      "'tokenizer.ggml.{}_token_id', found none",
                      facts.source, what, what);
  };
  OFFSTAGE_TRY_VOID(check("bos", facts.add_bos, facts.bos));
  OFFSTAGE_TRY_VOID(check("eos", facts.add_eos, facts.eos));
  if (!facts.add_bos) {
    const PreTokenizerFamily* family = is_llama ? nullptr : find_pre_tokenizer_family(facts.pre);
    const bool usual = is_llama || (family != nullptr && family->add_bos);
    facts.add_bos = usual && facts.bos.has_value();
  }
  if (!facts.add_eos) facts.add_eos = false;
  if (!facts.add_space_prefix) facts.add_space_prefix = is_llama;
  return {};
}

std::vector<TokenId> end_of_generation_ids(const VocabularyFacts& facts, const TokenIndex& index) {
  std::vector<TokenId> ids;
  for (const std::string_view text : kEndNames) {
    const auto at = index.find(text);
    if (at == index.end()) continue;
    const int32_t type = facts.token_types[static_cast<size_t>(at->second)];
    if (type == kTokenControl) ids.push_back(at->second);
  }
  if (facts.eos) ids.push_back(static_cast<TokenId>(*facts.eos));
  if (facts.eot) ids.push_back(static_cast<TokenId>(*facts.eot));
  if (facts.eom) ids.push_back(static_cast<TokenId>(*facts.eom));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace offstage
