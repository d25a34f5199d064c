// Quantised matrices times many rows of activations, grouped over the experts of a layer: prefill.
//
// A block of threads computes a tile of 64 rows of the matrix by 32 places, run by run: the runs'
// weights are unpacked to bytes in shared memory once, the activations laid beside them, and every
// thread multiplies for its 4 × 2 outputs by dp4a. Integer sums are exact and a thread owns its
// outputs, so the order of cpu/README.md needs no shuffle: the run's tree, then the runs ascending.
#include "gpu/kernels/dots.cuh"
#include "gpu/kernels/places.cuh"

namespace offstage::gpu {
namespace {

inline constexpr uint32_t kThreads = 256;
inline constexpr uint32_t kTileRows = 64, kTilePlaces = 32;
inline constexpr uint32_t kAcross = 16;  // threads along the rows, and along the places
inline constexpr int kRows = kTileRows / kAcross, kPlaces = kTilePlaces / kAcross;  // of a thread
inline constexpr uint32_t kWords = kRunElements / 4;
inline constexpr uint32_t kPitch = kWords + 1;  // neighbouring rows begin in neighbouring banks

// One run of a tile. What the formats don't use of scales and sums they don't touch.
struct Tile {
  uint32_t* w;         // [kTileRows][kPitch]
  uint32_t* x;         // [kTilePlaces][kPitch]
  float* w_d;          // [kTileRows][8]: by block; superblocks: d, dmin
  uint32_t* w_scales;  // [kTileRows][16]: superblocks: Pieces' halves, by 16 elements
  float* x_d;          // [kTilePlaces][8]: by block; superblocks: d
  int32_t* x_sums;     // [kTilePlaces][16]: by block, or by 16 elements
};

struct Integers {
  int32_t at[kRows][kPlaces];
};
struct Floats {
  float at[kRows][kPlaces];
};

// `last` − 1 stands for rows and places beyond the tile's end: nobody takes their results.
OFFSTAGE_DEVICE uint32_t at_most(uint32_t i, uint32_t end) { return i < end ? i : end - 1; }

template <typename Dot>
OFFSTAGE_DEVICE void fetch_weights(const MatvecArgs& args, const std::byte* matrix, uint32_t run,
                                   const Tile& tile) {
  const size_t row_bytes = args.k / Dot::kBlockElements * size_t{Dot::kBlockBytes};
  for (uint32_t unit = threadIdx.x; unit < kTileRows * kRunLanes; unit += kThreads) {
    const uint32_t r = unit / kRunLanes, lane = unit % kRunLanes;
    const std::byte* row = matrix + row_bytes * at_most(blockIdx.x * kTileRows + r, args.n);
    uint32_t* words = tile.w + r * kPitch;
    Dot weights = {};
    if constexpr (Dot::kBlockElements == 32) {
      const uint32_t block = run * kRunBlocks + lane;
      if (block < args.k / 32) weights.load(row + size_t{block} * Dot::kBlockBytes);
      weights.unpack(words + 8 * lane);
      tile.w_d[r * kRunBlocks + lane] = weights.d;  // +0 beyond the end: so is f
    } else {
      weights.load(row + size_t{run} * Dot::kBlockBytes, lane);
      const Pieces pieces = weights.pieces(lane);
      OFFSTAGE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        words[pieces.low_at / 4 + i] = weights.low[i];
        words[pieces.high_at / 4 + i] = weights.high[i];
      }
      tile.w_scales[r * 16 + pieces.low_at / 16] = pieces.low_scale;
      tile.w_scales[r * 16 + pieces.high_at / 16] = pieces.high_scale;
      if (lane == 0) {
        tile.w_d[r * kRunBlocks] = weights.d;
        tile.w_d[r * kRunBlocks + 1] = weights.dmin;
      }
    }
  }
}

template <typename Run>
OFFSTAGE_DEVICE void fetch_activations(const MatvecArgs& args, const ExpertJob& job, uint32_t run,
                                       const Tile& tile) {
  const size_t n_runs = (args.k + kRunElements - 1) / kRunElements;
  for (uint32_t unit = threadIdx.x; unit < kTilePlaces * kAcross; unit += kThreads) {
    const uint32_t p = unit / kAcross, part = unit % kAcross;
    const uint32_t place = job.first + at_most(blockIdx.z * kTilePlaces + p, job.n);
    const Run& x =
        reinterpret_cast<const Run*>(args.activations)[row_in(args, place) * n_runs + run];
    const Words4 words = load_16(x.q + 16 * part);
    OFFSTAGE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) tile.x[p * kPitch + 4 * part + i] = words.at[i];
    if constexpr (sizeof x.d == sizeof(float)) {
      tile.x_sums[p * 16 + part] = x.sum16[part];
      if (part == 0) tile.x_d[p * kRunBlocks] = x.d;
    } else if (part < kRunBlocks) {
      tile.x_sums[p * 16 + part] = x.sum[part];
      tile.x_d[p * kRunBlocks + part] = x.d[part];
    }
  }
}

OFFSTAGE_DEVICE uint32_t row_of(int r) { return threadIdx.x % kAcross + r * kAcross; }
OFFSTAGE_DEVICE uint32_t place_of(int p) { return threadIdx.x / kAcross + p * kAcross; }

// Products of words [begin, begin + kCount) of the thread's rows and places.
template <uint32_t kCount>
OFFSTAGE_DEVICE Integers products(const Tile& tile, uint32_t begin) {
  Integers sums = {};
  OFFSTAGE_UNROLL
  for (uint32_t word = begin; word < begin + kCount; ++word) {
    uint32_t w[kRows], x[kPlaces];
    OFFSTAGE_UNROLL
    for (int r = 0; r < kRows; ++r) w[r] = tile.w[row_of(r) * kPitch + word];
    OFFSTAGE_UNROLL
    for (int p = 0; p < kPlaces; ++p) x[p] = tile.x[place_of(p) * kPitch + word];
    OFFSTAGE_UNROLL
    for (int r = 0; r < kRows; ++r) OFFSTAGE_UNROLL
    for (int p = 0; p < kPlaces; ++p) sums.at[r][p] = dot4(w[r], x[p], sums.at[r][p]);
  }
  return sums;
}

// f of block b.
template <typename Dot>
OFFSTAGE_DEVICE Floats block_values(const Tile& tile, uint32_t b) {
  const Integers sums = products<8>(tile, 8 * b);
  Floats f;
  OFFSTAGE_UNROLL
  for (int r = 0; r < kRows; ++r) OFFSTAGE_UNROLL
  for (int p = 0; p < kPlaces; ++p) {
    const int32_t s = sums.at[r][p] - Dot::kOffset * tile.x_sums[place_of(p) * 16 + b];
    f.at[r][p] = static_cast<float>(s) *
                 (tile.w_d[row_of(r) * kRunBlocks + b] * tile.x_d[place_of(p) * kRunBlocks + b]);
  }
  return f;
}

OFFSTAGE_DEVICE Floats sum_of(const Floats& a, const Floats& b) {
  Floats sum;
  OFFSTAGE_UNROLL
  for (int r = 0; r < kRows; ++r) OFFSTAGE_UNROLL
  for (int p = 0; p < kPlaces; ++p) sum.at[r][p] = a.at[r][p] + b.at[r][p];
  return sum;
}

template <typename Dot>
OFFSTAGE_DEVICE void add_run_32(const Tile& tile, Floats* acc) {
  const auto f = [&](uint32_t b) { return block_values<Dot>(tile, b); };
  const Floats even = sum_of(sum_of(f(0), f(4)), sum_of(f(2), f(6)));
  const Floats odd = sum_of(sum_of(f(1), f(5)), sum_of(f(3), f(7)));
  *acc = sum_of(*acc, sum_of(even, odd));
}

template <typename Dot>
OFFSTAGE_DEVICE void add_run_256(const Tile& tile, Floats* acc) {
  Integers isum = {}, msum = {};
  for (uint32_t j = 0; j < 16; ++j) {
    const Integers sums = products<4>(tile, 4 * j);
    OFFSTAGE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const uint32_t packed = tile.w_scales[row_of(r) * 16 + j];
      const int32_t scale = static_cast<int16_t>(packed & 0xffffu);
      const auto min = static_cast<int32_t>(packed >> 16);
      OFFSTAGE_UNROLL
      for (int p = 0; p < kPlaces; ++p) {
        const int32_t sum16 = tile.x_sums[place_of(p) * 16 + j];
        isum.at[r][p] += scale * (sums.at[r][p] - Dot::kOffset * sum16);
        if (Dot::kMinima) msum.at[r][p] += min * sum16;
      }
    }
  }
  OFFSTAGE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const float d = tile.w_d[row_of(r) * kRunBlocks], dmin = tile.w_d[row_of(r) * kRunBlocks + 1];
    OFFSTAGE_UNROLL
    for (int p = 0; p < kPlaces; ++p) {
      float t = d * static_cast<float>(isum.at[r][p]);
      if (Dot::kMinima) t = fused(-dmin, static_cast<float>(msum.at[r][p]), t);
      acc->at[r][p] = fused(tile.x_d[place_of(p) * kRunBlocks], t, acc->at[r][p]);
    }
  }
}

OFFSTAGE_DEVICE void store(const MatvecArgs& args, const ExpertJob& job, const Floats& acc) {
  for (int r = 0; r < kRows; ++r) {
    const uint32_t i = blockIdx.x * kTileRows + row_of(r);
    for (int p = 0; p < kPlaces; ++p) {
      const uint32_t place = blockIdx.z * kTilePlaces + place_of(p);
      if (i >= args.n || place >= job.n) continue;
      float y = acc.at[r][p];
      if (args.bias != nullptr) y = y + args.bias[size_t{job.expert} * args.n + i];
      row_out(args, job.first + place)[i] = y;
    }
  }
}

// Grid: tiles of rows, jobs or heads, tiles of places.
template <typename Dot>
__global__ void matmul_tiles(MatvecArgs args) {
  OFFSTAGE_SHARED(uint32_t, w, kTileRows * kPitch);
  OFFSTAGE_SHARED(uint32_t, x, kTilePlaces * kPitch);
  OFFSTAGE_SHARED(float, w_d, kTileRows* kRunBlocks);
  OFFSTAGE_SHARED(uint32_t, w_scales, kTileRows * 16);
  OFFSTAGE_SHARED(float, x_d, kTilePlaces* kRunBlocks);
  OFFSTAGE_SHARED(int32_t, x_sums, kTilePlaces * 16);
  const ExpertJob job = job_of(args);
  const std::byte* slot = args.slots != nullptr ? args.slots[job.expert] : args.matrix;
  if (slot == nullptr || blockIdx.z * kTilePlaces >= job.n) return;  // the whole block of threads
  const Tile tile = {w, x, w_d, w_scales, x_d, x_sums};
  const size_t matrix_bytes = args.k / Dot::kBlockElements * size_t{Dot::kBlockBytes} * args.n;
  const std::byte* matrix = slot + args.offset + matrix_bytes * head_of(args);
  const uint32_t n_runs = (args.k + kRunElements - 1) / kRunElements;
  Floats acc = {};
  for (uint32_t run = 0; run < n_runs; ++run) {
    fetch_weights<Dot>(args, matrix, run, tile);
    fetch_activations<typename Dot::Run>(args, job, run, tile);
    __syncthreads();
    if constexpr (Dot::kBlockElements == 32)
      add_run_32<Dot>(tile, &acc);
    else
      add_run_256<Dot>(tile, &acc);
    __syncthreads();
  }
  store(args, job, acc);
}

template <typename Dot>
CallStatus launch(StreamHandle stream, const MatvecArgs& args) {
  const dim3 grid((args.n + kTileRows - 1) / kTileRows, jobs_or_heads(args),
                  (args.n_places + kTilePlaces - 1) / kTilePlaces);
  return OFFSTAGE_LAUNCH("matmul", matmul_tiles<Dot>, grid, kThreads, stream, args);
}

}  // namespace

CallStatus matmul(StreamHandle stream, const MatvecArgs& args) {
  switch (args.type) {
    case TensorType::kQ8_0: return launch<DotQ8_0>(stream, args);
    case TensorType::kQ4_0: return launch<DotQ4_0>(stream, args);
    case TensorType::kQ5_0: return launch<DotQ5_0>(stream, args);
    case TensorType::kMXFP4: return launch<DotMxfp4>(stream, args);
    case TensorType::kQ4_K: return launch<DotQ4_K>(stream, args);
    case TensorType::kQ5_K: return launch<DotQ5_K>(stream, args);
    case TensorType::kQ6_K: return launch<DotQ6_K>(stream, args);
    default: return {"matmul", "unsupported format", "has_matvec() says which there are"};
  }
}

}  // namespace offstage::gpu
