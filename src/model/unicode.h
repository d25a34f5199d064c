// UTF-8 and the byte-level alphabet: what both tokenizer families need to know about text.
//
// Well-formed means RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. Nothing
// here allocates, except the functions that return strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace offstage {

// "▁" (U+2581), which SentencePiece vocabularies write for a space.
inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

// Bytes of the well-formed character at the front of `text` (1–4), or 0 if its first byte doesn't
// begin one. `text` isn't empty. The code point goes to *code_point if that isn't null.
size_t utf8_character_bytes(std::string_view text, uint32_t* code_point = nullptr);

// Length of the longest well-formed prefix of `text`, in bytes; a whole number of characters.
size_t utf8_valid_prefix_bytes(std::string_view text);

void append_utf8(uint32_t code_point, std::string& out);

// The byte-level alphabet (GPT-2, 2019): every byte is written as one printable character. The 188
// printable bytes of Latin-1 stand for themselves; the other 68, in ascending order, are U+0100 ….
uint32_t byte_level_code_point(uint8_t byte);
// The byte a code point of that alphabet stands for, or −1.
int byte_of_byte_level(uint32_t code_point);

// The bytes that a token's text stands for in that alphabet; nullopt if it has a character outside
// the alphabet (special tokens may) or isn't well-formed.
std::optional<std::string> byte_level_decode(std::string_view token_text);

}  // namespace offstage
