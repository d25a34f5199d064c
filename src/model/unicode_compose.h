// Unicode's composed form (NFC, UAX #15), for tokenizers whose models were trained on it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace offstage {

// `text` with its characters composed; nullopt where nothing can change, because it has no
// character from U+0300 on. Ill-formed bytes stay where they are, and composition doesn't reach
// across them. Takes O(n log n) on any text, a megabyte of combining marks included.
std::optional<std::string> composed(std::string_view text);

}  // namespace offstage
