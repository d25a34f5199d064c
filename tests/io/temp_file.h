// Files for io tests: real bytes on a real filesystem, gone when the test ends.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "io/extent.h"

namespace offstage::testing {

// A folder whose files a drive holds: tmpfs takes any O_DIRECT read and so proves nothing.
inline std::string real_folder() {
  const char* asked = std::getenv("OFFSTAGE_TEST_DIR");
  for (const char* folder : {asked, ".", "/var/tmp"}) {
    struct statfs fs = {};
    if (folder == nullptr || statfs(folder, &fs) != 0 || fs.f_type == TMPFS_MAGIC) continue;
    char* absolute = realpath(folder, nullptr);
    std::string result = absolute;
    std::free(absolute);
    return result;
  }
  return "/var/tmp";
}

// Random bytes, no sector like another: a read that went elsewhere is seen.
inline std::vector<std::byte> random_bytes(size_t bytes, uint64_t seed) {
  std::vector<std::byte> data(round_up(bytes, 8));
  Rng rng(seed);
  for (size_t i = 0; i < data.size(); i += 8) {
    const uint64_t word = rng.next_u64();
    std::memcpy(data.data() + i, &word, 8);
  }
  data.resize(bytes);
  return data;
}

class TempFile {
 public:
  explicit TempFile(std::vector<std::byte> bytes, std::string folder = real_folder())
      : path_(folder + "/offstage-test-XXXXXX"), bytes_(std::move(bytes)) {
    const int fd = mkstemp(path_.data());
    CHECK_GE(fd, 0);
    size_t written = 0;
    while (written < bytes_.size()) {
      const ssize_t n = write(fd, bytes_.data() + written, bytes_.size() - written);
      CHECK_GT(n, 0);
      written += static_cast<size_t>(n);
    }
    CHECK_EQ(fchmod(fd, 0644), 0);
    CHECK_EQ(fsync(fd), 0);
    close(fd);
  }
  static TempFile random(size_t bytes, uint64_t seed = 1) {
    return TempFile(random_bytes(bytes, seed));
  }
  TempFile(TempFile&& other) noexcept
      : path_(std::exchange(other.path_, {})), bytes_(std::move(other.bytes_)) {}
  TempFile& operator=(TempFile&&) = delete;
  ~TempFile() {
    if (!path_.empty()) unlink(path_.c_str());
  }

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::string path_;
  std::vector<std::byte> bytes_;
};

// Sector-aligned memory, filled with a pattern so that what wasn't read shows.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes)
      : bytes_(round_up(bytes, kSectorBytes)),
        data_(static_cast<std::byte*>(std::aligned_alloc(kSectorBytes, bytes_))) {
    poison();
  }
  void poison() { std::memset(data_.get(), 0xEE, bytes_); }
  std::byte* data() const { return data_.get(); }
  size_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<std::byte, Free> data_;
};

// A test that hangs ends here, loudly, and not with the whole suite's time limit.
class BoundedTest : public ::testing::Test {
 protected:
  static constexpr unsigned kSecondsMax = 60;
  BoundedTest() { alarm(kSecondsMax); }
  ~BoundedTest() override { alarm(0); }
};

}  // namespace offstage::testing
