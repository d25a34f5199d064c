// Where a comparison's kernels run: the CPU through tests/gpu_shim, or a card. Two sources
// implement this header, one for each test program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gpu/kernels/kernels.h"

namespace offstage::gpu_rig {

// Empty: it runs here. Else why it doesn't, for GTEST_SKIP.
const char* why_not();

// Device memory at a multiple of 256, filled with 0xff (as floats, NaNs).
std::byte* allocate(size_t bytes);
void release(std::byte* memory);
void upload(std::byte* to, const void* from, size_t bytes);
void download(void* to, const std::byte* from, size_t bytes);

gpu::StreamHandle stream();
// Waits for the stream. CHECK: nothing went wrong.
void finish(const gpu::CallStatus& launch);

// How often a launch is worth repeating, and what changes from one time to the next: the order of a
// block's threads on the shim, nothing on a card.
uint32_t n_turns();
void begin_turn(uint32_t turn);

// `n` values in device memory.
template <typename T>
class Array {
 public:
  explicit Array(size_t n) : n_(n), memory_(allocate(bytes())) {}
  explicit Array(const std::vector<T>& values) : Array(values.size()) { put(values); }
  ~Array() { release(memory_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  void put(const std::vector<T>& values) { upload(memory_, values.data(), n_ * sizeof(T)); }
  std::vector<T> take() const {
    std::vector<T> values(n_);
    download(values.data(), memory_, n_ * sizeof(T));
    return values;
  }
  T* at() { return reinterpret_cast<T*>(memory_); }
  size_t size() const { return n_; }

 private:
  // What kernels read ends at a multiple of 4 (kernels.h).
  size_t bytes() const { return (n_ * sizeof(T) + 3) / 4 * 4; }

  size_t n_;
  std::byte* memory_;
};

}  // namespace offstage::gpu_rig
