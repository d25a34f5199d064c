// Register-level pieces shared by cpu/*_avx512.cc. Internal linkage throughout.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/exp.h"
#include "cpu/inline.h"

namespace offstage {
namespace {

// Sixteen rows of sixteen dwords, in place: lane c of r[i] ↔ lane i of r[c].
OFFSTAGE_INLINE void transpose16(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // r[4i + c], 128-bit lane l: column 4l + c of rows 4i … 4i + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// The tree of README "Sixteen lanes": + 8, + 4, + 2, + 1.
OFFSTAGE_INLINE float sum_lanes_avx512(__m512 v) {
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

// One level of that tree for two vectors, or two registers of folded ones, side by side: level 0
// adds halves, 1 lanes of 128, 2 and 3 within them.
template <int kLevel>
OFFSTAGE_INLINE __m512 fold_lanes(__m512 x, __m512 y) {
  if constexpr (kLevel == 0)
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  if constexpr (kLevel == 1)
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  if constexpr (kLevel == 2)
    return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee));
  return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xdd));
}

// Levels kLevel … of n vectors (a power of two) into v[0]: v[i] always meets the one half of what
// is left away, so vectors taken at equal distances can be folded among themselves first.
template <int kLevel, int n>
OFFSTAGE_INLINE void fold_all(__m512* v) {
  if constexpr (n > 1) {
    for (int i = 0; i < n / 2; ++i) v[i] = fold_lanes<kLevel>(v[i], v[i + n / 2]);
    fold_all<kLevel + 1, n / 2>(v);
  }
}

// Sixteen vectors wholly folded → lane i is the sum of the i-th.
OFFSTAGE_INLINE __m512 in_order_avx512(__m512 folded) {
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return _mm512_permutexvar_ps(order, folded);
}

OFFSTAGE_INLINE __m512 exp_avx512(__m512 x) {
  // max and min give their second operand when one is NaN.
  x = _mm512_max_ps(_mm512_set1_ps(kExpMin), x);
  x = _mm512_min_ps(_mm512_set1_ps(kExpMax), x);
  const __m512 round = _mm512_set1_ps(kExpRound);
  const __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(kExpLog2e), round);
  const __m512 n = _mm512_sub_ps(t, round);
  const __m512i exponent = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(round));
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kExpLn2Hi), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kExpLn2Lo), r);
  __m512 q = _mm512_set1_ps(kExpQ[4]);
  for (int i = 3; i >= 0; --i) q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(kExpQ[i]));
  const __m512 p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), q, r), _mm512_set1_ps(1.0f));
  const __m512i half = _mm512_srai_epi32(exponent, 1);
  const __m512i bias = _mm512_set1_epi32(127);
  const __m512i a = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
  const __m512i b = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(exponent, half), bias), 23);
  return _mm512_mul_ps(_mm512_mul_ps(p, _mm512_castsi512_ps(a)), _mm512_castsi512_ps(b));
}

}  // namespace
}  // namespace offstage
