#include "io/gguf_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"

namespace offstage {
namespace {

constexpr size_t kWindowBytes = 256 << 10;
constexpr size_t kPrintableBytesMax = 80;

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kPrintableBytesMax)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && c != '\'' && c != '\\')
      out.push_back(c);
    else
      out += fmt::format("\\x{:02x}", byte);
  }
  if (text.size() > kPrintableBytesMax) out += "...";
  return out;
}

Result<GgufReader> GgufReader::open(const std::string& path) {
  // O_NONBLOCK: the open of a FIFO must not wait for a writer. It means nothing to a regular file.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return tl::unexpected(errno_error(path, "can't be opened"));
  struct stat status = {};
  const int stat_result = ::fstat(fd, &status);
  GgufReader reader(path, fd, static_cast<uint64_t>(std::max<off_t>(status.st_size, 0)));
  if (stat_result != 0)
    return make_error(ErrorCode::kIo, "{}: can't be examined: {}", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode))
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: expected a regular file, actual file type {:#o}", path,
                      static_cast<unsigned>(status.st_mode & S_IFMT));
  return reader;
}

GgufReader::GgufReader(std::string path, int fd, uint64_t file_bytes)
    : name_(std::move(path)), fd_(fd), file_bytes_(file_bytes) {}

GgufReader::GgufReader(std::string_view name, std::span<const std::byte> bytes, uint64_t file_bytes)
    : name_(name),
      file_bytes_(file_bytes),
      window_(bytes.first(std::min<uint64_t>(bytes.size(), file_bytes))) {}

GgufReader::GgufReader(GgufReader&& other) noexcept
    : name_(std::move(other.name_)),
      fd_(std::exchange(other.fd_, -1)),
      file_bytes_(other.file_bytes_),
      position_(other.position_),
      subject_(other.subject_),
      buffer_(std::move(other.buffer_)),
      window_(other.window_),
      window_offset_(other.window_offset_) {}

GgufReader::~GgufReader() {
  if (fd_ >= 0) ::close(fd_);
}

std::string GgufReader::subject_text() const {
  if (!subject_.name.empty())
    return fmt::format("{} '{}'", subject_.kind, printable(subject_.name));
  if (subject_.number != 0) return fmt::format("{} number {}", subject_.kind, subject_.number);
  return std::string(subject_.kind);
}

Status GgufReader::need(std::string_view field, uint64_t bytes) const {
  const uint64_t left = file_bytes_ - position_;
  if (bytes > left)
    return error(ErrorCode::kTruncated, position_,
                 "{}: expected {} bytes, actual {} until the end of the file at {}", field, bytes,
                 left, file_bytes_);
  // position_ never passes the limit: this check guards each step.
  if (bytes > kGgufHeaderBytesMax - position_)
    return error(ErrorCode::kCorrupt, position_,
                 "{}: expected a header of at most {} bytes, actual {} or more", field,
                 kGgufHeaderBytesMax, position_ + bytes);
  return {};
}

Status GgufReader::refill() {
  if (fd_ < 0)
    return error(ErrorCode::kTruncated, position_,
                 "expected the whole header, actual only the file's first {} bytes are here",
                 window_.size());
  if (buffer_.empty()) buffer_.resize(std::min<uint64_t>(kWindowBytes, file_bytes_));
  ssize_t got;
  do {
    got = ::pread(fd_, buffer_.data(), buffer_.size(), static_cast<off_t>(position_));
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    const int err = errno;
    return error(error_code_of_errno(err), position_, "read failed: {}", std::strerror(err));
  }
  if (got == 0)
    return error(ErrorCode::kTruncated, position_,
                 "the file became shorter while it was read: expected {} bytes", file_bytes_);
  window_ = std::span(buffer_).first(static_cast<size_t>(got));
  window_offset_ = position_;
  return {};
}

Status GgufReader::copy(std::string_view field, std::span<std::byte> out) {
  OFFSTAGE_TRY_VOID(need(field, out.size()));
  while (!out.empty()) {
    if (window_left() == 0) OFFSTAGE_TRY_VOID(refill());
    const size_t n = std::min<uint64_t>(out.size(), window_left());
    std::memcpy(out.data(), window_.data() + (position_ - window_offset_), n);
    position_ += n;
    out = out.subspan(n);
  }
  return {};
}

void GgufReader::rewind(uint64_t position) {
  CHECK_LE(position, position_);
  position_ = position;
  // Bytes in memory begin at 0 and stay; a file's window that begins later is dropped.
  if (position < window_offset_) {
    window_ = {};
    window_offset_ = position;
  }
}

Result<uint64_t> GgufReader::string_bytes(std::string_view field, uint64_t bytes_max) {
  const uint64_t offset = position_;
  OFFSTAGE_TRY(const uint64_t bytes, number<uint64_t>(field));
  if (bytes > bytes_max)
    return error(ErrorCode::kCorrupt, offset, "{}: expected a length of at most {}, actual {}",
                 field, bytes_max, bytes);
  OFFSTAGE_TRY_VOID(need(field, bytes));
  return bytes;
}

Result<std::string> GgufReader::string(std::string_view field, uint64_t bytes_max) {
  OFFSTAGE_TRY(const uint64_t bytes, string_bytes(field, bytes_max));
  std::string text(bytes, '\0');
  OFFSTAGE_TRY_VOID(copy(field, std::as_writable_bytes(std::span(text))));
  return text;
}

Status GgufReader::skip_string(std::string_view field, uint64_t bytes_max) {
  OFFSTAGE_TRY(const uint64_t bytes, string_bytes(field, bytes_max));
  position_ += bytes;
  if (position_ <= window_offset_ + window_.size()) return {};
  if (fd_ < 0) return refill();  // says that the bytes aren't here
  window_ = {};
  window_offset_ = position_;
  return {};
}

}  // namespace offstage
