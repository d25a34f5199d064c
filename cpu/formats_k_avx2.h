// K-quant superblocks unpacked into AVX2 registers: unsigned bytes in K order, small scales as
// bytes. For cpu/*_avx2.cc alone; everything has internal linkage (README, "Files").
//
// Each format gives
//   kMinima      isum and msum, else isum alone
//   kOffset      what the unsigned form adds to w; Σ scale·Σa·kOffset is taken off again. 0 without
//                minima: the form is signed
//   kGroup       elements that share a scale
//   kLargest     of the unsigned form, so that sums of products are known to fit 16 bits
//   pair()       elements 64p … + 31 and 64p + 32 … + 63
//   scales()     16 signed bytes each of scales and minima, one per 16 elements
//   d(), kUnit   where the block has no plain d, or counts it in another unit
#pragma once

#include <immintrin.h>

#include "base/blocks.h"
#include "cpu/inline.h"
#include "cpu/lanes_avx2.h"

namespace offstage {
namespace {

OFFSTAGE_INLINE __m256i bytes256(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }

// Bits g … of every byte brought down to bit 0, then masked.
OFFSTAGE_INLINE __m256i bits_at(__m256i v, int g, int mask) {
  return _mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi32_si128(g)), bytes256(mask));
}

// The same, brought to bit `to`.
OFFSTAGE_INLINE __m256i bits_to(__m256i v, int g, int mask, int to) {
  return _mm256_sll_epi16(bits_at(v, g, mask), _mm_cvtsi32_si128(to));
}

// Q4_K's and Q5_K's 8 scales and 8 minima of 6 bits, each doubled: one per 16 elements.
OFFSTAGE_INLINE void scales_q4_k(const uint8_t* packed, __m128i* scale, __m128i* min) {
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed));
  int32_t last;
  __builtin_memcpy(&last, packed + 8, 4);
  const __m128i nibbles = _mm_and_si128(
      _mm_srlv_epi32(_mm_set1_epi32(last), _mm_set_epi32(4, 0, 4, 0)), _mm_set1_epi8(15));
  const __m128i tops = _mm_and_si128(_mm_srli_epi16(low, 2), _mm_set1_epi8(0x30));
  // s0–3, m0–3, s4–7, m4–7
  const __m128i all =
      _mm_unpacklo_epi64(_mm_and_si128(low, _mm_set1_epi8(63)), _mm_or_si128(nibbles, tops));
  *scale = _mm_shuffle_epi8(all, _mm_set_epi8(11, 11, 10, 10, 9, 9, 8, 8, 3, 3, 2, 2, 1, 1, 0, 0));
  *min =
      _mm_shuffle_epi8(all, _mm_set_epi8(15, 15, 14, 14, 13, 13, 12, 12, 7, 7, 6, 6, 5, 5, 4, 4));
}

struct FormatQ4_K {
  using Block = BlockQ4_K;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0, kGroup = 32, kLargest = 15;
  static OFFSTAGE_INLINE void pair(const Block* b, int p, __m256i* low, __m256i* high) {
    const __m256i v = load32(b->qs + 32 * p);
    *low = bits_at(v, 0, 15);
    *high = bits_at(v, 4, 15);
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m128i* scale, __m128i* min) {
    scales_q4_k(b->scales, scale, min);
  }
};

struct FormatQ5_K {
  using Block = BlockQ5_K;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0, kGroup = 32, kLargest = 31;
  static OFFSTAGE_INLINE void pair(const Block* b, int p, __m256i* low, __m256i* high) {
    const __m256i v = load32(b->qs + 32 * p), fifths = load32(b->qh);
    *low = _mm256_or_si256(bits_at(v, 0, 15), bits_to(fifths, 2 * p, 1, 4));
    *high = _mm256_or_si256(bits_at(v, 4, 15), bits_to(fifths, 2 * p + 1, 1, 4));
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m128i* scale, __m128i* min) {
    scales_q4_k(b->scales, scale, min);
  }
};

struct FormatQ2_K {
  using Block = BlockQ2_K;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0, kGroup = 16, kLargest = 3;
  static OFFSTAGE_INLINE void pair(const Block* b, int p, __m256i* low, __m256i* high) {
    const __m256i v = load32(b->qs + 32 * (p / 2));
    *low = bits_at(v, p % 2 * 4, 3);
    *high = bits_at(v, p % 2 * 4 + 2, 3);
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m128i* scale, __m128i* min) {
    const __m128i v = load16(b->scales), nibble = _mm_set1_epi8(15);
    *scale = _mm_and_si128(v, nibble);
    *min = _mm_and_si128(_mm_srli_epi16(v, 4), nibble);
  }
};

struct FormatQ3_K {
  using Block = BlockQ3_K;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 4, kGroup = 16, kLargest = 7;
  static OFFSTAGE_INLINE void pair(const Block* b, int p, __m256i* low, __m256i* high) {
    const __m256i v = load32(b->qs + 32 * (p / 2)), thirds = load32(b->hmask);
    *low = _mm256_or_si256(bits_at(v, p % 2 * 4, 3), bits_to(thirds, 2 * p, 1, 2));
    *high = _mm256_or_si256(bits_at(v, p % 2 * 4 + 2, 3), bits_to(thirds, 2 * p + 1, 1, 2));
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m128i* scale, __m128i* min) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b->scales));
    int32_t last;
    __builtin_memcpy(&last, b->scales + 8, 4);
    const __m128i nibbles =
        _mm_and_si128(_mm_unpacklo_epi64(low, _mm_srli_epi16(low, 4)), _mm_set1_epi8(15));
    const __m128i tops = _mm_and_si128(
        _mm_srlv_epi32(_mm_set1_epi32(last), _mm_set_epi32(6, 4, 2, 0)), _mm_set1_epi8(3));
    const __m128i six = _mm_or_si128(nibbles, _mm_slli_epi16(tops, 4));
    *scale = _mm_sub_epi8(six, _mm_set1_epi8(32));
    *min = *scale;
  }
};

struct FormatQ6_K {
  using Block = BlockQ6_K;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 32, kGroup = 16, kLargest = 63;
  static OFFSTAGE_INLINE void pair(const Block* b, int p, __m256i* low, __m256i* high) {
    const int shift = p % 2 * 4;
    const __m256i a = load32(b->ql + 64 * (p / 2)), c = load32(b->ql + 64 * (p / 2) + 32);
    const __m256i tops = load32(b->qh + 32 * (p / 2));
    *low = _mm256_or_si256(bits_at(a, shift, 15), bits_to(tops, shift, 3, 4));
    *high = _mm256_or_si256(bits_at(c, shift, 15), bits_to(tops, shift + 2, 3, 4));
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m128i* scale, __m128i* min) {
    *scale = *min = load16(b->scales);
  }
};

}  // namespace
}  // namespace offstage
