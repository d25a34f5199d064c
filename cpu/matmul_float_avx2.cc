// Unquantised matrices: eight rows in lanes, so that each lane walks README's chain of fused
// multiply-adds. Few tokens: blocks of 8 × 8 are transposed in registers and used at once. Many: a
// slice of 256 is transposed to the stack (8 KiB) and used by all tokens.
#include <immintrin.h>

#include <cstddef>

#include "cpu/activations.h"
#include "cpu/avx2.h"
#include "cpu/lanes_avx2.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

constexpr uint32_t kTileTokens = 5;

struct Problem {
  const std::byte* weights;
  uint64_t w_bytes, x_bytes;
  const std::byte* activations;
  const uint32_t* token_rows;
  uint32_t k;
  float* out;
  uint32_t out_stride;

  const float* x(uint32_t token) const {
    const uint32_t row = token_rows != nullptr ? token_rows[token] : token;
    return reinterpret_cast<const float*>(activations + x_bytes * row);
  }
};

template <TensorType kType>
OFFSTAGE_INLINE __m256i load8(const std::byte* row, uint32_t at, uint32_t n) {
  constexpr size_t kBytes = kType == TensorType::kF32 ? 4 : 2;
  const std::byte* from = row + at * kBytes;
  alignas(32) std::byte padded[32];
  if (n < 8) {  // the end of a row: nothing beyond it is read
    __builtin_memset(padded, 0, sizeof padded);
    __builtin_memcpy(padded, from, n * kBytes);
    from = padded;
  }
  if constexpr (kType == TensorType::kF32) return load32(from);
  if constexpr (kType == TensorType::kF16)
    return _mm256_castps_si256(_mm256_cvtph_ps(load16(from)));
  return _mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(from)), 16);
}

// Eight rows are eight streams: each is fetched so far ahead, into L2, and at its end goes on with
// the next eight rows.
constexpr size_t kPrefetchBytes = 1024;

template <TensorType kType>
OFFSTAGE_INLINE void fetch(const Problem& p, const std::byte* const* row, uint32_t at) {
  size_t offset = size_t{at} * (kType == TensorType::kF32 ? 4 : 2);
  if (offset % 64 != 0) return;
  offset += kPrefetchBytes;
  if (offset >= p.w_bytes) offset += 7 * p.w_bytes;
  for (int r = 0; r < 8; ++r)
    _mm_prefetch(reinterpret_cast<const char*>(row[r] + offset), _MM_HINT_T1);
}

// Columns at … at + n − 1 (n ≤ 8) of eight rows → w[i]: column at + i with rows in lanes.
template <TensorType kType>
OFFSTAGE_INLINE void load_block(const std::byte* const* row, uint32_t at, uint32_t n, __m256i* w) {
  for (int r = 0; r < 8; ++r) w[r] = load8<kType>(row[r], at, n);
  transpose8(w);
}

template <int kTokens>
OFFSTAGE_INLINE void add_columns(const __m256i* w, uint32_t n, const float* const* x, uint32_t at,
                                 __m256* slice) {
  for (uint32_t i = 0; i < n; ++i)
    for (int t = 0; t < kTokens; ++t)
      slice[t] =
          _mm256_fmadd_ps(_mm256_castsi256_ps(w[i]), _mm256_broadcast_ss(&x[t][at + i]), slice[t]);
}

template <TensorType kType, int kTokens>
void dot_rows(const Problem& p, const std::byte* const* row, uint32_t n, __m256i lanes,
              uint32_t first) {
  const float* x[kTokens];
  __m256 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + static_cast<uint32_t>(t));
    acc[t] = _mm256_setzero_ps();
  }
  for (uint32_t begin = 0; begin < p.k; begin += kRunElements) {
    const uint32_t end = p.k - begin < kRunElements ? p.k : begin + kRunElements;
    __m256 slice[kTokens];
    for (int t = 0; t < kTokens; ++t) slice[t] = _mm256_setzero_ps();
    uint32_t at = begin;
    for (; at + 8 <= end; at += 8) {
      fetch<kType>(p, row, at);
      __m256i w[8];
      load_block<kType>(row, at, 8, w);
      add_columns<kTokens>(w, 8, x, at, slice);
    }
    if (at < end) {
      __m256i w[8];
      load_block<kType>(row, at, end - at, w);
      add_columns<kTokens>(w, end - at, x, at, slice);
    }
    for (int t = 0; t < kTokens; ++t) acc[t] = _mm256_add_ps(acc[t], slice[t]);
  }
  for (int t = 0; t < kTokens; ++t)
    _mm256_maskstore_ps(p.out + size_t{first + static_cast<uint32_t>(t)} * p.out_stride + n, lanes,
                        acc[t]);
}

// Sixteen rows of one slice with rows in lanes: w[g][i] is element i of rows 8g … 8g + 7.
struct Tile {
  __m256i w[2][kRunElements];
};

// out ← out + slice; the first slice's out is +0.
OFFSTAGE_INLINE void add_to(uint32_t begin, float* out, __m256i lanes, __m256 slice) {
  const __m256 acc = begin == 0 ? _mm256_setzero_ps() : _mm256_maskload_ps(out, lanes);
  _mm256_maskstore_ps(out, lanes, _mm256_add_ps(acc, slice));
}

// Two registers of rows share a token's broadcast, so that loads don't bound the products. The
// accumulators wait in `out` between slices.
template <int kTokens>
void tile_step(const Problem& p, const Tile& tile, uint32_t begin, uint32_t length, uint32_t n,
               const __m256i* lanes, uint32_t first, uint32_t n_tokens) {
  const float* x[kTokens];
  __m256 slice[2][kTokens];
  for (uint32_t t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + (t < n_tokens ? t : 0)) + begin;
    slice[0][t] = slice[1][t] = _mm256_setzero_ps();
  }
  for (uint32_t i = 0; i < length; ++i) {
    const __m256 w0 = _mm256_castsi256_ps(tile.w[0][i]), w1 = _mm256_castsi256_ps(tile.w[1][i]);
    for (int t = 0; t < kTokens; ++t) {
      const __m256 value = _mm256_broadcast_ss(&x[t][i]);
      slice[0][t] = _mm256_fmadd_ps(w0, value, slice[0][t]);
      slice[1][t] = _mm256_fmadd_ps(w1, value, slice[1][t]);
    }
  }
  // Rolled loops here would keep `slice` in memory, with a store per product above.
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    if (static_cast<uint32_t>(t) >= n_tokens) continue;
    float* out = p.out + size_t{first + static_cast<uint32_t>(t)} * p.out_stride + n;
    add_to(begin, out, lanes[0], slice[0][t]);
    add_to(begin, out + 8, lanes[1], slice[1][t]);
  }
}

template <TensorType kType>
void tile_rows(const Problem& p, uint32_t n, uint32_t n_rows, uint32_t n_tokens) {
  const __m256i lanes[2] = {lanes_from(0, n_rows), lanes_from(8, n_rows)};
  const std::byte* row[16];  // missing rows repeat the first; their lanes are not stored
  for (uint32_t r = 0; r < 16; ++r) row[r] = p.weights + p.w_bytes * (n + (r < n_rows ? r : 0));
  Tile tile;
  for (uint32_t begin = 0; begin < p.k; begin += kRunElements) {
    const uint32_t length = p.k - begin < kRunElements ? p.k - begin : kRunElements;
    for (uint32_t g = 0; g < 2; ++g) {
      for (uint32_t i = 0; i < length; i += 8) {
        fetch<kType>(p, row + 8 * g, begin + i);
        load_block<kType>(row + 8 * g, begin + i, length - i < 8 ? length - i : 8, tile.w[g] + i);
      }
    }
    uint32_t left = n_tokens;
    while (left > 0) {  // by six where that leaves no more empty lanes than by four
      const uint32_t first = n_tokens - left;
      const uint32_t taken = left > 8 || left == 5 || left == 6 ? 6 : 4;
      const uint32_t here = left < taken ? left : taken;
      if (taken == 6)
        tile_step<6>(p, tile, begin, length, n, lanes, first, here);
      else
        tile_step<4>(p, tile, begin, length, n, lanes, first, here);
      left -= here;
    }
  }
}

template <TensorType kType>
void matmul_type(const Problem& p, uint32_t row_begin, uint32_t row_end, uint32_t n_tokens) {
  const uint32_t step = n_tokens >= kTileTokens ? 16 : 8;
  for (uint32_t n = row_begin; n < row_end; n += step) {
    const uint32_t n_rows = row_end - n < step ? row_end - n : step;
    if (step == 16) {
      tile_rows<kType>(p, n, n_rows, n_tokens);
      continue;
    }
    const __m256i lanes = first_lanes(n_rows);
    const std::byte* row[8];  // as in tile_rows
    for (uint32_t r = 0; r < 8; ++r) row[r] = p.weights + p.w_bytes * (n + (r < n_rows ? r : 0));
    uint32_t t = 0;
    for (; t + 4 <= n_tokens; t += 4) dot_rows<kType, 4>(p, row, n, lanes, t);
    for (; t + 2 <= n_tokens; t += 2) dot_rows<kType, 2>(p, row, n, lanes, t);
    for (; t < n_tokens; ++t) dot_rows<kType, 1>(p, row, n, lanes, t);
  }
}

}  // namespace

void matmul_float_avx2(const MatmulArgs& args) {
  const Problem p = {
      .weights = args.weights,
      .w_bytes = weights_row_bytes(args.type, args.k),
      .x_bytes = activation_row_bytes(ActivationFormat::kF32, args.k),
      .activations = args.activations,
      .token_rows = args.token_rows,
      .k = args.k,
      .out = args.out,
      .out_stride = args.out_stride,
  };
  switch (args.type) {
    case TensorType::kF32:
      return matmul_type<TensorType::kF32>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kF16:
      return matmul_type<TensorType::kF16>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kBF16:
      return matmul_type<TensorType::kBF16>(p, args.row_begin, args.row_end, args.n_tokens);
    default: return;
  }
}

}  // namespace offstage
