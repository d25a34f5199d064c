#include "io/whole_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "io/file.h"

namespace offstage {

Status read_exactly(int fd, const std::string& path, uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return tl::unexpected(errno_error(path, "can't be read"));
    if (got == 0)
      return make_error(ErrorCode::kTruncated, "{}: at byte {}: expected {} more bytes, actual 0",
                        path, offset, out.size());
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return {};
}

Status write_exactly(int fd, const std::string& path, uint64_t offset,
                     std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0)
      return tl::unexpected(errno_error(
          path, fmt::format("{} bytes at byte {} can't be written", bytes.size(), offset)));
    offset += static_cast<uint64_t>(put);
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
  return {};
}

std::string temporary_name(const std::string& path) {
  return fmt::format("{}.{}.tmp", path, ::getpid());
}

Status replace_file(const std::string& path, std::span<const std::byte> bytes) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code ignored;  // the open below says it better
  if (!folder.empty()) std::filesystem::create_directories(folder, ignored);
  const std::string temporary = temporary_name(path);
  ::unlink(temporary.c_str());  // left by a process of the same number that died
  const UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return tl::unexpected(errno_error(temporary, "can't be created"));
  Status status = write_exactly(fd.get(), temporary, 0, bytes);
  if (status && ::fsync(fd.get()) != 0)
    status = tl::unexpected(errno_error(temporary, "can't be synced"));
  if (status && ::rename(temporary.c_str(), path.c_str()) != 0)
    status = tl::unexpected(errno_error(path, "can't be renamed to"));
  if (!status) ::unlink(temporary.c_str());
  if (status) sync_folder_of(path);
  return status;
}

Status replace_file(const std::string& path, std::string_view text) {
  return replace_file(path, std::as_bytes(std::span(text)));
}

void sync_folder_of(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const std::string name = folder.empty() ? "." : folder.string();
  const UniqueFd fd(::open(name.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY));
  if (fd.valid()) ::fsync(fd.get());
}

}  // namespace offstage
