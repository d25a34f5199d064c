#include "model/unicode_compose.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "model/unicode.h"

namespace offstage {
namespace {

// The first byte of U+0300, below which everything is NFC as it stands.
constexpr uint8_t kFirstByte = 0xcc;
constexpr auto kCanonical = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);

using CodePoints = std::vector<utf8proc_int32_t>;

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// Marks in a row by ascending class, those of one class as they came. utf8proc's own decomposition
// sorts by exchanging neighbours, which is quadratic in a long run.
void order_marks(CodePoints& code_points) {
  for (auto at = code_points.begin(); at != code_points.end();) {
    const auto is_mark = [](utf8proc_int32_t c) { return combining_class(c) != 0; };
    const auto begin = std::find_if(at, code_points.end(), is_mark);
    at = std::find_if_not(begin, code_points.end(), is_mark);
    std::stable_sort(begin, at, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    });
  }
}

void append_composed(std::string_view valid, CodePoints& code_points, std::string& out) {
  code_points.clear();
  for (size_t at = 0; at < valid.size();) {
    uint32_t code_point = 0;
    at += utf8_character_bytes(valid.substr(at), &code_point);
    utf8proc_int32_t parts[32];  // Unicode's longest canonical decomposition has 4
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point), parts, 32,
                                               kCanonical, nullptr);
    CHECK(count >= 0 && count <= 32);
    code_points.insert(code_points.end(), parts, parts + count);
  }
  order_marks(code_points);
  const auto length = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), kCanonical);
  CHECK_GE(length, 0);
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    append_utf8(static_cast<uint32_t>(code_points[static_cast<size_t>(i)]), out);
  }
}

bool may_change(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char byte) { return static_cast<uint8_t>(byte) >= kFirstByte; });
}

}  // namespace

std::optional<std::string> composed(std::string_view text) {
  if (!may_change(text)) return std::nullopt;
  std::string out;
  out.reserve(text.size());
  CodePoints code_points;
  while (!text.empty()) {
    const size_t valid = utf8_valid_prefix_bytes(text);
    append_composed(text.substr(0, valid), code_points, out);
    text.remove_prefix(valid);
    if (text.empty()) break;
    out.push_back(text.front());
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace offstage
