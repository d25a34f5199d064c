#include "cache/npy.h"

#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

namespace offstage {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);
constexpr size_t kDimsMax = 8;
constexpr size_t kTextMax = 64 << 10;

// The header is a Python dict literal; this reads the one form that NumPy writes.
class DictReader {
 public:
  DictReader(std::string_view text, size_t offset, const std::string& name)
      : text_(text), offset_(offset), name_(name) {}

  Result<NpyHeader> read() {
    NpyHeader header;
    bool has_descr = false, has_order = false, has_shape = false;
    OFFSTAGE_TRY_VOID(expect("{"));
    while (!take("}")) {
      OFFSTAGE_TRY(const std::string key, quoted());
      OFFSTAGE_TRY_VOID(expect(":"));
      bool* has = key == "descr"           ? &has_descr
                  : key == "fortran_order" ? &has_order
                  : key == "shape"         ? &has_shape
                                           : nullptr;
      if (has == nullptr || *has)
        return fail("descr, fortran_order and shape, each once, found '" + key + "'");
      *has = true;
      if (has == &has_descr) {
        OFFSTAGE_TRY(header.descr, quoted());
      } else if (has == &has_order) {
        if (take("True"))
          return make_error(ErrorCode::kUnsupported,
                            "{}: at byte {}: the array is in Fortran order; C order is needed",
                            name_, offset_ + at_);
        OFFSTAGE_TRY_VOID(expect("False"));
      } else {
        OFFSTAGE_TRY(header.shape, shape());
      }
      if (!take(",")) {
        OFFSTAGE_TRY_VOID(expect("}"));
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size()) return fail("the end of the header");
    if (!has_descr || !has_order || !has_shape) return fail("descr, fortran_order and shape");
    return header;
  }

 private:
  tl::unexpected<Error> fail(const std::string& expected) const {
    return make_error(ErrorCode::kCorrupt, "{}: at byte {}: expected {}", name_, offset_ + at_,
                      expected);
  }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool take(std::string_view word) {
    skip_spaces();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  Status expect(std::string_view word) {
    if (take(word)) return {};
    return fail(fmt::format("'{}'", word));
  }
  Result<std::string> quoted() {
    OFFSTAGE_TRY_VOID(expect("'"));
    const size_t end = text_.find('\'', at_);
    if (end == std::string_view::npos || end - at_ > 32) return fail("a short word in quotes");
    const std::string word(text_.substr(at_, end - at_));
    for (const char c : word)
      if (c < ' ' || c > '~') return fail("printable letters");
    at_ = end + 1;
    return word;
  }
  Result<std::vector<uint64_t>> shape() {
    std::vector<uint64_t> dims;
    OFFSTAGE_TRY_VOID(expect("("));
    while (!take(")")) {
      if (dims.size() == kDimsMax) return fail(fmt::format("at most {} dimensions", kDimsMax));
      skip_spaces();
      uint64_t dim = 0;
      const char* begin = text_.data() + at_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), dim);
      if (error != std::errc() || end == begin) return fail("a dimension");
      at_ += static_cast<size_t>(end - begin);
      dims.push_back(dim);
      if (!take(",")) {
        OFFSTAGE_TRY_VOID(expect(")"));
        break;
      }
    }
    return dims;
  }

  std::string_view text_;
  size_t offset_;
  const std::string& name_;
  size_t at_ = 0;
};

}  // namespace

std::string NpyHeader::describe() const {
  return fmt::format("{} [{}]", descr, fmt::join(shape, ", "));
}

Result<NpyHeader> parse_npy_header(std::span<const std::byte> bytes, const std::string& name) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.size() < 10)
    return make_error(ErrorCode::kTruncated, "{}: expected at least 10 bytes, actual {}", name,
                      text.size());
  if (!text.starts_with(kMagic))
    return make_error(ErrorCode::kCorrupt, "{}: at byte 0: expected the magic '\\x93NUMPY'", name);
  const auto version = static_cast<uint8_t>(text[6]);
  if (version < 1 || version > 3)
    return make_error(ErrorCode::kUnsupported, "{}: at byte 6: expected version 1 to 3, actual {}",
                      name, version);
  // Version 1 counts the header's text in two bytes, the later ones in four.
  const size_t begin = version == 1 ? 10 : 12;
  uint32_t text_bytes = 0;
  if (text.size() >= begin) std::memcpy(&text_bytes, text.data() + 8, begin - 8);
  if (text.size() < begin || text_bytes > kTextMax || text_bytes > text.size() - begin)
    return make_error(ErrorCode::kTruncated,
                      "{}: at byte 8: a header of {} bytes doesn't fit {} bytes", name, text_bytes,
                      text.size());
  OFFSTAGE_TRY(NpyHeader header, DictReader(text.substr(begin, text_bytes), begin, name).read());
  header.data_offset = begin + text_bytes;
  return header;
}

}  // namespace offstage
