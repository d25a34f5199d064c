// Host memory taken once at start: an anonymous mapping, huge-page advised, 2 MiB aligned.
//
// The kernel hands out its pages on first touch; populate() touches them all, so that a budget that
// doesn't fit fails at start and not in the middle of a token. The arena owns the memory; pieces
// handed out by take() live as long as it does. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/notices.h"
#include "base/result.h"

namespace offstage {

inline constexpr uint64_t kHugePageBytes = 2ull << 20;

class HostArena {
 public:
  // Errors: kOutOfMemory with the size. Announces (subject "huge_pages") where the kernel won't
  // take the advice, or takes it and does nothing.
  static Result<HostArena> create(std::string_view purpose, uint64_t bytes, Notices& notices);

  HostArena(HostArena&& other) noexcept;
  HostArena& operator=(HostArena&& other) noexcept;
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;
  ~HostArena();

  // The next `bytes`, aligned to `alignment` (a power of two ≤ 2 MiB). The plan sized the arena, so
  // running out is a bug (CHECK).
  std::byte* take(uint64_t bytes, uint64_t alignment);
  Status populate();

  std::byte* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }

 private:
  HostArena(std::byte* data, uint64_t bytes) : data_(data), size_bytes_(bytes) {}
  std::byte* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  uint64_t used_bytes_ = 0;
};

// Touches the memory and keeps it from being swapped out until it is unmapped. `total_bytes`: all
// that this process will lock, so that a limit that is too small is named once, with what it has to
// be. Errors: kPermission, kOutOfMemory.
Status lock_memory(std::string_view purpose, std::span<std::byte> memory, uint64_t total_bytes);

}  // namespace offstage
