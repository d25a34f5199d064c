// K-quant matrices: four rows at a time for a few tokens (decode), sixteen rows in lanes for many
// (prefill). The integers are exact and the floats follow README, so both give the same bits.
#include <cstddef>

#include "cpu/activations.h"
#include "cpu/avx512.h"
#include "cpu/formats_iq_avx512.h"
#include "cpu/formats_k_avx512.h"
#include "cpu/headers_k_avx512.h"
#include "cpu/lanes_avx512.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

// From this many tokens on, a transposition of sixteen rows pays for itself.
constexpr uint32_t kTileTokens = 6;

// Four rows are read side by side, so what comes next begins with the next four: they are fetched a
// whole number of groups ahead, at least this many bytes, into L2. Measured on Zen 4, Q8_0: one
// thread without it 8–10 GB/s, 4 KiB ahead into L1 9–10 (its few miss buffers then block the loads
// themselves), 4 KiB ahead into L2 21, 16 KiB 26 of the 28 that plain reads reach; two threads, in
// per cent of plain reads, 4 KiB 98, 8 KiB 95, 16 KiB 90.
constexpr size_t kPrefetchBytes = 8192;

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
OFFSTAGE_INLINE __m128i sum4(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all =
      _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

OFFSTAGE_INLINE __m128i sum4(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

// Word w of q[i] · a covers elements 64i + 2w, + 1, so its scale is that of group 4i + w/8.
OFFSTAGE_INLINE void spread_scales(__m256i scale, __m512i* spread) {
  const __m512i words = _mm512_castsi256_si512(scale);
  const __m512i group = _mm512_set_epi64(0x0003000300030003, 0x0003000300030003,  //
                                         0x0002000200020002, 0x0002000200020002,  //
                                         0x0001000100010001, 0x0001000100010001, 0, 0);
  for (int i = 0; i < 4; ++i)
    spread[i] = _mm512_permutexvar_epi16(
        _mm512_add_epi16(group, _mm512_set1_epi16(static_cast<short>(4 * i))), words);
}

// Sums of two products within words. Bytes that are too large for that are made signed again; then
// the sum has no offset.
template <typename Format>
OFFSTAGE_INLINE __m512i products(__m512i q, __m512i a) {
  if constexpr (Format::kOffset != 128) return _mm512_maddubs_epi16(q, a);
  const __m512i w = _mm512_xor_si512(q, bytes512(128));
  const __m512i signed_a =
      _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
  return _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_a);
}

// Rows `row[0…3]`, tokens first … first + kTokens − 1; lane r of the result is row r.
template <typename Format, int kTokens>
OFFSTAGE_INLINE void dot4(const Problem& p, const std::byte* const* row, uint32_t first,
                          __m128* acc) {
  using Block = typename Format::Block;
  const ActivationRun256* x[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + static_cast<uint32_t>(t));
    acc[t] = _mm_setzero_ps();
  }
  const size_t bytes_ahead = p.bytes_ahead();
  for (uint32_t run = 0; run < p.n_runs; ++run) {
    const Block* block[4];
    for (int r = 0; r < 4; ++r) block[r] = reinterpret_cast<const Block*>(row[r]) + run;
    fetch(row[0] + bytes_ahead, 4 * sizeof(Block), run);
    __m512i isum[4][kTokens];
    __m256i msum[4][kTokens];
    for (int r = 0; r < 4; ++r) {
      __m512i q[4], spread[4];
      __m256i scale, min;
      Format::quants(block[r], q);
      Format::scales(block[r], &scale, &min);
      spread_scales(scale, spread);
      for (int t = 0; t < kTokens; ++t) {
        const ActivationRun256& a = x[t][run];
        const __m256i sums = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.sum16));
        msum[r][t] = _mm256_madd_epi16(Format::kMinima ? min : scale, sums);
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < 4; ++i)
          sum = _mm512_dpwssd_epi32(sum, products<Format>(q[i], _mm512_load_si512(a.q + 64 * i)),
                                    spread[i]);
        isum[r][t] = sum;
      }
    }
    __m128 d, dmin;
    Format::d4(block, &d, &dmin);
    for (int t = 0; t < kTokens; ++t) {
      __m128i i4 = sum4(isum[0][t], isum[1][t], isum[2][t], isum[3][t]);
      const __m128i m4 = sum4(msum[0][t], msum[1][t], msum[2][t], msum[3][t]);
      if constexpr (!Format::kMinima && Format::kOffset != 128)
        i4 = _mm_sub_epi32(i4, _mm_slli_epi32(m4, __builtin_ctz(Format::kOffset)));
      __m128 value = _mm_mul_ps(d, _mm_cvtepi32_ps(i4));
      if constexpr (Format::kMinima) value = _mm_fnmadd_ps(dmin, _mm_cvtepi32_ps(m4), value);
      acc[t] = _mm_fmadd_ps(_mm_set1_ps(x[t][run].d), value, acc[t]);
    }
  }
}

template <typename Format>
concept HasHeader = Format::kHeader;

// The same for formats that begin with Q4_K's header, with few shuffles, which are what Zen 4 has
// least of: headers are unpacked for four rows at once, and the sums of four products of two rows
// (they fit a word: 4 · 31 · 127) share a register when they meet their scales.
template <HasHeader Format, int kTokens>
OFFSTAGE_INLINE void dot4(const Problem& p, const std::byte* const* row, uint32_t first,
                          __m128* acc) {
  using Block = typename Format::Block;
  constexpr __mmask64 kEvenBytes = 0x5555555555555555;
  const ActivationRun256* x[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    x[t] = p.x(first + static_cast<uint32_t>(t));
    acc[t] = _mm_setzero_ps();
  }
  const __m512i first_dwords =
      _mm512_castsi128_si512(_mm_set_epi32(12, 8, 4, 0));  // the others aren't looked at
  const size_t bytes_ahead = p.bytes_ahead();
  for (uint32_t run = 0; run < p.n_runs; ++run) {
    const Block* block[4];
    for (int r = 0; r < 4; ++r) block[r] = reinterpret_cast<const Block*>(row[r]) + run;
    fetch(row[0] + bytes_ahead, 4 * sizeof(Block), run);
    const Headers4 headers = headers4(block, first_dwords);
    __m512i isum[2][kTokens];
#pragma GCC unroll 2
    for (int r = 0; r < 4; r += 2) {
      __m512i upper[4], lower[4];
      Format::pairs(block[r], upper);
      Format::pairs(block[r + 1], lower);
      for (int t = 0; t < kTokens; ++t) isum[r / 2][t] = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512i scale = _mm512_maskz_permutexvar_epi8(
            kEvenBytes, scale_places(r, 4 * (i / 2) + i % 2), headers.scales);
        for (int t = 0; t < kTokens; ++t) {
          const __m512i a = apart256(x[t][run].q + 128 * (i / 2) + 32 * (i % 2));
          const __m512i sums =
              _mm512_packs_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), upper[i], a),
                                 _mm512_dpbusd_epi32(_mm512_setzero_si512(), lower[i], a));
          isum[r / 2][t] = _mm512_dpwssd_epi32(isum[r / 2][t], sums, scale);
        }
      }
    }
    const __m512i min_low =
        _mm512_maskz_permutexvar_epi8(kEvenBytes, minima_places(0), headers.scales);
    const __m512i min_high =
        _mm512_maskz_permutexvar_epi8(kEvenBytes, minima_places(4), headers.scales);
    for (int t = 0; t < kTokens; ++t) {
      __m512i m = _mm512_madd_epi16(min_low, four128(x[t][run].sum16));
      m = _mm512_dpwssd_epi32(m, min_high, four128(x[t][run].sum16 + 8));
      m = _mm512_add_epi32(m, _mm512_shuffle_epi32(m, _MM_PERM_BADC));
      m = _mm512_add_epi32(m, _mm512_shuffle_epi32(m, _MM_PERM_CDAB));
      const __m128i m4 = _mm512_castsi512_si128(_mm512_permutexvar_epi32(first_dwords, m));
      const __m128i i4 = sum4(isum[0][t], isum[1][t]);
      __m128 value = _mm_mul_ps(headers.d, _mm_cvtepi32_ps(i4));
      value = _mm_fnmadd_ps(headers.dmin, _mm_cvtepi32_ps(m4), value);
      acc[t] = _mm_fmadd_ps(_mm_set1_ps(x[t][run].d), value, acc[t]);
    }
  }
}

template <typename Format, int kTokens>
void dot_rows(const Problem& p, const std::byte* const* row, uint32_t n, uint32_t n_rows,
              uint32_t first) {
  __m128 acc[kTokens];
  dot4<Format, kTokens>(p, row, first, acc);
  const auto lanes = static_cast<__mmask8>((1u << n_rows) - 1);
  for (int t = 0; t < kTokens; ++t)
    _mm_mask_storeu_ps(p.out + size_t{first + static_cast<uint32_t>(t)} * p.out_stride + n, lanes,
                       acc[t]);
}

// Sixteen rows of one run with rows in lanes.
struct Tile {
  __m512i w[64];      // dword k4: elements 4·k4 … + 3 of each row
  __m512i scale[16];  // per group
  __m512i min[8];     // words: minima (or scales, for the offset) of groups 2j, 2j + 1
  __m512 d, dmin;
};

template <typename Format>
void fill_tile(const std::byte* const* row, uint32_t run, Tile* tile) {
  using Block = typename Format::Block;
  __m512i words[16];  // scales below, minima (or scales again) above: one transposition for both
  alignas(64) float d[16], dmin[16];
  for (int r = 0; r < 16; ++r) {
    const Block* block = reinterpret_cast<const Block*>(row[r]) + run;
    __m512i q[4];
    __m256i scale, min;
    Format::quants(block, q);
    for (int i = 0; i < 4; ++i) tile->w[16 * i + r] = q[i];
    Format::scales(block, &scale, &min);
    words[r] = _mm512_inserti64x4(_mm512_castsi256_si512(scale), Format::kMinima ? min : scale, 1);
  }
  for (int r = 0; r < 16; r += 4) {
    const Block* block[4];
    for (int i = 0; i < 4; ++i) block[i] = reinterpret_cast<const Block*>(row[r + i]) + run;
    __m128 d4 = _mm_setzero_ps(), dmin4 = d4;
    Format::d4(block, &d4, &dmin4);
    _mm_store_ps(d + r, d4);
    _mm_store_ps(dmin + r, dmin4);
  }
  for (int i = 0; i < 4; ++i) transpose16(tile->w + 16 * i);
  transpose16(words);
  for (int j = 0; j < 8; ++j) {  // words[j]: the scales of 16-element groups 2j and 2j + 1
    const __m512i odd = _mm512_srai_epi32(words[j], 16);
    if constexpr (Format::kGroup == 32) {
      tile->scale[j] = odd;  // both are the group's
    } else {
      tile->scale[2 * j] = _mm512_srai_epi32(_mm512_slli_epi32(words[j], 16), 16);
      tile->scale[2 * j + 1] = odd;
    }
    tile->min[j] = words[8 + j];
  }
  tile->d = _mm512_load_ps(d);
  tile->dmin = _mm512_load_ps(dmin);
}

OFFSTAGE_INLINE __m512i broadcast4(const void* p) {
  int32_t value;
  std::memcpy(&value, p, 4);
  return _mm512_set1_epi32(value);
}

template <typename Format, int kTokens>
OFFSTAGE_INLINE void tile_tokens(const Tile& tile, const ActivationRun256* const* x, __m512* acc) {
  constexpr int kSteps = Format::kGroup / 4;
  __m512i isum[kTokens], msum[kTokens];
  for (int t = 0; t < kTokens; ++t) isum[t] = _mm512_setzero_si512();
  for (int g = 0; g < 64 / kSteps; ++g) {
    __m512i sum[kTokens];
    for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < kSteps; ++i) {
      const __m512i w = tile.w[kSteps * g + i];
      for (int t = 0; t < kTokens; ++t)
        sum[t] = _mm512_dpbusd_epi32(sum[t], w, broadcast4(x[t]->q + 4 * (kSteps * g + i)));
    }
    const __m512i scale = tile.scale[g];
    for (int t = 0; t < kTokens; ++t)
      isum[t] = _mm512_add_epi32(isum[t], _mm512_mullo_epi32(sum[t], scale));
  }
  for (int t = 0; t < kTokens; ++t) {
    msum[t] = _mm512_setzero_si512();
    for (int j = 0; j < 8; ++j)
      msum[t] = _mm512_dpwssd_epi32(msum[t], tile.min[j], broadcast4(x[t]->sum16 + 2 * j));
    if constexpr (!Format::kMinima)
      isum[t] =
          _mm512_sub_epi32(isum[t], _mm512_slli_epi32(msum[t], __builtin_ctz(Format::kOffset)));
    __m512 value = _mm512_mul_ps(tile.d, _mm512_cvtepi32_ps(isum[t]));
    if constexpr (Format::kMinima)
      value = _mm512_fnmadd_ps(tile.dmin, _mm512_cvtepi32_ps(msum[t]), value);
    acc[t] = _mm512_fmadd_ps(_mm512_set1_ps(x[t]->d), value, acc[t]);
  }
}

// The accumulators of a run's tokens wait in `out` between runs.
template <typename Format, int kTokens>
void tile_step(const Problem& p, const Tile& tile, uint32_t run, uint32_t n, __mmask16 lanes,
               uint32_t first, uint32_t n_tokens) {
  const ActivationRun256* x[kTokens];
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
  for (uint32_t run = 0; run < p.n_runs; ++run) {
    fetch(row[0] + 16 * p.w_bytes, 16 * sizeof(typename Format::Block), run);
    Tile tile;
    fill_tile<Format>(row, run, &tile);
    uint32_t t = 0;
    for (; t + 8 <= n_tokens; t += 8) tile_step<Format, 8>(p, tile, run, n, lanes, t, 8);
    for (; t < n_tokens; t += 4) {
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

void matmul_k_avx512(const MatmulArgs& args) {
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
