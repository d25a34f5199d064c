// Matrices of 32-element blocks: four rows at a time for a few tokens (decode), sixteen rows in
// lanes for many (prefill). The integers are exact and the floats follow README, so both give the
// same bits.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/activations.h"
#include "cpu/avx512.h"
#include "cpu/formats_32_avx512.h"
#include "cpu/lanes_avx512.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

constexpr uint32_t kTileTokens = 6;      // see matmul_k_avx512.cc
constexpr size_t kPrefetchBytes = 8192;  // likewise

// The largest run is Q8_0's: 8 · 34 bytes.
constexpr size_t kRunBytesMax = 272;

struct Problem {
  const std::byte* weights;
  uint64_t w_bytes, x_bytes;
  const std::byte* activations;
  const uint32_t* token_rows;
  uint32_t n_runs;
  uint32_t tail_blocks;  // of the last run; 0: it is whole
  const std::byte* end;  // of the rows that are asked for
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

// Run `run` of up to 16 rows. Kernels read whole runs, so short last ones are copied and filled
// with zero bytes: a scale of +0 against an activation scale of +0 gives f = +0.
template <typename Format>
struct Runs {
  alignas(64) std::byte padded[16][kRunBytesMax + 48];

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

// Eight values in kRunBlockOrder → dword 4b + 2r + g for both r.
OFFSTAGE_INLINE __m512i spread8(const void* p) {
  const __m512i eight = _mm512_castsi256_si512(_mm256_load_si256(static_cast<const __m256i*>(p)));
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 2, 2, 1, 1, 3, 3), eight);
}

// Partial sums of one row pair (z[r][g], lane b) → dword 4b + 2r + g: the sum of block 4g + b. Each
// of them is eight products, which 16 bits hold if the format's quants are small.
template <typename Format>
OFFSTAGE_INLINE __m512i sum_pair(__m512i z00, __m512i z01, __m512i z10, __m512i z11) {
  if constexpr (8 * Format::kQuantMax * 128 <= INT16_MAX) {
    const __m512i one = _mm512_set1_epi16(1);
    const __m512 row0 = _mm512_castsi512_ps(_mm512_madd_epi16(_mm512_packs_epi32(z00, z01), one));
    const __m512 row1 = _mm512_castsi512_ps(_mm512_madd_epi16(_mm512_packs_epi32(z10, z11), one));
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(row0, row1, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(row0, row1, 0xdd)));
  }
  const __m512i row0 =
      _mm512_add_epi32(_mm512_unpacklo_epi32(z00, z01), _mm512_unpackhi_epi32(z00, z01));
  const __m512i row1 =
      _mm512_add_epi32(_mm512_unpacklo_epi32(z10, z11), _mm512_unpackhi_epi32(z10, z11));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(row0, row1), _mm512_unpackhi_epi64(row0, row1));
}

// The tree of README over two row pairs; lane r of the result is row r.
OFFSTAGE_INLINE __m128 tree4(__m512 f01, __m512 f23) {
  const __m512 by4 =
      _mm512_add_ps(_mm512_shuffle_ps(f01, f23, 0x88), _mm512_shuffle_ps(f01, f23, 0xdd));
  const __m256 by2 = _mm256_add_ps(_mm512_castps512_ps256(by4), _mm512_extractf32x8_ps(by4, 1));
  return _mm_add_ps(_mm256_castps256_ps128(by2), _mm256_extractf128_ps(by2, 1));
}

// Scales outside of `blocks` (lanes as scale_lane() has them) count as +0.
template <typename Format, int kTokens>
OFFSTAGE_INLINE void dot4_run(const std::byte* const* at, const ActivationRun32* const* x,
                              __mmask16 blocks, __m128* acc) {
  __m512 f[2][kTokens];
  for (int pair = 0; pair < 2; ++pair) {
    __m512i z[2][2][kTokens];
    for (int r = 0; r < 2; ++r) {
      __m512i q[4];
      Format::quants(at[2 * pair + r], q);
      for (int t = 0; t < kTokens; ++t) {
        for (int g = 0; g < 2; ++g) {
          const int8_t* a = x[t]->q + 128 * g;
          z[r][g][t] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[2 * g], _mm512_load_si512(a));
          z[r][g][t] = _mm512_dpbusd_epi32(z[r][g][t], q[2 * g + 1], _mm512_load_si512(a + 64));
        }
      }
    }
    const __m512 d = _mm512_maskz_mov_ps(blocks, Format::scales2(at[2 * pair], at[2 * pair + 1]));
    __m512 m = d;
    if constexpr (Format::kMinima)
      m = _mm512_maskz_mov_ps(blocks, Format::minima2(at[2 * pair], at[2 * pair + 1]));
    for (int t = 0; t < kTokens; ++t) {
      const __m512i sum_a = spread8(x[t]->sum);
      const __m512 d_a = _mm512_castsi512_ps(spread8(x[t]->d));
      __m512i sums = sum_pair<Format>(z[0][0][t], z[0][1][t], z[1][0][t], z[1][1][t]);
      if constexpr (Format::kOffset != 0)
        sums =
            _mm512_sub_epi32(sums, _mm512_mullo_epi32(sum_a, _mm512_set1_epi32(Format::kOffset)));
      f[pair][t] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(d, d_a));
      if constexpr (Format::kMinima)
        f[pair][t] = _mm512_fmadd_ps(m, _mm512_mul_ps(_mm512_cvtepi32_ps(sum_a), d_a), f[pair][t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm_add_ps(acc[t], tree4(f[0][t], f[1][t]));
}

// A short last run. What lies behind it is the next row's, whose quants meet activations that are
// 0; where there is no next row, a copy stands in.
template <typename Format, int kTokens>
OFFSTAGE_INLINE void dot4_tail(const Problem& p, const std::byte* const* row, uint32_t n_rows,
                               const ActivationRun32* const* x, __m128* acc) {
  constexpr size_t kRunBytes = 8 * sizeof(typename Format::Block);
  const uint32_t n_whole = p.n_runs - 1;
  const std::byte* at[4];
  for (int r = 0; r < 4; ++r) at[r] = row[r] + kRunBytes * n_whole;
  if (p.end - at[n_rows - 1] >= static_cast<ptrdiff_t>(kRunBytes)) {
    uint32_t blocks = 0;
    for (int block = 0; block < static_cast<int>(p.tail_blocks); ++block)
      blocks |= 1u << scale_lane(block, 0) | 1u << scale_lane(block, 1);
    return dot4_run<Format, kTokens>(at, x, static_cast<__mmask16>(blocks), acc);
  }
  Runs<Format> runs;
  runs.locate(p, row, 4, n_whole, at);
  dot4_run<Format, kTokens>(at, x, 0xffff, acc);
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
    dot4_run<Format, kTokens>(at, x, 0xffff, acc);
    for (int t = 0; t < kTokens; ++t) ++x[t];
  }
  if (p.tail_blocks != 0) dot4_tail<Format, kTokens>(p, row, n_rows, x, acc);
  const auto lanes = static_cast<__mmask8>((1u << n_rows) - 1);
  for (int t = 0; t < kTokens; ++t)
    _mm_mask_storeu_ps(p.out + size_t{first + static_cast<uint32_t>(t)} * p.out_stride + n, lanes,
                       acc[t]);
}

// Sixteen rows of one run with rows in lanes.
struct Tile {
  __m512i w[64];  // w[16·(2g + h) + 4b + i]: bytes 4i … 4i + 3 of half h of block 4g + b
  __m512 d[8];    // per block, in kRunBlockOrder
  __m512 m[8];    // the same, of formats with minima
};

template <typename Format>
void fill_tile(const std::byte* const* at, Tile* tile) {
  for (int r = 0; r < 16; ++r) {
    __m512i q[4];
    Format::quants(at[r], q);
    for (int i = 0; i < 4; ++i) tile->w[16 * i + r] = q[i];
  }
  for (int i = 0; i < 4; ++i) transpose16(tile->w + 16 * i);
  // Pair rows r and r + 8: then a pair's two scales of one block are 8 lanes apart.
  __m512i pairs[16];
  for (int r = 0; r < 8; ++r) {
    pairs[r] = _mm512_castps_si512(Format::scales2(at[r], at[r + 8]));
    pairs[8 + r] = _mm512_setzero_si512();
    if constexpr (Format::kMinima)
      pairs[8 + r] = _mm512_castps_si512(Format::minima2(at[r], at[r + 8]));
  }
  transpose16(pairs);
  for (int position = 0; position < 8; ++position) {
    const int block = kRunBlockOrder[position];
    const int source = 4 * (block % 4) + block / 4;
    tile->d[position] = _mm512_castsi512_ps(
        _mm512_inserti64x4(pairs[source], _mm512_castsi512_si256(pairs[source + 2]), 1));
    tile->m[position] =
        _mm512_castsi512_ps(_mm512_shuffle_i64x2(pairs[source], pairs[source + 2], 0xee));
  }
}

OFFSTAGE_INLINE __m512i broadcast4(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return _mm512_set1_epi32(value);
}

// What the tokens' block sums are worth: −Σa · kOffset, or F(Σa) · d_a for the minima.
template <int kTokens>
struct BlockSums {
  alignas(32) int32_t offset[kTokens][8];
  alignas(32) float scaled[kTokens][8];
};

// f of one block for kTokens tokens.
template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_block(const Tile& tile, const ActivationRun32* const* x,
                                const BlockSums<kTokens>& sums, int position, __m512* f) {
  const int block = kRunBlockOrder[position];
  __m512i sum[kTokens];
  for (int t = 0; t < kTokens; ++t)
    sum[t] = Format::kOffset != 0 ? broadcast4(&sums.offset[t][position]) : _mm512_setzero_si512();
  for (int h = 0; h < 2; ++h) {
    for (int i = 0; i < 4; ++i) {
      const int k4 = 16 * (2 * (block / 4) + h) + 4 * (block % 4) + i;
      for (int t = 0; t < kTokens; ++t)
        sum[t] = _mm512_dpbusd_epi32(sum[t], tile.w[k4], broadcast4(x[t]->q + 4 * k4));
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    f[t] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]),
                         _mm512_mul_ps(tile.d[position], _mm512_set1_ps(x[t]->d[position])));
    if constexpr (Format::kMinima)
      f[t] = _mm512_fmadd_ps(tile.m[position], _mm512_set1_ps(sums.scaled[t][position]), f[t]);
  }
}

template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_pair(const Tile& tile, const ActivationRun32* const* x,
                               const BlockSums<kTokens>& sums, int position, __m512* f) {
  __m512 second[kTokens];
  tile_block<Format, kTokens>(tile, x, sums, position, f);
  tile_block<Format, kTokens>(tile, x, sums, position + 1, second);
  for (int t = 0; t < kTokens; ++t) f[t] = _mm512_add_ps(f[t], second[t]);
}

template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_tokens(const Tile& tile, const ActivationRun32* const* x, __m512* acc) {
  BlockSums<kTokens> sums;
  for (int t = 0; t < kTokens; ++t) {
    const __m256i sum_a = _mm256_load_si256(reinterpret_cast<const __m256i*>(x[t]->sum));
    if constexpr (Format::kOffset != 0)
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums.offset[t]),
                         _mm256_mullo_epi32(sum_a, _mm256_set1_epi32(-Format::kOffset)));
    if constexpr (Format::kMinima)
      _mm256_store_ps(sums.scaled[t],
                      _mm256_mul_ps(_mm256_cvtepi32_ps(sum_a), _mm256_load_ps(x[t]->d)));
  }
  __m512 low[kTokens], high[kTokens];
  for (int half = 0; half < 2; ++half) {
    __m512 second[kTokens];
    tile_pair<Format, kTokens>(tile, x, sums, 4 * half, high);
    tile_pair<Format, kTokens>(tile, x, sums, 4 * half + 2, second);
    for (int t = 0; t < kTokens; ++t) {
      high[t] = _mm512_add_ps(high[t], second[t]);
      if (half == 0) low[t] = high[t];
    }
  }
  for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_add_ps(acc[t], _mm512_add_ps(low[t], high[t]));
}

// The accumulators of a run's tokens wait in `out` between runs.
template <typename Format, int kTokens>
void tile_step(const Problem& p, const Tile& tile, uint32_t run, uint32_t n, __mmask16 lanes,
               uint32_t first, uint32_t n_tokens) {
  const ActivationRun32* x[kTokens];
  float* out[kTokens];
  __m512 acc[kTokens];
  for (uint32_t t = 0; t < kTokens; ++t) {
    const uint32_t token = first + (t < n_tokens ? t : 0);
    x[t] = p.x(token) + run;
    out[t] = p.out + size_t{token} * p.out_stride + n;
    acc[t] = run == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, out[t]);
  }
  tile_tokens<Format, kTokens>(tile, x, acc);
  for (uint32_t t = 0; t < kTokens; ++t)
    if (t < n_tokens) _mm512_mask_storeu_ps(out[t], lanes, acc[t]);
}

template <typename Format>
void tile_rows(const Problem& p, const std::byte* const* row, uint32_t n, uint32_t n_rows,
               uint32_t n_tokens) {
  const auto lanes = static_cast<__mmask16>((1u << n_rows) - 1);
  Runs<Format> runs;
  for (uint32_t run = 0; run < p.n_runs; ++run) {
    fetch(row[0] + 16 * p.w_bytes, 16 * 8 * sizeof(typename Format::Block), run);
    const std::byte* at[16];
    runs.locate(p, row, 16, run, at);
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
  const uint32_t step = n_tokens >= kTileTokens ? 16 : 4;
  for (uint32_t n = row_begin; n < row_end; n += step) {
    const uint32_t n_rows = row_end - n < step ? row_end - n : step;
    const std::byte* row[16];  // missing rows repeat the first; their lanes are not stored
    for (uint32_t r = 0; r < step; ++r) row[r] = p.weights + p.w_bytes * (n + (r < n_rows ? r : 0));
    if (step == 16) {
      tile_rows<Format>(p, row, n, n_rows, n_tokens);
      continue;
    }
    uint32_t t = 0;
    for (; t + 4 <= n_tokens; t += 4) dot_rows<Format, 4>(p, row, n, n_rows, t);
    for (; t + 2 <= n_tokens; t += 2) dot_rows<Format, 2>(p, row, n, n_rows, t);
    for (; t < n_tokens; ++t) dot_rows<Format, 1>(p, row, n, n_rows, t);
  }
}

}  // namespace

void matmul_32_avx512(const MatmulArgs& args) {
  const Problem p = {
      .weights = args.weights,
      .w_bytes = weights_row_bytes(args.type, args.k),
      .x_bytes = activation_row_bytes(ActivationFormat::kQ8_32, args.k),
      .activations = args.activations,
      .token_rows = args.token_rows,
      .n_runs = (args.k + kRunElements - 1) / kRunElements,
      .tail_blocks = args.k % kRunElements / 32,
      .end = args.weights + weights_row_bytes(args.type, args.k) * args.row_end,
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
