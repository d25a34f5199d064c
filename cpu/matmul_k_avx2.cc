// K-quant matrices: four rows at a time for a few tokens (decode), eight rows in lanes for many
// (prefill). The integers are exact and the floats follow README, so both give the same bits.
#include <cstddef>

#include "cpu/activations.h"
#include "cpu/avx2.h"
#include "cpu/float16.h"
#include "cpu/formats_iq_avx2.h"
#include "cpu/formats_k_avx2.h"
#include "cpu/lanes_avx2.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

constexpr uint32_t kTileTokens = 4;       // from here on a transposition pays for itself
constexpr size_t kPrefetchBytes = 16384;  // see matmul_k_avx512.cc

struct Problem {
  const std::byte* weights;
  uint64_t w_bytes, x_bytes;
  const std::byte* activations;
  const uint32_t* token_rows;
  uint32_t n_runs;
  float* out;
  uint32_t out_stride;

  size_t bytes_ahead() const {
    const size_t group = 4 * w_bytes;
    return (kPrefetchBytes + group - 1) / group * group;
  }
  const ActivationRun256* x(uint32_t token) const {
    const uint32_t row = token_rows != nullptr ? token_rows[token] : token;
    return reinterpret_cast<const ActivationRun256*>(activations + x_bytes * row);
  }
};

// Piece `index` of a stream that is read soon, into L2.
OFFSTAGE_INLINE void fetch(const std::byte* stream, size_t piece_bytes, size_t index) {
  const std::byte* piece = stream + piece_bytes * index;
  for (size_t at = 0; at < piece_bytes; at += 64)
    _mm_prefetch(reinterpret_cast<const char*>(piece + at), _MM_HINT_T1);
}

// Four vectors of partial sums → four sums.
OFFSTAGE_INLINE __m128i sum4(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

template <typename Block>
OFFSTAGE_INLINE __m128 minima4(const Block* const* b) {
  const __m128i halves =
      _mm_setr_epi16(static_cast<short>(b[0]->dmin), static_cast<short>(b[1]->dmin),
                     static_cast<short>(b[2]->dmin), static_cast<short>(b[3]->dmin), 0, 0, 0, 0);
  return _mm_cvtph_ps(halves);
}

// A superblock's d as f16 bits, and its unit.
template <typename Format>
OFFSTAGE_INLINE uint16_t d_of(const typename Format::Block* b) {
  if constexpr (requires { Format::d(b); })
    return Format::d(b);
  else
    return b->d;
}

template <typename Format>
constexpr float unit_of() {
  if constexpr (requires { Format::kUnit; })
    return Format::kUnit;
  else
    return 1;
}

template <typename Format>
OFFSTAGE_INLINE __m128 scales4(const typename Format::Block* const* b) {
  const auto d = [&](int i) { return static_cast<short>(d_of<Format>(b[i])); };
  const __m128 value = _mm_cvtph_ps(_mm_setr_epi16(d(0), d(1), d(2), d(3), 0, 0, 0, 0));
  return unit_of<Format>() == 1 ? value : _mm_mul_ps(value, _mm_set1_ps(unit_of<Format>()));
}

// Sums of byte products within words.
template <typename Format>
OFFSTAGE_INLINE __m256i products(__m256i w, __m256i a) {
  if constexpr (!Format::kMinima && Format::kOffset == 0)
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return _mm256_maddubs_epi16(w, a);
}

// Integer sums of one row's run: isum's partial sums, and those of msum (or of the offset).
template <typename Format, int kTokens>
OFFSTAGE_INLINE void row_sums(const typename Format::Block* block, const ActivationRun256* const* x,
                              __m256i* isum, __m256i* msum) {
  __m128i scale, min;
  Format::scales(block, &scale, &min);
  // Words 0–7 the even groups, 8–15 the odd ones: then one byte shuffle spreads groups 2i and 2i +
  // 1 over the two halves.
  const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m256i words = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scale, even_odd));
  const __m256i mins = _mm256_cvtepi8_epi16(min);
  for (int t = 0; t < kTokens; ++t) {
    msum[t] =
        _mm256_madd_epi16(mins, _mm256_load_si256(reinterpret_cast<const __m256i*>(x[t]->sum16)));
    isum[t] = _mm256_setzero_si256();
  }
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    __m256i q[2];
    Format::pair(block, p, &q[0], &q[1]);
    for (int i = 0; i < 2; ++i) {
      const int word = 2 * p + i;
      const __m256i spread = _mm256_shuffle_epi8(
          words, _mm256_set1_epi16(static_cast<short>(2 * word | (2 * word + 1) << 8)));
      for (int t = 0; t < kTokens; ++t) {
        const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(x[t]->q + 32 * word));
        isum[t] = _mm256_add_epi32(isum[t], _mm256_madd_epi16(products<Format>(q[i], a), spread));
      }
    }
  }
}

template <typename Format, int kTokens>
void dot_rows(const Problem& p, const std::byte* const* row, uint32_t n, uint32_t n_rows,
              uint32_t first) {
  using Block = typename Format::Block;
  const ActivationRun256* x[kTokens];
  __m128 acc[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + static_cast<uint32_t>(t));
    acc[t] = _mm_setzero_ps();
  }
  const size_t bytes_ahead = p.bytes_ahead();
  for (uint32_t run = 0; run < p.n_runs; ++run) {
    const Block* block[4];
    for (int r = 0; r < 4; ++r) block[r] = reinterpret_cast<const Block*>(row[r]) + run;
    fetch(row[0] + bytes_ahead, 4 * sizeof(Block), run);
    __m256i isum[4][kTokens], msum[4][kTokens];
    for (int r = 0; r < 4; ++r) row_sums<Format, kTokens>(block[r], x, isum[r], msum[r]);
    for (int t = 0; t < kTokens; ++t) {
      __m128i i4 = sum4(isum[0][t], isum[1][t], isum[2][t], isum[3][t]);
      const __m128i m4 = sum4(msum[0][t], msum[1][t], msum[2][t], msum[3][t]);
      if constexpr (!Format::kMinima && Format::kOffset != 0)
        i4 = _mm_sub_epi32(i4, _mm_slli_epi32(m4, __builtin_ctz(Format::kOffset)));
      __m128 value = _mm_mul_ps(scales4<Format>(block), _mm_cvtepi32_ps(i4));
      if constexpr (Format::kMinima)
        value = _mm_fnmadd_ps(minima4(block), _mm_cvtepi32_ps(m4), value);
      acc[t] = _mm_fmadd_ps(_mm_set1_ps(x[t]->d), value, acc[t]);
      ++x[t];
    }
  }
  const __m128i lanes = _mm256_castsi256_si128(first_lanes(n_rows));
  for (int t = 0; t < kTokens; ++t)
    _mm_maskstore_ps(p.out + size_t{first + static_cast<uint32_t>(t)} * p.out_stride + n, lanes,
                     acc[t]);
}

// Eight rows of one run with rows in lanes.
struct Tile {
  __m256i w[64];      // dword k4: elements 4·k4 … + 3 of each row
  __m256i scale[16];  // per 16 elements, both words of a dword
  __m256i min[8];     // words: minima (or scales, for the offset) of groups 2j, 2j + 1
  __m256 d, dmin;
};

template <typename Format>
void fill_tile(const std::byte* const* row, uint32_t run, Tile* tile) {
  using Block = typename Format::Block;
  __m256i low[8], high[8];
  alignas(32) float d[8], dmin[8] = {};
  for (int r = 0; r < 8; ++r) {
    const Block* block = reinterpret_cast<const Block*>(row[r]) + run;
    for (int p = 0; p < 4; ++p) {
      __m256i a, b;
      Format::pair(block, p, &a, &b);
      tile->w[16 * p + r] = a;
      tile->w[16 * p + 8 + r] = b;
    }
    __m128i scale, min;
    Format::scales(block, &scale, &min);
    const __m256i words = _mm256_cvtepi8_epi16(scale);
    low[r] = _mm256_unpacklo_epi16(words, words);   // groups 0–3, 8–11
    high[r] = _mm256_unpackhi_epi16(words, words);  // groups 4–7, 12–15
    tile->min[r] = _mm256_cvtepi8_epi16(min);
    d[r] = unit_of<Format>() * float_of_f16(d_of<Format>(block));
    if constexpr (Format::kMinima) dmin[r] = float_of_f16(block->dmin);
  }
  for (int i = 0; i < 8; ++i) transpose8(tile->w + 8 * i);
  transpose8(low);
  transpose8(high);
  transpose8(tile->min);
  for (int i = 0; i < 4; ++i) {
    tile->scale[i] = low[i];
    tile->scale[4 + i] = high[i];
    tile->scale[8 + i] = low[4 + i];
    tile->scale[12 + i] = high[4 + i];
  }
  tile->d = _mm256_load_ps(d);
  tile->dmin = _mm256_load_ps(dmin);
}

template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_tokens(const Tile& tile, const ActivationRun256* const* x, __m256* acc) {
  // Products whose sum still fits 16 bits.
  constexpr int kFit = 32767 / (Format::kLargest * 127 * 2);
  constexpr int kGroupSteps = Format::kGroup / 4;
  constexpr int kSteps = kFit >= kGroupSteps ? kGroupSteps : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  __m256i isum[kTokens];
  for (int t = 0; t < kTokens; ++t) isum[t] = _mm256_setzero_si256();
  for (int k4 = 0; k4 < 64; k4 += kSteps) {
    __m256i sum[kTokens];
#pragma GCC unroll 8
    for (int i = 0; i < kSteps; ++i) {
      const __m256i w = tile.w[k4 + i];
      for (int t = 0; t < kTokens; ++t) {
        const __m256i product = products<Format>(w, broadcast4(x[t]->q + 4 * (k4 + i)));
        sum[t] = i == 0 ? product : _mm256_add_epi16(sum[t], product);
      }
    }
    const __m256i scale = tile.scale[k4 / 4];
    for (int t = 0; t < kTokens; ++t)
      isum[t] = _mm256_add_epi32(isum[t], _mm256_madd_epi16(sum[t], scale));
  }
  for (int t = 0; t < kTokens; ++t) {
    __m256i msum = _mm256_setzero_si256();
    for (int j = 0; j < 8; ++j)
      msum =
          _mm256_add_epi32(msum, _mm256_madd_epi16(tile.min[j], broadcast4(x[t]->sum16 + 2 * j)));
    if constexpr (!Format::kMinima && Format::kOffset != 0)
      isum[t] = _mm256_sub_epi32(isum[t], _mm256_slli_epi32(msum, __builtin_ctz(Format::kOffset)));
    __m256 value = _mm256_mul_ps(tile.d, _mm256_cvtepi32_ps(isum[t]));
    if constexpr (Format::kMinima)
      value = _mm256_fnmadd_ps(tile.dmin, _mm256_cvtepi32_ps(msum), value);
    acc[t] = _mm256_fmadd_ps(_mm256_set1_ps(x[t]->d), value, acc[t]);
  }
}

// The accumulators of a run's tokens wait in `out` between runs.
template <typename Format, int kTokens>
void tile_step(const Problem& p, const Tile& tile, uint32_t run, uint32_t n, __m256i lanes,
               uint32_t first, uint32_t n_tokens) {
  const ActivationRun256* x[kTokens];
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
  for (uint32_t run = 0; run < p.n_runs; ++run) {
    fetch(row[0] + 8 * p.w_bytes, 8 * sizeof(typename Format::Block), run);
    Tile tile;
    fill_tile<Format>(row, run, &tile);
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

void matmul_k_avx2(const MatmulArgs& args) {
  const Problem p = {
      .weights = args.weights,
      .w_bytes = weights_row_bytes(args.type, args.k),
      .x_bytes = activation_row_bytes(ActivationFormat::kQ8_256, args.k),
      .activations = args.activations,
      .token_rows = args.token_rows,
      .n_runs = args.k / kRunElements,
      .out = args.out,
      .out_stride = args.out_stride,
  };
  switch (args.type) {
    case TensorType::kQ2_K:
      return matmul_format<FormatQ2_K>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ3_K:
      return matmul_format<FormatQ3_K>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ4_K:
      return matmul_format<FormatQ4_K>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ5_K:
      return matmul_format<FormatQ5_K>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kQ6_K:
      return matmul_format<FormatQ6_K>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ4_XS:
      return matmul_format<FormatIQ4_XS>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ3_S:
      return matmul_format<FormatIQ3_S>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ3_XXS:
      return matmul_format<FormatIQ3_XXS>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ2_S:
      return matmul_format<FormatIQ2_S>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ2_XS:
      return matmul_format<FormatIQ2_XS>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ2_XXS:
      return matmul_format<FormatIQ2_XXS>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ1_M:
      return matmul_format<FormatIQ1_M>(p, args.row_begin, args.row_end, args.n_tokens);
    case TensorType::kIQ1_S:
      return matmul_format<FormatIQ1_S>(p, args.row_begin, args.row_end, args.n_tokens);
    default: return;
  }
}

}  // namespace offstage
