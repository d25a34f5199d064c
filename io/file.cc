#include "io/file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "io/extent.h"

namespace offstage {
namespace {

// Why direct reads of this file are impossible although the flag was accepted, as far as the
// filesystem says so itself. tmpfs takes O_DIRECT, also misaligned, and reads memory; ext4 with
// data journalling takes it and reads through the page cache.
std::optional<std::string> direct_io_pretended(int fd) {
  struct statfs fs = {};
  if (fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)) {
    return "the file lies in memory (tmpfs)";
  }
#ifdef STATX_DIOALIGN  // since Linux 6.1
  struct statx info = {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
      (info.stx_mask & STATX_DIOALIGN) != 0) {
    if (info.stx_dio_offset_align == 0) return "the filesystem has no direct io for this file";
    if (info.stx_dio_offset_align > kSectorBytes || info.stx_dio_mem_align > kSectorBytes) {
      return fmt::format("the filesystem wants direct reads aligned to {} in file and {} in memory",
                         info.stx_dio_offset_align, info.stx_dio_mem_align);
    }
  }
#endif
  return std::nullopt;
}

// Reads the first and the last sector through `fd`: the flag alone proves nothing (FUSE and
// overlays accept it and fail at the first read), and the tail is where lengths go wrong.
std::optional<std::string> direct_read_fails(int fd, uint64_t file_bytes) {
  struct FreeDeleter {
    void operator()(void* p) const { std::free(p); }
  };
  const std::unique_ptr<void, FreeDeleter> sector(std::aligned_alloc(kSectorBytes, kSectorBytes));
  const uint64_t last = file_bytes == 0 ? 0 : round_down(file_bytes - 1, kSectorBytes);
  for (const uint64_t offset : {uint64_t{0}, last}) {
    const uint64_t expected = std::min(kSectorBytes, file_bytes - offset);
    ssize_t got;
    do {
      got = pread(fd, sector.get(), kSectorBytes, static_cast<off_t>(offset));
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
      return fmt::format("a direct read at offset {} failed: {}", offset, std::strerror(errno));
    }
    if (static_cast<uint64_t>(got) != expected) {
      return fmt::format("a direct read at offset {} gave {} bytes, expected {}", offset, got,
                         expected);
    }
  }
  return std::nullopt;
}

// Switches `fd` to O_DIRECT and proves it; says why not.
std::optional<std::string> enable_direct_io(int fd, uint64_t file_bytes) {
  if (fcntl(fd, F_SETFL, O_DIRECT) != 0) {
    return fmt::format("the filesystem refused O_DIRECT: {}", std::strerror(errno));
  }
  if (auto reason = direct_io_pretended(fd)) return reason;
  return direct_read_fails(fd, file_bytes);
}

Result<ReadFile> open_read_file(const std::string& path) {
  // O_NONBLOCK, so that a FIFO answers at once; cleared below, since io_uring would give EAGAIN
  // for a descriptor that has it instead of waiting.
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) return tl::unexpected(errno_error(path, "cannot open"));
  struct stat info = {};
  if (fstat(fd.get(), &info) != 0) return tl::unexpected(errno_error(path, "cannot stat"));
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument, "{}: not a regular file or block device", path);
  }
  const off_t end = lseek(fd.get(), 0, SEEK_END);  // unlike st_size, right for block devices too
  if (end < 0 || fcntl(fd.get(), F_SETFL, 0) != 0)
    return tl::unexpected(errno_error(path, "cannot prepare for reading"));
  return ReadFile{path, std::move(fd), static_cast<uint64_t>(end), false};
}

}  // namespace

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) close(fd_);
}

Result<std::vector<ReadFile>> open_read_files(const std::vector<std::string>& paths,
                                              DirectIo direct, Notices& notices) {
  std::vector<ReadFile> files;
  for (const std::string& path : paths) {
    OFFSTAGE_TRY(ReadFile file, open_read_file(path));
    if (direct != DirectIo::kOff) {
      const auto refusal = enable_direct_io(file.fd.get(), file.bytes);
      file.direct = !refusal.has_value();
      if (refusal && direct == DirectIo::kOn) {
        return make_error(ErrorCode::kUnsupported, "{}: direct io is not possible: {}", path,
                          *refusal);
      }
      if (refusal) {
        if (fcntl(file.fd.get(), F_SETFL, 0) != 0) {
          return make_error(ErrorCode::kIo, "{}: cannot leave direct io: {}", path,
                            std::strerror(errno));
        }
        notices.add("direct_io",
                    fmt::format("{}: read through the page cache, because {}", path, *refusal));
      }
    }
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace offstage
