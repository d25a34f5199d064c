// Files opened for reading: descriptors that close themselves, and the proof of O_DIRECT.
//
// In: paths of regular files or block devices. Out: descriptors, sizes at open, and for each file
// whether reads bypass the page cache. Whoever holds a ReadFile owns its descriptor.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "io/engine.h"

namespace offstage {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd();

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

struct ReadFile {
  std::string path;
  UniqueFd fd;
  uint64_t bytes = 0;   // at open
  bool direct = false;  // O_DIRECT is set and a real read through it succeeded
};

// Opens every path. DirectIo::kOn: a file that refuses is an error (kUnsupported); kAuto: it is
// opened buffered and announced (subject "direct_io"). Errors name path and errno.
Result<std::vector<ReadFile>> open_read_files(const std::vector<std::string>& paths,
                                              DirectIo direct, Notices& notices);

}  // namespace offstage
