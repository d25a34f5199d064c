// Float rows → int8 rows with scales (cpu/README.md, "Activations of quantised weights"), and keys
// and values as they are stored.
#include "gpu/kernels/activations.h"
#include "gpu/kernels/arithmetic.cuh"
#include "gpu/kernels/kernels.h"

namespace offstage::gpu {
namespace {

inline constexpr uint32_t kRunThreads = kRunElements;  // one element each

struct Scale {
  float d, inverse;  // inverse 0: all q are 0
};

OFFSTAGE_DEVICE Scale activation_scale(uint32_t largest_bits) {
  if (largest_bits >= kInfBits) return {float_of_bits(kQuietNan), 0.0f};
  const float amax = float_of_bits(largest_bits);
  if (amax < kTinyActivation) return {0.0f, 0.0f};
  return {divided(amax, 127.0f), divided(127.0f, amax)};
}

// x · 0 is NaN for the Inf that made the scale NaN, so a zero inverse is a branch.
OFFSTAGE_DEVICE int32_t quantised(float x, float inverse) {
  return inverse == 0.0f ? 0 : round_small(x * inverse);
}

// Without their sign, floats order like their bits, with Inf and NaN above all.
OFFSTAGE_DEVICE uint32_t largest_in_warp(float x) {
  uint32_t largest = bits_of_float(x) & 0x7fffffffu;
  for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
    const uint32_t other = shuffle_xor(largest, distance);
    if (other > largest) largest = other;
  }
  return largest;
}

OFFSTAGE_DEVICE int32_t sum_neighbours(int32_t value, uint32_t lanes) {
  for (uint32_t distance = lanes / 2; distance > 0; distance /= 2)
    value += shuffle_xor(value, distance);
  return value;
}

OFFSTAGE_DEVICE const float* row_of(const QuantiseArgs& args) {
  return args.x + size_t{blockIdx.x} * (args.x_stride != 0 ? args.x_stride : args.k);
}

// The same for a whole block of threads.
OFFSTAGE_DEVICE bool is_left_out(const QuantiseArgs& args) {
  return args.count != nullptr && blockIdx.x >= *args.count;
}

// Grid: rows, which may be one for each head, and runs of a row. A warp is a block of 32.
__global__ void quantise_32(QuantiseArgs args) {
  if (is_left_out(args)) return;
  const uint32_t n_runs = (args.k + kRunElements - 1) / kRunElements;
  const uint32_t run = blockIdx.y, i = threadIdx.x, at = run * kRunElements + i;
  Run32* out = reinterpret_cast<Run32*>(args.out) + size_t{blockIdx.x} * n_runs + run;
  const float x = at < args.k ? row_of(args)[at] : 0.0f;
  const Scale scale = activation_scale(largest_in_warp(x));
  const int32_t q = quantised(x, scale.inverse);
  const int32_t sum = sum_neighbours(q, kWarp);
  out->q[i] = static_cast<int8_t>(q);
  if (i % kWarp == 0) {
    out->d[i / kWarp] = scale.d;
    out->sum[i / kWarp] = sum;
  }
}

__global__ void quantise_256(QuantiseArgs args) {
  OFFSTAGE_SHARED(uint32_t, largest_of_warp, kRunThreads / kWarp);
  if (is_left_out(args)) return;
  const uint32_t n_runs = args.k / kRunElements;
  const uint32_t i = threadIdx.x;
  Run256* out = reinterpret_cast<Run256*>(args.out) + size_t{blockIdx.x} * n_runs + blockIdx.y;
  const float x = row_of(args)[blockIdx.y * kRunElements + i];
  const uint32_t here = largest_in_warp(x);
  if (i % kWarp == 0) largest_of_warp[i / kWarp] = here;
  __syncthreads();
  uint32_t largest = 0;
  for (uint32_t w = 0; w < kRunThreads / kWarp; ++w)
    if (largest_of_warp[w] > largest) largest = largest_of_warp[w];
  const Scale scale = activation_scale(largest);
  const int32_t q = quantised(x, scale.inverse);
  const int32_t sum = sum_neighbours(q, 16);
  out->q[i] = static_cast<int8_t>(q);
  if (i % 16 == 0) out->sum16[i / 16] = static_cast<int16_t>(sum);
  if (i == 0) out->d = scale.d;
}

// Grid: 32 elements, rows; one warp.
__global__ void store_kv_rows(StoreKvArgs args) {
  const uint32_t i = blockIdx.x * kWarp + threadIdx.x;
  std::byte* out = args.out[blockIdx.y] + args.offset;
  const bool inside = i < args.n;
  const float x = inside ? args.x[size_t{blockIdx.y} * args.n + i] : 0.0f;
  if (args.type == KvType::kF32) {
    if (inside) reinterpret_cast<float*>(out)[i] = x;
    return;
  }
  if (args.type == KvType::kF16) {
    if (inside) reinterpret_cast<uint16_t*>(out)[i] = static_cast<uint16_t>(f16_of_float(x));
    return;
  }
  // 34 bytes. q comes from the rounded d, so that d·q is as near as it can be.
  const uint32_t largest = largest_in_warp(x);
  uint32_t d_bits = 0x7e00;  // NaN
  float inverse = 0.0f;
  if (largest < kInfBits) {
    const float d = divided(float_of_bits(largest), 127.0f);
    d_bits = f16_of_float(d < 65504.0f ? d : 65504.0f);
    if (d_bits != 0) inverse = divided(1.0f, float_of_f16(d_bits));
  }
  float scaled = inverse == 0.0f ? 0.0f : x * inverse;
  scaled = scaled < -127.0f ? -127.0f : scaled;
  scaled = scaled > 127.0f ? 127.0f : scaled;
  std::byte* block = out + size_t{blockIdx.x} * 34;
  if (threadIdx.x == 0) *reinterpret_cast<uint16_t*>(block) = static_cast<uint16_t>(d_bits);
  reinterpret_cast<int8_t*>(block + 2)[threadIdx.x] = static_cast<int8_t>(round_small(scaled));
}

bool is_block_of_32(TensorType weights) {
  return weights == TensorType::kQ8_0 || weights == TensorType::kQ4_0 ||
         weights == TensorType::kQ5_0 || weights == TensorType::kMXFP4;
}

}  // namespace

uint64_t activation_row_bytes(TensorType weights, uint32_t k) {
  if (!is_quantised(weights)) return uint64_t{k} * sizeof(float);
  return (uint64_t{k} + kRunElements - 1) / kRunElements * sizeof(Run32);
}

CallStatus quantise_activations(StreamHandle stream, const QuantiseArgs& args) {
  const dim3 grid(args.n_rows, (args.k + kRunElements - 1) / kRunElements);
  if (is_block_of_32(args.weights))
    return OFFSTAGE_LAUNCH("quantise_32", quantise_32, grid, kRunThreads, stream, args);
  return OFFSTAGE_LAUNCH("quantise_256", quantise_256, grid, kRunThreads, stream, args);
}

CallStatus store_kv(StreamHandle stream, const StoreKvArgs& args) {
  const dim3 grid((args.n + kWarp - 1) / kWarp, args.n_rows);
  return OFFSTAGE_LAUNCH("store_kv", store_kv_rows, grid, kWarp, stream, args);
}

}  // namespace offstage::gpu
