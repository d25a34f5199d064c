// Unquantised matrices (the router's above all) times a few rows: a fused-multiply-add chain per
// 256 of K, slices added ascending (cpu/README.md).
//
// A lane owns an output, a warp a slice of 32 outputs: the chain is sequential, so rows are read a
// 32 × 32 tile at a time, along K, and turned in shared memory.
#include "gpu/kernels/arithmetic.cuh"

namespace offstage::gpu {
namespace {

inline constexpr uint32_t kWarps = 4;          // slices at once
inline constexpr uint32_t kTile = kWarp;       // rows and columns
inline constexpr uint32_t kPitch = kTile + 1;  // so that reading along rows meets every bank once

OFFSTAGE_DEVICE float weight_at(TensorType type, const std::byte* row, uint32_t k) {
  if (type == TensorType::kF32) return float_of_bits(load_4(row + size_t{k} * 4));
  const uint32_t half = load_2(row + size_t{k} * 2);
  return type == TensorType::kF16 ? float_of_f16(half) : float_of_bits(half << 16);
}

OFFSTAGE_DEVICE size_t row_bytes_of(const FloatMatvecArgs& args) {
  return size_t{args.k} * (args.type == TensorType::kF32 ? 4 : 2);
}

// s of one slice, [begin, end), for output first_output + lane. `tile` is the warp's own.
OFFSTAGE_DEVICE float slice_sum(const FloatMatvecArgs& args, const std::byte* matrix,
                                uint32_t first_output, uint32_t begin, uint32_t end, const float* x,
                                float* tile) {
  const uint32_t lane = threadIdx.x % kWarp;
  const size_t row_bytes = row_bytes_of(args);
  float s = 0.0f;
  for (uint32_t at = begin; at < end; at += kTile) {
    for (uint32_t j = 0; j < kTile && first_output + j < args.n; ++j)
      if (at + lane < end)
        tile[j * kPitch + lane] =
            weight_at(args.type, matrix + row_bytes * (first_output + j), at + lane);
    sync_warp();
    if (first_output + lane < args.n)
      for (uint32_t i = 0; i < kTile && at + i < end; ++i)
        s = fused(tile[lane * kPitch + i], x[at + i], s);
    sync_warp();
  }
  return s;
}

// Grid: 32 outputs, rows, heads.
__global__ void float_matvec_rows(FloatMatvecArgs args) {
  OFFSTAGE_SHARED(float, tiles, kWarps* kTile* kPitch);
  OFFSTAGE_SHARED(float, sums, kWarps* kWarp);
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t first_output = blockIdx.x * kWarp;
  const std::byte* matrix = args.matrix + row_bytes_of(args) * args.n * blockIdx.z;
  const size_t row = size_t{blockIdx.y} * args.n_heads + blockIdx.z;
  const float* x = args.x + row * (args.x_stride != 0 ? args.x_stride : args.k);
  float acc = 0.0f;
  for (uint32_t pass = 0; pass < args.k; pass += kWarps * kRunElements) {
    const uint32_t begin = pass + warp * kRunElements;
    const uint32_t end = begin + kRunElements < args.k ? begin + kRunElements : args.k;
    if (begin < args.k)
      sums[threadIdx.x] =
          slice_sum(args, matrix, first_output, begin, end, x, tiles + warp * kTile * kPitch);
    __syncthreads();
    if (warp == 0)
      for (uint32_t w = 0; w < kWarps && pass + w * kRunElements < args.k; ++w)
        acc = acc + sums[w * kWarp + lane];
    __syncthreads();
  }
  const uint32_t output = first_output + lane;
  if (warp != 0 || output >= args.n) return;
  if (args.bias != nullptr) acc = acc + args.bias[output];
  args.out[row * (args.out_stride != 0 ? args.out_stride : args.n) + output] = acc;
}

}  // namespace

CallStatus float_matvec(StreamHandle stream, const FloatMatvecArgs& args) {
  const dim3 grid((args.n + kWarp - 1) / kWarp, args.n_rows, args.n_heads);
  return OFFSTAGE_LAUNCH("float_matvec", float_matvec_rows, grid, kWarps * kWarp, stream, args);
}

}  // namespace offstage::gpu
