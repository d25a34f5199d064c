// Matrices of 32-element blocks: four rows at a time for a few tokens (decode), eight rows in lanes
// for many (prefill). The integers are exact and the floats follow README, so both give the same
// bits.
#include <cstddef>

#include "cpu/activations.h"
#include "cpu/avx2.h"
#include "cpu/formats_32_avx2.h"
#include "cpu/lanes_avx2.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

constexpr uint32_t kTileTokens = 4;
constexpr size_t kPrefetchBytes = 16384;  // see matmul_k_avx512.cc
constexpr size_t kRunBytesMax = 272;      // Q8_0: 8 · 34

struct Problem {
  const std::byte* weights;
  uint64_t w_bytes, x_bytes;
  const std::byte* activations;
  const uint32_t* token_rows;
  uint32_t n_runs;
  uint32_t tail_blocks;  // of the last run; 0: it is whole
  float* out;
  uint32_t out_stride;

  size_t bytes_ahead() const {
    const size_t group = 4 * w_bytes;
    return (kPrefetchBytes + group - 1) / group * group;
  }
  const ActivationRun32* x(uint32_t token) const {
    const uint32_t row = token_rows != nullptr ? token_rows[token] : token;
    return reinterpret_cast<const ActivationRun32*>(activations + x_bytes * row);
  }
};

// Piece `index` of a stream that is read soon, into L2.
OFFSTAGE_INLINE void fetch(const std::byte* stream, size_t piece_bytes, size_t index) {
  const std::byte* piece = stream + piece_bytes * index;
  for (size_t at = 0; at < piece_bytes; at += 64)
    _mm_prefetch(reinterpret_cast<const char*>(piece + at), _MM_HINT_T1);
}

// Run `run` of up to 8 rows. Kernels read whole runs, so short last ones are copied and filled with
// zero bytes: a scale of +0 against an activation scale of +0 gives f = +0.
template <typename Format>
struct Runs {
  alignas(32) std::byte padded[8][kRunBytesMax + 16];

  void locate(const Problem& p, const std::byte* const* row, int n_rows, uint32_t run,
              const std::byte** at) {
    constexpr size_t kBlockBytes = sizeof(typename Format::Block);
    const bool is_short = p.tail_blocks != 0 && run + 1 == p.n_runs;
    for (int r = 0; r < n_rows; ++r) {
      at[r] = row[r] + size_t{run} * 8 * kBlockBytes;
      if (!is_short) continue;
      __builtin_memset(padded[r], 0, sizeof padded[r]);
      __builtin_memcpy(padded[r], at[r], p.tail_blocks * kBlockBytes);
      at[r] = padded[r];
    }
  }
};

OFFSTAGE_INLINE __m256i load_aligned(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

// Partial sums of two blocks, four dwords each.
template <typename Format>
OFFSTAGE_INLINE __m256i dot_pair(__m256i h0, __m256i h1, const int8_t* a) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i low = products<Format>(h0, load_aligned(a));
  const __m256i high = products<Format>(h1, load_aligned(a + 64));
  if constexpr (Format::kFit >= 2) return _mm256_madd_epi16(_mm256_add_epi16(low, high), ones);
  return _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
}

// f of one row's eight blocks, in kRunBlockOrder.
template <typename Format, int kTokens>
OFFSTAGE_INLINE void row_blocks(const std::byte* at, const ActivationRun32* const* x, __m256* f) {
  __m256i z[2][2][kTokens];  // group, pair within the group
  for (int g = 0; g < 2; ++g) {
    for (int c = 0; c < 2; ++c) {
      __m256i h0, h1;
      Format::pair(at, 4 * g + 2 * c, &h0, &h1);
      for (int t = 0; t < kTokens; ++t)
        z[g][c][t] = dot_pair<Format>(h0, h1, x[t]->q + 128 * g + 32 * c);
    }
  }
  const __m256 d = Format::scales(at);
  __m256 m = d;
  if constexpr (Format::kMinima) m = Format::minima(at);
  for (int t = 0; t < kTokens; ++t) {
    __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(z[0][0][t], z[1][0][t]),
                                     _mm256_hadd_epi32(z[0][1][t], z[1][1][t]));
    if constexpr (Format::kOffset != 0)
      sums = _mm256_sub_epi32(
          sums, _mm256_mullo_epi32(load_aligned(x[t]->sum), _mm256_set1_epi32(Format::kOffset)));
    const __m256 d_a = _mm256_load_ps(x[t]->d);
    f[t] = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(d, d_a));
    if constexpr (Format::kMinima)
      f[t] =
          _mm256_fmadd_ps(m, _mm256_mul_ps(_mm256_cvtepi32_ps(load_aligned(x[t]->sum)), d_a), f[t]);
  }
}

template <typename Format, int kTokens>
OFFSTAGE_INLINE void dot4_run(const std::byte* const* at, const ActivationRun32* const* x,
                              __m128* acc) {
  __m256 f[4][kTokens];
  for (int r = 0; r < 4; ++r) row_blocks<Format, kTokens>(at[r], x, f[r]);
  for (int t = 0; t < kTokens; ++t) {  // neighbours, neighbours, then the two halves: README's tree
    const __m256 by2 =
        _mm256_hadd_ps(_mm256_hadd_ps(f[0][t], f[1][t]), _mm256_hadd_ps(f[2][t], f[3][t]));
    const __m128 run = _mm_add_ps(_mm256_castps256_ps128(by2), _mm256_extractf128_ps(by2, 1));
    acc[t] = _mm_add_ps(acc[t], run);
  }
}

template <typename Format, int kTokens>
void dot_rows(const Problem& p, const std::byte* const* row, uint32_t n, uint32_t n_rows,
              uint32_t first) {
  constexpr size_t kRunBytes = 8 * sizeof(typename Format::Block);
  const ActivationRun32* x[kTokens];
  __m128 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + static_cast<uint32_t>(t));
    acc[t] = _mm_setzero_ps();
  }
  const size_t bytes_ahead = p.bytes_ahead();
  const uint32_t n_whole = p.n_runs - (p.tail_blocks != 0 ? 1 : 0);
  for (uint32_t run = 0; run < n_whole; ++run) {
    const std::byte* at[4];
    for (int r = 0; r < 4; ++r) at[r] = row[r] + kRunBytes * run;
    fetch(row[0] + bytes_ahead, 4 * kRunBytes, run);
    dot4_run<Format, kTokens>(at, x, acc);
    for (int t = 0; t < kTokens; ++t) ++x[t];
  }
  if (p.tail_blocks != 0) {
    Runs<Format> runs;
    const std::byte* at[4];
    runs.locate(p, row, 4, n_whole, at);
    dot4_run<Format, kTokens>(at, x, acc);
  }
  const __m128i lanes = _mm256_castsi256_si128(first_lanes(n_rows));
  for (int t = 0; t < kTokens; ++t)
    _mm_maskstore_ps(p.out + size_t{first + static_cast<uint32_t>(t)} * p.out_stride + n, lanes,
                     acc[t]);
}

// Eight rows of one run with rows in lanes.
struct Tile {
  __m256i w[64];  // w[16·(2g + h) + 4b + i]: bytes 4i … 4i + 3 of half h of block 4g + b
  __m256 d[8];    // per block, in kRunBlockOrder
  __m256 m[8];    // the same, of formats with minima
};

template <typename Format>
void fill_tile(const std::byte* const* at, Tile* tile) {
  __m256i d[8], m[8];
  for (int r = 0; r < 8; ++r) {
    for (int g = 0; g < 2; ++g) {
      for (int c = 0; c < 2; ++c)
        Format::pair(at[r], 4 * g + 2 * c, &tile->w[32 * g + 8 * c + r],
                     &tile->w[32 * g + 16 + 8 * c + r]);
    }
    d[r] = _mm256_castps_si256(Format::scales(at[r]));
    if constexpr (Format::kMinima) m[r] = _mm256_castps_si256(Format::minima(at[r]));
  }
  for (int i = 0; i < 8; ++i) transpose8(tile->w + 8 * i);
  transpose8(d);
  for (int i = 0; i < 8; ++i) tile->d[i] = _mm256_castsi256_ps(d[i]);
  if constexpr (!Format::kMinima) return;
  transpose8(m);
  for (int i = 0; i < 8; ++i) tile->m[i] = _mm256_castsi256_ps(m[i]);
}

// What the tokens' block sums are worth: Σa · kOffset, or F(Σa) · d_a for the minima.
template <int kTokens>
struct BlockSums {
  alignas(32) int32_t offset[kTokens][8];
  alignas(32) float scaled[kTokens][8];
};

// f of one block for kTokens tokens.
template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_block(const Tile& tile, const ActivationRun32* const* x,
                                const BlockSums<kTokens>& sums, int position, __m256* f) {
  const int block = kRunBlockOrder[position];
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[kTokens], narrow[kTokens];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int k4 = 16 * (2 * (block / 4) + i / 4) + 4 * (block % 4) + i % 4;
    for (int t = 0; t < kTokens; ++t) {
      const __m256i product = products<Format>(tile.w[k4], broadcast4(x[t]->q + 4 * k4));
      narrow[t] = i % Format::kFit == 0 ? product : _mm256_add_epi16(narrow[t], product);
      if ((i + 1) % Format::kFit != 0) continue;
      const __m256i wide = _mm256_madd_epi16(narrow[t], ones);
      sum[t] = i + 1 == Format::kFit ? wide : _mm256_add_epi32(sum[t], wide);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    if constexpr (Format::kOffset != 0)
      sum[t] = _mm256_sub_epi32(sum[t], broadcast4(&sums.offset[t][position]));
    f[t] = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[t]),
                         _mm256_mul_ps(tile.d[position], _mm256_set1_ps(x[t]->d[position])));
    if constexpr (Format::kMinima)
      f[t] = _mm256_fmadd_ps(tile.m[position], _mm256_set1_ps(sums.scaled[t][position]), f[t]);
  }
}

template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_pair(const Tile& tile, const ActivationRun32* const* x,
                               const BlockSums<kTokens>& sums, int position, __m256* f) {
  __m256 second[kTokens];
  tile_block<Format, kTokens>(tile, x, sums, position, f);
  tile_block<Format, kTokens>(tile, x, sums, position + 1, second);
  for (int t = 0; t < kTokens; ++t) f[t] = _mm256_add_ps(f[t], second[t]);
}

template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_tokens(const Tile& tile, const ActivationRun32* const* x, __m256* acc) {
  BlockSums<kTokens> sums;
  for (int t = 0; t < kTokens; ++t) {
    const __m256i sum_a = load_aligned(x[t]->sum);
    if constexpr (Format::kOffset != 0)
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums.offset[t]),
                         _mm256_mullo_epi32(sum_a, _mm256_set1_epi32(Format::kOffset)));
    if constexpr (Format::kMinima)
      _mm256_store_ps(sums.scaled[t],
                      _mm256_mul_ps(_mm256_cvtepi32_ps(sum_a), _mm256_load_ps(x[t]->d)));
  }
  __m256 low[kTokens], high[kTokens];
  for (int half = 0; half < 2; ++half) {
    __m256 second[kTokens];
    tile_pair<Format, kTokens>(tile, x, sums, 4 * half, high);
    tile_pair<Format, kTokens>(tile, x, sums, 4 * half + 2, second);
    for (int t = 0; t < kTokens; ++t) {
      high[t] = _mm256_add_ps(high[t], second[t]);
      if (half == 0) low[t] = high[t];
    }
  }
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_add_ps(acc[t], _mm256_add_ps(low[t], high[t]));
}

// The accumulators of a run's tokens wait in `out` between runs.
template <typename Format, int kTokens>
void tile_step(const Problem& p, const Tile& tile, uint32_t run, uint32_t n, __m256i lanes,
               uint32_t first, uint32_t n_tokens) {
  const ActivationRun32* x[kTokens];
  float* out[kTokens];
  __m256 acc[kTokens];
  for (uint32_t t = 0; t < kTokens; ++t) {
    const uint32_t token = first + (t < n_tokens ? t : 0);
    x[t] = p.x(token) + run;
    out[t] = p.out + size_t{token} * p.out_stride + n;
    acc[t] = run == 0 ? _mm256_setzero_ps() : _mm256_maskload_ps(out[t], lanes);
  }
  tile_tokens<Format, kTokens>(tile, x, acc);
  for (uint32_t t = 0; t < kTokens; ++t)
    if (t < n_tokens) _mm256_maskstore_ps(out[t], lanes, acc[t]);
}

template <typename Format>
void tile_rows(const Problem& p, const std::byte* const* row, uint32_t n, uint32_t n_rows,
               uint32_t n_tokens) {
  const __m256i lanes = first_lanes(n_rows);
  Runs<Format> runs;
  for (uint32_t run = 0; run < p.n_runs; ++run) {
    fetch(row[0] + 8 * p.w_bytes, 8 * 8 * sizeof(typename Format::Block), run);
    const std::byte* at[8];
    runs.locate(p, row, 8, run, at);
    Tile tile;
    fill_tile<Format>(at, &tile);
    for (uint32_t t = 0; t < n_tokens; t += 4) {
      const uint32_t left = n_tokens - t;
      tile_step<Format, 4>(p, tile, run, n, lanes, t, left < 4 ? left : 4);
    }
  }
}

template <typename Format>
void matmul_format(const Problem& p, uint32_t row_begin, uint32_t row_end, uint32_t n_tokens) {
  const uint32_t step = n_tokens >= kTileTokens ? 8 : 4;
  for (uint32_t n = row_begin; n < row_end; n += step) {
    const uint32_t n_rows = row_end - n < step ? row_end - n : step;
    const std::byte* row[8];  // missing rows repeat the first; their lanes are not stored
    for (uint32_t r = 0; r < step; ++r) row[r] = p.weights + p.w_bytes * (n + (r < n_rows ? r : 0));
    if (step == 8) {
      tile_rows<Format>(p, row, n, n_rows, n_tokens);
      continue;
    }
    uint32_t t = 0;
    for (; t + 2 <= n_tokens; t += 2) dot_rows<Format, 2>(p, row, n, n_rows, t);
    for (; t < n_tokens; ++t) dot_rows<Format, 1>(p, row, n, n_rows, t);
  }
}

}  // namespace

void matmul_32_avx2(const MatmulArgs& args) {
  const Problem p = {
      .weights = args.weights,
      .w_bytes = weights_row_bytes(args.type, args.k),
      .x_bytes = activation_row_bytes(ActivationFormat::kQ8_32, args.k),
      .activations = args.activations,
      .token_rows = args.token_rows,
      .n_runs = (args.k + kRunElements - 1) / kRunElements,
      .tail_blocks = args.k % kRunElements / 32,
      .out = args.out,
      .out_stride = args.out_stride,
  };
  switch (args.type) {
    case TensorType::kQ8_0:
      return matmul_format<FormatQ8_0>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ4_0:
      return matmul_format<FormatQ4_0>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ4_1:
      return matmul_format<FormatQ4_1>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ5_1:
      return matmul_format<FormatQ5_1>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ4_NL:
      return matmul_format<FormatIQ4_NL>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ5_0:
      return matmul_format<FormatQ5_0>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kMXFP4:
      return matmul_format<FormatMXFP4>(p, args.row_begin, args.row_end, args.n_tokens);
    default: return;
  }
}

}  // namespace offstage
