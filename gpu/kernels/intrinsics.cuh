// Everything that kernels take from the vendor, under our own names: the one header that
// tests/gpu_shim implements a second time for the host's compiler. PTX stands here and nowhere
// else.
//
// Kernels also use CUDA's __global__, threadIdx, blockIdx, dim3 and __syncthreads as they are.
// Blocks are one-dimensional and whole warps; warp functions are called by all 32 lanes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/call_status.h"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define OFFSTAGE_DEVICE __device__ __forceinline__
#define OFFSTAGE_BOTH __host__ __device__ inline  // callable from the host as well
// An array that the block's threads share; its contents start undefined.
#define OFFSTAGE_SHARED(type, name, count) __shared__ type name[count]
#define OFFSTAGE_UNROLL _Pragma("unroll")
// Of a kernel that takes one struct; the launch's CallStatus.
#define OFFSTAGE_LAUNCH(name, kernel, grid, block, stream, args)                 \
  (kernel<<<(grid), (block), 0, reinterpret_cast<cudaStream_t>(stream)>>>(args), \
   ::offstage::gpu::status_of_launch(name))

namespace offstage::gpu {

inline cuda::CallStatus status_of_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  return {kernel, cudaGetErrorName(error), cudaGetErrorString(error)};
}

inline constexpr uint32_t kAllLanes = 0xffffffffu;

// One rounding each, whatever the compiler's flags.
OFFSTAGE_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
OFFSTAGE_DEVICE float divided(float a, float b) { return __fdiv_rn(a, b); }
OFFSTAGE_DEVICE float root(float a) { return __fsqrt_rn(a); }

OFFSTAGE_DEVICE uint32_t bits_of_float(float value) { return __float_as_uint(value); }
OFFSTAGE_DEVICE float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }

// sum + Σ a_i · b_i over four int8.
OFFSTAGE_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
  return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), sum);
}

// Byte i of the result is byte (selector >> 4i & 7) of high:low, or, where bit 3 of that nibble is
// set, that byte's sign eight times. __byte_perm ignores bit 3; the instruction doesn't.
OFFSTAGE_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

// The low word of high:low >> shift, shift 0 … 31.
OFFSTAGE_DEVICE uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}

// From the lane whose number differs by `mask`, and from lane `source`.
template <typename T>
OFFSTAGE_DEVICE T shuffle_xor(T value, uint32_t mask) {
  return __shfl_xor_sync(kAllLanes, value, static_cast<int>(mask));
}
template <typename T>
OFFSTAGE_DEVICE T shuffle(T value, uint32_t source) {
  return __shfl_sync(kAllLanes, value, static_cast<int>(source));
}
// What a lane wrote before is seen by the others after.
OFFSTAGE_DEVICE void sync_warp() { __syncwarp(); }

struct Words4 {
  uint32_t at[4];
};
// 16 bytes at a multiple of 16, through the read-only path.
OFFSTAGE_DEVICE Words4 load_16(const void* at) {
  const uint4 words = __ldg(static_cast<const uint4*>(at));
  return {{words.x, words.y, words.z, words.w}};
}
OFFSTAGE_DEVICE uint32_t load_4(const void* at) { return __ldg(static_cast<const uint32_t*>(at)); }
OFFSTAGE_DEVICE uint16_t load_2(const void* at) { return __ldg(static_cast<const uint16_t*>(at)); }
OFFSTAGE_DEVICE uint8_t load_1(const void* at) { return __ldg(static_cast<const uint8_t*>(at)); }

}  // namespace offstage::gpu

#elif !defined(OFFSTAGE_GPU_SHIM)
#error "kernels are compiled by nvcc, or by tests/gpu_shim behind its shim.h"
#endif
