#include "model/unicode.h"

#include <array>
#include <cstring>

namespace offstage {
namespace {

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
         (byte >= 0xae && byte <= 0xff);
}

constexpr uint32_t kAlphabetEnd = 0x100 + 68;

struct ByteLevelAlphabet {
  std::array<uint16_t, 256> code_point_of{};
  std::array<int16_t, kAlphabetEnd> byte_of{};
};

constexpr ByteLevelAlphabet make_alphabet() {
  ByteLevelAlphabet alphabet;
  for (auto& byte : alphabet.byte_of) byte = -1;
  uint16_t next = 0x100;
  for (uint16_t byte = 0; byte < 256; ++byte) {
    const uint16_t code_point = stands_for_itself(byte) ? byte : next++;
    alphabet.code_point_of[byte] = code_point;
    alphabet.byte_of[code_point] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr ByteLevelAlphabet kAlphabet = make_alphabet();
static_assert(kAlphabet.code_point_of[' '] == 0x120, "a space is written as U+0120");

bool is_continuation(uint8_t byte) { return (byte & 0xc0) == 0x80; }

}  // namespace

size_t utf8_character_bytes(std::string_view text, uint32_t* code_point) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t lead = bytes[0];
  size_t length = 1;
  uint32_t value = lead;
  if (lead >= 0x80) {
    if (lead < 0xc2 || lead > 0xf4) return 0;  // continuation, overlong, or above U+10FFFF
    length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (text.size() < length) return 0;
    value = lead & (0x7fu >> length);
    for (size_t i = 1; i < length; ++i) {
      if (!is_continuation(bytes[i])) return 0;
      value = value << 6 | (bytes[i] & 0x3fu);
    }
    constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < kLeast[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) {
      return 0;
    }
  }
  if (code_point != nullptr) *code_point = value;
  return length;
}

size_t utf8_valid_prefix_bytes(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    // Eight ASCII bytes at a time: most text is.
    uint64_t word;
    if (text.size() - at >= sizeof word) {
      std::memcpy(&word, text.data() + at, sizeof word);
      if ((word & 0x8080808080808080) == 0) {
        at += sizeof word;
        continue;
      }
    }
    const size_t length = utf8_character_bytes(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

void append_utf8(uint32_t code_point, std::string& out) {
  const auto put = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) return put(code_point);
  if (code_point < 0x800) {
    put(0xc0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      put(0xe0 | code_point >> 12);
    } else {
      put(0xf0 | code_point >> 18);
      put(0x80 | (code_point >> 12 & 0x3f));
    }
    put(0x80 | (code_point >> 6 & 0x3f));
  }
  put(0x80 | (code_point & 0x3f));
}

uint32_t byte_level_code_point(uint8_t byte) { return kAlphabet.code_point_of[byte]; }

int byte_of_byte_level(uint32_t code_point) {
  return code_point < kAlphabetEnd ? kAlphabet.byte_of[code_point] : -1;
}

std::optional<std::string> byte_level_decode(std::string_view token_text) {
  std::string bytes;
  bytes.reserve(token_text.size());
  for (size_t at = 0; at < token_text.size();) {
    uint32_t code_point = 0;
    const size_t length = utf8_character_bytes(token_text.substr(at), &code_point);
    const int byte = length == 0 ? -1 : byte_of_byte_level(code_point);
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    at += length;
  }
  return bytes;
}

}  // namespace offstage
