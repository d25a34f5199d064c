// Small scales of the IQ formats as sixteen signed bytes, one per 16 elements. For cpu/*_avx2.cc
// and cpu/*_avx512.cc; everything has internal linkage (README, "Files").
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/blocks.h"
#include "cpu/inline.h"

namespace offstage {
namespace {

// 2s + 1.
OFFSTAGE_INLINE __m128i odd_scales(__m128i s) {
  return _mm_or_si128(_mm_add_epi8(s, s), _mm_set1_epi8(1));
}

// Eight bytes, each twice: scales of 32 elements.
OFFSTAGE_INLINE __m128i each_twice(__m128i bytes) { return _mm_unpacklo_epi8(bytes, bytes); }

// Nibbles of the low eight bytes, low one first.
OFFSTAGE_INLINE __m128i nibbles_in_order(__m128i bytes) {
  const __m128i mask = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(bytes, mask),
                           _mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
}

OFFSTAGE_INLINE __m128i load4(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return _mm_cvtsi32_si128(value);
}

OFFSTAGE_INLINE __m128i load8(const void* p) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(p));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ4_XS* b) {
  const __m128i low = nibbles_in_order(load4(b->scales_l));
  // Multiplied by 2^(14 − 2g), bits 2g and 2g + 1 of a word are its top ones.
  const __m128i tops = _mm_srli_epi16(
      _mm_mullo_epi16(_mm_set1_epi16(static_cast<short>(b->scales_h)),
                      _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1)),
      14);
  const __m128i high = _mm_packus_epi16(_mm_slli_epi16(tops, 4), _mm_setzero_si128());
  return each_twice(_mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32)));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ3_S* b) {
  return each_twice(odd_scales(nibbles_in_order(load4(b->scales))));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ3_XXS* b) {
  const __m256i s = _mm256_srli_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b->scales_and_signs)), 28);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  return each_twice(odd_scales(_mm_packus_epi16(words, words)));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ2_S* b) {
  return odd_scales(nibbles_in_order(load8(b->scales)));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ2_XS* b) {
  return odd_scales(nibbles_in_order(load8(b->scales)));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ2_XXS* b) {
  const auto* at = reinterpret_cast<const __m256i*>(b->qs);
  const __m256i low = _mm256_srli_epi64(_mm256_loadu_si256(at), 60);
  const __m256i high = _mm256_srli_epi64(_mm256_loadu_si256(at + 1), 60);
  // Words: groups 0 1 4 5 in one half, 2 3 6 7 in the other, a zero after each.
  const __m256i words = _mm256_packs_epi32(low, high);
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i order = _mm_setr_epi8(0, 0, 2, 2, 8, 8, 10, 10, 4, 4, 6, 6, 12, 12, 14, 14);
  return odd_scales(_mm_shuffle_epi8(bytes, order));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ1_M* b) {
  // Words 4w … + 3 get word w; multiplied by 2^(13 − 3j), three bits of it are the top ones.
  const __m256i words =
      _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load8(b->scales)),
                          _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,  //
                                           4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7));
  const __m256i power = _mm256_set1_epi64x(1ll << 13 | 1ll << 26 | 1ll << 39 | 1ll << 52);
  const __m256i s = _mm256_srli_epi16(_mm256_mullo_epi16(words, power), 13);
  return odd_scales(_mm_packus_epi16(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
}

OFFSTAGE_INLINE __m128i iq_scales(const BlockIQ1_S* b) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b->qh));
  const __m128i s = _mm_and_si128(_mm_srli_epi16(words, 12), _mm_set1_epi16(7));
  return each_twice(odd_scales(_mm_packus_epi16(s, s)));
}

// The f16 bits of a superblock's scale.
template <typename Block>
OFFSTAGE_INLINE uint16_t iq_d(const Block* b) {
  return b->d;
}

OFFSTAGE_INLINE uint16_t iq_d(const BlockIQ1_M* b) {
  uint64_t words;
  __builtin_memcpy(&words, b->scales, 8);
  return static_cast<uint16_t>((words >> 12 & 0x000f) | (words >> 24 & 0x00f0) |
                               (words >> 36 & 0x0f00) | (words >> 48 & 0xf000));
}

}  // namespace
}  // namespace offstage
