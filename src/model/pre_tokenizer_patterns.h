// Which pre-tokenizer a vocabulary asks for: names, split patterns and defaults, as data.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace offstage {

// One way to cut text into words before byte-pair merging.
struct PreTokenizerFamily {
  std::string_view name;                    // ours, for messages
  std::span<const std::string_view> names;  // values of tokenizer.ggml.pre that mean it
  // PCRE2 patterns applied one after the other, each to every piece that the one before left,
  // matched or not. What a pattern doesn't match between two matches is a piece too.
  std::span<const std::string_view> stages;
  bool ignore_merges = false;  // a word that is a token as a whole is taken without merging
  bool add_bos = false;        // where tokenizer.ggml.add_bos_token is absent
  bool composes = false;       // text is brought to Unicode's NFC before it is cut
};

// nullptr for a name nobody here knows. An empty name (the key is absent) means "default".
const PreTokenizerFamily* find_pre_tokenizer_family(std::string_view pre);

std::span<const PreTokenizerFamily> pre_tokenizer_families();

// All accepted values of tokenizer.ggml.pre, comma separated, for messages.
std::string supported_pre_tokenizers();

}  // namespace offstage
