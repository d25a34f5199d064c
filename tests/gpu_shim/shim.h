// gpu/kernels/intrinsics.cuh for the host's compiler: the same kernel sources, run on a CPU.
//
// A block's threads are fibers of one thread of the program; blocks run one after the other. A
// fiber runs until it meets a barrier or a warp function, so what lies between two of them is run
// for one thread after the other, in an order that tests turn around (set_thread_order): a barrier
// that is missing shows as a difference between the two. Shared arrays are allocated anew for each
// block, exactly as long as they are, and filled with NaNs: AddressSanitizer sees what a kernel
// reads beyond them, a comparison sees what it reads before writing.
//
// Stricter than a GPU: warp functions must be called by all 32 lanes, and every thread of the block
// must meet every barrier. What breaks this ends the program with a sentence.
#pragma once

#define OFFSTAGE_GPU_SHIM 1

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "gpu/call_status.h"

struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
  dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace offstage::gpu_shim {

struct Index3 {
  uint32_t x = 0, y = 0, z = 0;
};

enum class ThreadOrder { kAscending, kDescending };
void set_thread_order(ThreadOrder order);

// Runs `kernel` for every thread of every block. Returns when all have.
void run_grid(const char* name, dim3 grid, dim3 block, const std::function<void()>& kernel);

void sync_threads();
// What lane `source` of the warp handed in, in the same call of the same `operation`.
uint64_t exchange(const char* operation, uint64_t value, uint32_t source);
// The block's array of this place in the source.
void* shared_bytes(const void* place, size_t bytes);
[[noreturn]] void fail(const char* what);

uint32_t lane();

}  // namespace offstage::gpu_shim

extern offstage::gpu_shim::Index3 threadIdx, blockIdx;

#define __global__
#define __syncthreads() ::offstage::gpu_shim::sync_threads()

#define OFFSTAGE_DEVICE inline
#define OFFSTAGE_BOTH inline
#define OFFSTAGE_UNROLL
#define OFFSTAGE_SHARED(type, name, count) \
  static const char name##_place = 0;      \
  type* const name = static_cast<type*>(   \
      ::offstage::gpu_shim::shared_bytes(&name##_place, sizeof(type) * (count)))
#define OFFSTAGE_LAUNCH(name, kernel, grid, block, stream, args)                   \
  (static_cast<void>(stream),                                                      \
   ::offstage::gpu_shim::run_grid(name, (grid), (block), [&] { (kernel)(args); }), \
   ::offstage::cuda::CallStatus{})

namespace offstage::gpu {

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float divided(float a, float b) { return a / b; }
inline float root(float a) { return std::sqrt(a); }

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
  for (int i = 0; i < 4; ++i)
    sum += static_cast<int8_t>(a >> 8 * i & 0xffu) * static_cast<int8_t>(b >> 8 * i & 0xffu);
  return sum;
}

inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15u;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (nibble & 7u)) & 0xffu;
    if ((nibble & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
    result |= byte << 8 * i;
  }
  return result;
}

inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31u));
}

template <typename T>
T shuffle_from(const char* operation, T value, uint32_t source) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = static_cast<uint32_t>(gpu_shim::exchange(operation, bits, source));
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}
template <typename T>
T shuffle_xor(T value, uint32_t mask) {
  return shuffle_from("shuffle_xor", value, gpu_shim::lane() ^ mask);
}
template <typename T>
T shuffle(T value, uint32_t source) {
  return shuffle_from("shuffle", value, source);
}
inline void sync_warp() { gpu_shim::exchange("sync_warp", 0, 0); }

// Loads that a GPU would refuse are refused.
template <typename T>
T load_aligned(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) gpu_shim::fail("a misaligned load");
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
struct alignas(16) Words4 {
  uint32_t at[4];
};
inline Words4 load_16(const void* at) { return load_aligned<Words4>(at); }
inline uint32_t load_4(const void* at) { return load_aligned<uint32_t>(at); }
inline uint16_t load_2(const void* at) { return load_aligned<uint16_t>(at); }
inline uint8_t load_1(const void* at) { return load_aligned<uint8_t>(at); }

}  // namespace offstage::gpu
