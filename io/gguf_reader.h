// Checked reads of a GGUF header: the only code that touches its bytes.
//
// In: a file (read with pread through one window of 256 KiB, so that weights are never read and a
// file changed underneath can't fault) or bytes in memory. Out: little-endian numbers and strings,
// or an error that names file, subject, field, absolute offset, expected and actual. Nothing is
// allocated for bytes that the file doesn't have. One thread.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/result.h"
#include "io/gguf.h"

namespace offstage {

static_assert(std::endian::native == std::endian::little,
              "numbers are copied as the file has them");

// What a message is about: "key 'general.name'", or "tensor number 3" until its name is known.
struct GgufSubject {
  GgufSubject() = default;
  GgufSubject(std::string_view k, std::string_view n, uint64_t i = 0)
      : kind(k), name(n), number(i) {}
  std::string_view kind = "header";
  std::string_view name;  // must outlive its use
  uint64_t number = 0;    // from 1, in file order; 0 for the header itself
};

// Text of a file as a message may show it: control and non-ASCII bytes escaped, at most 80 bytes.
std::string printable(std::string_view text);

class GgufReader {
 public:
  static Result<GgufReader> open(const std::string& path);
  // `bytes` is the file's beginning and must outlive the reader.
  GgufReader(std::string_view name, std::span<const std::byte> bytes, uint64_t file_bytes);

  GgufReader(GgufReader&& other) noexcept;
  GgufReader& operator=(GgufReader&&) = delete;
  GgufReader(const GgufReader&) = delete;
  GgufReader& operator=(const GgufReader&) = delete;
  ~GgufReader();

  const std::string& name() const { return name_; }
  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t position() const { return position_; }
  void set_subject(GgufSubject subject) { subject_ = subject; }

  // Numbers of the given type; `field` is for the message.
  template <typename T>
  Result<T> number(std::string_view field);
  // A length of 8 bytes and that many bytes. kCorrupt if longer than `bytes_max`.
  Result<std::string> string(std::string_view field, uint64_t bytes_max);
  Status skip_string(std::string_view field, uint64_t bytes_max);
  Status copy(std::string_view field, std::span<std::byte> out);
  // Goes back (or stays): to re-read what was checked before.
  void rewind(uint64_t position);

  // kTruncated unless the file has `bytes` more bytes; kCorrupt beyond kGgufHeaderBytesMax.
  Status need(std::string_view field, uint64_t bytes) const;

  // error(code, offset, "...", ...): "file: subject at byte N: ..."
  template <typename... Args>
  [[nodiscard]] tl::unexpected<Error> error(ErrorCode code, uint64_t offset,
                                            fmt::format_string<Args...> format,
                                            Args&&... args) const {
    return make_error(code, "{}: {} at byte {}: {}", name_, subject_text(), offset,
                      fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  GgufReader(std::string path, int fd, uint64_t file_bytes);
  std::string subject_text() const;
  Result<uint64_t> string_bytes(std::string_view field, uint64_t bytes_max);
  uint64_t window_left() const { return window_offset_ + window_.size() - position_; }
  Status refill();  // makes window_left() > 0; need() has been asked before

  std::string name_;
  int fd_ = -1;
  uint64_t file_bytes_ = 0;
  uint64_t position_ = 0;
  GgufSubject subject_;
  std::vector<std::byte> buffer_;      // a file's window lies here
  std::span<const std::byte> window_;  // the file's bytes from window_offset_
  uint64_t window_offset_ = 0;
};

template <typename T>
Result<T> GgufReader::number(std::string_view field) {
  static_assert(std::is_arithmetic_v<T>);
  OFFSTAGE_TRY_VOID(need(field, sizeof(T)));
  T value;
  if (window_left() >= sizeof(T)) {
    std::memcpy(&value, window_.data() + (position_ - window_offset_), sizeof(T));
    position_ += sizeof(T);
    return value;
  }
  OFFSTAGE_TRY_VOID(copy(field, std::as_writable_bytes(std::span(&value, 1))));
  return value;
}

}  // namespace offstage
