// Unquantised matrices: sixteen rows in lanes, so that each lane walks README's chain of fused
// multiply-adds. Few tokens: blocks of 16 × 16 are transposed in registers and used at once. Many:
// a slice of 256 is transposed to the stack (16 KiB, half of L1) and used by all tokens.
#include <immintrin.h>

#include <cstddef>

#include "cpu/activations.h"
#include "cpu/avx512.h"
#include "cpu/lanes_avx512.h"
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
OFFSTAGE_INLINE __m512i load16(const std::byte* row, uint32_t at, __mmask16 lanes) {
  if constexpr (kType == TensorType::kF32) {
    return _mm512_maskz_loadu_epi32(lanes, row + size_t{at} * 4);
  } else {
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes, row + size_t{at} * 2);
    if constexpr (kType == TensorType::kF16) return _mm512_castps_si512(_mm512_cvtph_ps(halves));
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  }
}

// Sixteen rows are sixteen streams, more than the processor follows by itself: each is fetched so
// far ahead, into L2, and at its end goes on with the next sixteen rows.
constexpr size_t kPrefetchBytes = 1024;

template <TensorType kType>
OFFSTAGE_INLINE void fetch(const Problem& p, const std::byte* const* row, uint32_t at) {
  size_t offset = size_t{at} * (kType == TensorType::kF32 ? 4 : 2);
  if (offset % 64 != 0) return;
  offset += kPrefetchBytes;
  if (offset >= p.w_bytes) offset += 15 * p.w_bytes;
  for (int r = 0; r < 16; ++r)
    _mm_prefetch(reinterpret_cast<const char*>(row[r] + offset), _MM_HINT_T1);
}

// Columns at … at + n − 1 (n ≤ 16) of sixteen rows → w[i]: column at + i with rows in lanes.
template <TensorType kType>
OFFSTAGE_INLINE void load_block(const std::byte* const* row, uint32_t at, uint32_t n, __m512i* w) {
  const auto lanes = static_cast<__mmask16>((1u << n) - 1);
  for (int r = 0; r < 16; ++r) w[r] = load16<kType>(row[r], at, lanes);
  transpose16(w);
}

template <int kTokens>
OFFSTAGE_INLINE void add_columns(const __m512i* w, uint32_t n, const float* const* x, uint32_t at,
                                 __m512* slice) {
  for (uint32_t i = 0; i < n; ++i)
    for (int t = 0; t < kTokens; ++t)
      slice[t] = _mm512_fmadd_ps(_mm512_castsi512_ps(w[i]), _mm512_set1_ps(x[t][at + i]), slice[t]);
}

template <TensorType kType, int kTokens>
void dot_rows(const Problem& p, const std::byte* const* row, uint32_t n, __mmask16 lanes,
              uint32_t first) {
  const float* x[kTokens];
  __m512 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + static_cast<uint32_t>(t));
    acc[t] = _mm512_setzero_ps();
  }
  for (uint32_t begin = 0; begin < p.k; begin += kRunElements) {
    const uint32_t end = p.k - begin < kRunElements ? p.k : begin + kRunElements;
    __m512 slice[kTokens];
    for (int t = 0; t < kTokens; ++t) slice[t] = _mm512_setzero_ps();
    uint32_t at = begin;
    for (; at + 16 <= end; at += 16) {
      fetch<kType>(p, row, at);
      __m512i w[16];
      load_block<kType>(row, at, 16, w);
      add_columns<kTokens>(w, 16, x, at, slice);
    }
    if (at < end) {
      __m512i w[16];
      load_block<kType>(row, at, end - at, w);
      add_columns<kTokens>(w, end - at, x, at, slice);
    }
    for (int t = 0; t < kTokens; ++t) acc[t] = _mm512_add_ps(acc[t], slice[t]);
  }
  for (int t = 0; t < kTokens; ++t)
    _mm512_mask_storeu_ps(p.out + size_t{first + static_cast<uint32_t>(t)} * p.out_stride + n,
                          lanes, acc[t]);
}

// The accumulators wait in `out` between slices.
template <int kTokens>
void tile_step(const Problem& p, const __m512i* w, uint32_t begin, uint32_t length, uint32_t n,
               __mmask16 lanes, uint32_t first, uint32_t n_tokens) {
  const float* x[kTokens];
  __m512 slice[kTokens];
  for (uint32_t t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + (t < n_tokens ? t : 0));
    slice[t] = _mm512_setzero_ps();
  }
  add_columns<kTokens>(w, length, x, begin, slice);
  for (uint32_t t = 0; t < kTokens; ++t) {
    if (t >= n_tokens) break;
    float* out = p.out + size_t{first + t} * p.out_stride + n;
    const __m512 acc = begin == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, out);
    _mm512_mask_storeu_ps(out, lanes, _mm512_add_ps(acc, slice[t]));
  }
}

template <TensorType kType>
void tile_rows(const Problem& p, const std::byte* const* row, uint32_t n, __mmask16 lanes,
               uint32_t n_tokens) {
  __m512i w[kRunElements];
  for (uint32_t begin = 0; begin < p.k; begin += kRunElements) {
    const uint32_t length = p.k - begin < kRunElements ? p.k - begin : kRunElements;
    for (uint32_t i = 0; i < length; i += 16) {
      fetch<kType>(p, row, begin + i);
      load_block<kType>(row, begin + i, length - i < 16 ? length - i : 16, w + i);
    }
    uint32_t t = 0;
    for (; t + 8 <= n_tokens; t += 8) tile_step<8>(p, w, begin, length, n, lanes, t, 8);
    for (; t < n_tokens; t += 4) {
      const uint32_t left = n_tokens - t;
      tile_step<4>(p, w, begin, length, n, lanes, t, left < 4 ? left : 4);
    }
  }
}

template <TensorType kType>
void matmul_type(const Problem& p, uint32_t row_begin, uint32_t row_end, uint32_t n_tokens) {
  for (uint32_t n = row_begin; n < row_end; n += 16) {
    const uint32_t n_rows = row_end - n < 16 ? row_end - n : 16;
    const auto lanes = static_cast<__mmask16>((1u << n_rows) - 1);
    const std::byte* row[16];  // missing rows repeat the first; their lanes are not stored
    for (uint32_t r = 0; r < 16; ++r) row[r] = p.weights + p.w_bytes * (n + (r < n_rows ? r : 0));
    if (n_tokens >= kTileTokens) {
      tile_rows<kType>(p, row, n, lanes, n_tokens);
      continue;
    }
    uint32_t t = 0;
    for (; t + 4 <= n_tokens; t += 4) dot_rows<kType, 4>(p, row, n, lanes, t);
    for (; t + 2 <= n_tokens; t += 2) dot_rows<kType, 2>(p, row, n, lanes, t);
    for (; t < n_tokens; ++t) dot_rows<kType, 1>(p, row, n, lanes, t);
  }
}

}  // namespace

void matmul_float_avx512(const MatmulArgs& args) {
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
