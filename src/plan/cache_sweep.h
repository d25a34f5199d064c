// The processors' caches emptied of what was in them, by reading as much other memory.
//
// Between two tokens a large model's weights go through the caches; who times a small model's parts
// sweeps in between, so that they find the caches as those of a large one do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace offstage {

class CacheSweep {
 public:
  explicit CacheSweep(size_t bytes) : memory_(bytes / sizeof(uint64_t), 1) {}
  void pass() const {
    uint64_t sum = 0;
    for (const uint64_t word : memory_) sum += word;
    asm volatile("" : : "r"(sum));  // so that it is read
  }

 private:
  std::vector<uint64_t> memory_;
};

}  // namespace offstage
