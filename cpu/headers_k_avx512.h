// The headers of Q4_K and Q5_K, four rows at a time: what matmul_k_avx512.cc needs where a weight
// is used only once. For cpu/*_avx512.cc alone; everything has internal linkage (README, "Files").
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/inline.h"

namespace offstage {
namespace {

// The 16-byte headers of four Q4_K or Q5_K superblocks, unpacked side by side: lane r is row r's.
struct Headers4 {
  __m512i scales;  // bytes s0–3, m0–3, s4–7, m4–7
  __m128 d, dmin;  // of the four rows
};

// `first_dwords` of the lanes are 0, 4, 8, 12.
template <typename Block>
OFFSTAGE_INLINE Headers4 headers4(const Block* const* b, __m512i first_dwords) {
  const auto header = [&](int r) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(b[r]));
  };
  __m512i all = _mm512_castsi128_si512(header(0));
  all = _mm512_inserti32x4(all, header(1), 1);
  all = _mm512_inserti32x4(all, header(2), 2);
  all = _mm512_inserti32x4(all, header(3), 3);
  const __m512i low = _mm512_shuffle_epi32(all, _MM_PERM_CBCB);   // packed 0–3, 4–7 and again
  const __m512i last = _mm512_shuffle_epi32(all, _MM_PERM_DDDD);  // packed 8–11
  const __m512i shift_low = _mm512_set4_epi32(2, 2, 0, 0);
  const __m512i mask_low = _mm512_set4_epi32(0x30303030, 0x30303030, 0x3f3f3f3f, 0x3f3f3f3f);
  const __m512i shift_last = _mm512_set4_epi32(4, 0, 0, 0);
  const __m512i mask_last = _mm512_set4_epi32(0x0f0f0f0f, 0x0f0f0f0f, 0, 0);
  Headers4 h;
  h.scales =
      _mm512_ternarylogic_epi32(_mm512_and_si512(_mm512_srlv_epi32(low, shift_low), mask_low),
                                _mm512_srlv_epi32(last, shift_last), mask_last, 0xf8);  // a | b & c
  const __m128i pairs = _mm512_castsi512_si128(_mm512_permutexvar_epi32(first_dwords, all));
  h.d = _mm_cvtph_ps(_mm_cvtepi32_epi16(pairs));
  h.dmin = _mm_cvtph_ps(_mm_cvtepi32_epi16(_mm_srli_epi32(pairs, 16)));
  return h;
}

// 16 bytes in every lane.
OFFSTAGE_INLINE __m512i four128(const void* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

// 32 bytes, and above them the 32 that lie 64 further on.
OFFSTAGE_INLINE __m512i apart256(const int8_t* p) {
  const auto at = [&](int byte) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + byte));
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(at(0)), at(64), 1);
}

// Where Headers4::scales holds the scales of groups g and, above, g + 2: four words of `row`'s,
// four of the next row's, and again. For a permutation that zeroes the odd bytes.
OFFSTAGE_INLINE __m512i scale_places(int row, int group) {
  const auto four = [](int byte) { return 0x0001000100010001 * byte; };
  const int first = 16 * row + (group < 4 ? group : group + 4);
  const long long a = four(first), b = four(first + 16), c = four(first + 2), d = four(first + 18);
  return _mm512_set_epi64(d, c, d, c, b, a, b, a);
}

// The same for the minima of groups g … g + 3, two words of each: lane r is row r's.
OFFSTAGE_INLINE __m512i minima_places(int group) {
  const int first = group < 4 ? 4 + group : 8 + group;
  const auto two = [&](int lane, int g) { return 0x00010001 * (16 * lane + first + g); };
  const auto lane = [&](int r) {
    return _mm_set_epi32(two(r, 3), two(r, 2), two(r, 1), two(r, 0));
  };
  __m512i places = _mm512_castsi128_si512(lane(0));
  places = _mm512_inserti32x4(places, lane(1), 1);
  places = _mm512_inserti32x4(places, lane(2), 2);
  return _mm512_inserti32x4(places, lane(3), 3);
}

// Lanes of two dwords of row a, two of row b; the same of c and d → four sums.
OFFSTAGE_INLINE __m128i sum4(__m512i ab, __m512i cd) {
  const __m512 a = _mm512_castsi512_ps(ab), b = _mm512_castsi512_ps(cd);
  const __m512i all = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
                                       _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

}  // namespace
}  // namespace offstage
