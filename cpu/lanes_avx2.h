// Register-level pieces shared by cpu/*_avx2.cc. Internal linkage throughout.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/exp.h"
#include "cpu/inline.h"

namespace offstage {
namespace {

// Eight rows of eight dwords, in place: lane c of r[i] ↔ lane i of r[c].
OFFSTAGE_INLINE void transpose8(__m256i* r) {
  __m256i t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x20);
    r[4 + c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x31);
  }
}

// Lanes 0 … n − 1, n ≤ 8, as a mask of sign bits.
OFFSTAGE_INLINE __m256i first_lanes(uint32_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Lanes of the elements at … n − 1, at most eight; none when at ≥ n.
OFFSTAGE_INLINE __m256i lanes_from(uint32_t at, uint32_t n) {
  return first_lanes(at >= n ? 0 : n - at < 8 ? n - at : 8);
}

OFFSTAGE_INLINE __m128i load16(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

OFFSTAGE_INLINE __m256i load32(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

OFFSTAGE_INLINE __m256i broadcast4(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return _mm256_set1_epi32(value);
}

// The tree of README "Sixteen lanes": + 8, + 4, + 2, + 1.
OFFSTAGE_INLINE float sum_lanes_avx2(__m256 low, __m256 high) {
  const __m256 by8 = _mm256_add_ps(low, high);
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

// One level of that tree for two vectors (after + 8), or two registers of folded ones, side by
// side.
template <int kLevel>
OFFSTAGE_INLINE __m256 fold_lanes(__m256 x, __m256 y) {
  if constexpr (kLevel == 0)
    return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  if constexpr (kLevel == 1)
    return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xee));
  return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xdd));
}

// Eight vectors (after + 8) → lane i is the sum of v[i]. v is overwritten.
OFFSTAGE_INLINE __m256 sum_lanes8_avx2(__m256* v) {
  for (int i = 0; i < 4; ++i) v[i] = fold_lanes<0>(v[i], v[i + 4]);
  for (int i = 0; i < 2; ++i) v[i] = fold_lanes<1>(v[i], v[i + 2]);
  return _mm256_permute_ps(fold_lanes<2>(v[0], v[1]), 0xd8);  // 0 2 1 3 in either half
}

OFFSTAGE_INLINE float max_lanes_avx2(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

OFFSTAGE_INLINE uint32_t max_lanes_epu32(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_unpackhi_epi64(m, m));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

OFFSTAGE_INLINE __m256 exp_avx2(__m256 x) {
  // max and min give their second operand when one is NaN.
  x = _mm256_max_ps(_mm256_set1_ps(kExpMin), x);
  x = _mm256_min_ps(_mm256_set1_ps(kExpMax), x);
  const __m256 round = _mm256_set1_ps(kExpRound);
  const __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(kExpLog2e), round);
  const __m256 n = _mm256_sub_ps(t, round);
  const __m256i exponent = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(round));
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kExpLn2Hi), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kExpLn2Lo), r);
  __m256 q = _mm256_set1_ps(kExpQ[4]);
  for (int i = 3; i >= 0; --i) q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(kExpQ[i]));
  const __m256 p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), q, r), _mm256_set1_ps(1.0f));
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(exponent, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}

}  // namespace
}  // namespace offstage
