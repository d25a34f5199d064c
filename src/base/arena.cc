#include "base/arena.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"
#include "base/units.h"

namespace offstage {
namespace {

// "always madvise [never]": the advice is then taken and ignored.
bool huge_pages_are_off() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  return std::getline(file, line) && line.find("[never]") != std::string::npos;
}

}  // namespace

Result<HostArena> HostArena::create(std::string_view purpose, uint64_t bytes, Notices& notices) {
  const auto rounded = checked_round_up(bytes == 0 ? 1 : bytes, 4096);
  const auto mapped = rounded ? checked_add(*rounded, kHugePageBytes) : std::nullopt;
  void* raw = mapped ? mmap(nullptr, *mapped, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                     : MAP_FAILED;
  if (raw == MAP_FAILED) {
    return make_error(ErrorCode::kOutOfMemory, "cannot map {} for {}: {}", format_bytes(bytes),
                      purpose, mapped ? std::strerror(errno) : "size overflows");
  }
  // Trim to a 2 MiB aligned window, so that the first huge page is whole.
  auto* start = static_cast<std::byte*>(raw);
  const uint64_t head = round_up(reinterpret_cast<uintptr_t>(start), kHugePageBytes) -
                        reinterpret_cast<uintptr_t>(start);
  if (head != 0) munmap(start, head);
  const uint64_t tail = *mapped - head - *rounded;
  if (tail != 0) munmap(start + head + *rounded, tail);
  if (madvise(start + head, *rounded, MADV_HUGEPAGE) != 0) {
    notices.add("huge_pages", fmt::format("huge pages not available ({}); 4 KiB pages are used",
                                          std::strerror(errno)));
  } else if (huge_pages_are_off()) {
    notices.add(
        "huge_pages",
        "switched off in /sys/kernel/mm/transparent_hugepage/enabled; 4 KiB pages are used");
  }
  return HostArena(start + head, *rounded);
}

HostArena::HostArena(HostArena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      used_bytes_(std::exchange(other.used_bytes_, 0)) {}

HostArena& HostArena::operator=(HostArena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(used_bytes_, other.used_bytes_);
  return *this;
}

HostArena::~HostArena() {
  if (data_ != nullptr) munmap(data_, size_bytes_);
}

std::byte* HostArena::take(uint64_t bytes, uint64_t alignment) {
  const uint64_t offset = round_up(used_bytes_, alignment);
  CHECK_LE(offset + bytes, size_bytes_);
  used_bytes_ = offset + bytes;
  return data_ + offset;
}

Status HostArena::populate() {
  // MADV_POPULATE_WRITE (Linux 5.14) reports ENOMEM instead of a later SIGBUS or OOM kill.
  if (madvise(data_, size_bytes_, MADV_POPULATE_WRITE) == 0) return {};
  if (errno != EINVAL)
    return make_error(ErrorCode::kOutOfMemory, "cannot populate {}: {}", format_bytes(size_bytes_),
                      std::strerror(errno));
  for (uint64_t offset = 0; offset < size_bytes_; offset += 4096) data_[offset] = std::byte{0};
  return {};
}

Status lock_memory(std::string_view purpose, std::span<std::byte> memory, uint64_t total_bytes) {
  if (mlock(memory.data(), memory.size()) == 0) return {};
  const int err = errno;
  struct rlimit limit = {};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= total_bytes)
    return make_error(ErrorCode::kOutOfMemory, "--mlock: {} for {} can't be locked: {}",
                      format_bytes(memory.size()), purpose, std::strerror(err));
  return make_error(ErrorCode::kPermission,
                    "--mlock: {} are to be locked, RLIMIT_MEMLOCK allows {} (found by locking {} "
                    "for {}: {}). Raise it (ulimit -l {}) or leave --mlock out",
                    format_bytes(total_bytes), format_bytes(limit.rlim_cur),
                    format_bytes(memory.size()), purpose, std::strerror(err),
                    (total_bytes + 1023) / 1024);
}

}  // namespace offstage
