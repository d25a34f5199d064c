// K-quant superblocks unpacked into AVX-512 registers: unsigned bytes in K order, small scales as
// words. For cpu/*_avx512.cc alone; everything has internal linkage (README, "Files").
//
// Each format gives
//   kMinima       isum and msum, else isum alone
//   kOffset       what the unsigned form adds to w; Σ scale·Σa·kOffset is taken off again. 128: two
//                 products of unsigned bytes don't fit 16 bits
//   kGroup        elements that share a scale
//   quants()      q[i]: elements 64i … 64i + 63
//   scales()      16 words each of scales and minima (kMinima formats), one per 16 elements
//   d4()          d and dmin of four rows
//   kHeader       begins with the header of Q4_K; then there is also
//   pairs()       q[2h + i]: groups 4h + i and, above, 4h + i + 2: what whole loads bring
#pragma once

#include <immintrin.h>

#include <cstring>

#include "base/blocks.h"
#include "cpu/inline.h"

namespace offstage {
namespace {

OFFSTAGE_INLINE __m512i bytes512(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

OFFSTAGE_INLINE __m512i twice256(const void* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

// Counts for a shift or rotation of dwords: one for the lower 32 bytes, one for the upper.
OFFSTAGE_INLINE __m512i halves512(int lower, int upper) {
  return _mm512_inserti64x4(_mm512_set1_epi32(lower), _mm256_set1_epi32(upper), 1);
}

// Bits of `mask` from a, the others from b.
OFFSTAGE_INLINE __m512i select512(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

OFFSTAGE_INLINE __m128 f16x4(uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
  const uint64_t packed = uint64_t{a} | uint64_t{b} << 16 | uint64_t{c} << 32 | uint64_t{d} << 48;
  return _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<long long>(packed)));
}

template <typename Block>
OFFSTAGE_INLINE void d4_with_minima(const Block* const* b, __m128* d, __m128* dmin) {
  uint32_t pairs[4];
  for (int r = 0; r < 4; ++r) std::memcpy(&pairs[r], &b[r]->d, 4);
  const __m128i packed = _mm_set_epi32(static_cast<int>(pairs[3]), static_cast<int>(pairs[2]),
                                       static_cast<int>(pairs[1]), static_cast<int>(pairs[0]));
  *d = _mm_cvtph_ps(_mm_cvtepi32_epi16(packed));
  *dmin = _mm_cvtph_ps(_mm_cvtepi32_epi16(_mm_srli_epi32(packed, 16)));
}

// Q4_K's and Q5_K's 8 scales and 8 minima of 6 bits, in the order s0–3, m0–3, s4–7, m4–7.
OFFSTAGE_INLINE __m128i scale_bytes_q4_k(const uint8_t* packed) {
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed));
  int32_t last;
  std::memcpy(&last, packed + 8, 4);
  const __m128i nibbles = _mm_and_si128(
      _mm_srlv_epi32(_mm_set1_epi32(last), _mm_set_epi32(4, 0, 4, 0)), _mm_set1_epi8(15));
  const __m128i tops = _mm_and_si128(_mm_srli_epi16(low, 2), _mm_set1_epi8(0x30));
  return _mm_unpacklo_epi64(_mm_and_si128(low, _mm_set1_epi8(63)), _mm_or_si128(nibbles, tops));
}

OFFSTAGE_INLINE __m256i scales_q4_k(__m128i bytes) {
  const __m128i order = _mm_set_epi8(11, 11, 10, 10, 9, 9, 8, 8, 3, 3, 2, 2, 1, 1, 0, 0);
  return _mm256_cvtepu8_epi16(_mm_shuffle_epi8(bytes, order));
}

OFFSTAGE_INLINE __m256i minima_q4_k(__m128i bytes) {
  const __m128i order = _mm_set_epi8(15, 15, 14, 14, 13, 13, 12, 12, 7, 7, 6, 6, 5, 5, 4, 4);
  return _mm256_cvtepu8_epi16(_mm_shuffle_epi8(bytes, order));
}

struct FormatQ4_K {
  using Block = BlockQ4_K;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0, kGroup = 32;
  static constexpr bool kHeader = true;
  static OFFSTAGE_INLINE void quants(const Block* b, __m512i* q) {
    const __m512i shift = halves512(0, 4);
    for (int p = 0; p < 4; ++p)
      q[p] = _mm512_and_si512(_mm512_srlv_epi32(twice256(b->qs + 32 * p), shift), bytes512(15));
  }
  static OFFSTAGE_INLINE void pairs(const Block* b, __m512i* q) {
    for (int h = 0; h < 2; ++h) {
      const __m512i both = _mm512_loadu_si512(b->qs + 64 * h);
      q[2 * h] = _mm512_and_si512(both, bytes512(15));
      q[2 * h + 1] = _mm512_and_si512(_mm512_srli_epi32(both, 4), bytes512(15));
    }
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m256i* scale, __m256i* min) {
    const __m128i bytes = scale_bytes_q4_k(b->scales);
    *scale = scales_q4_k(bytes);
    *min = minima_q4_k(bytes);
  }
  static OFFSTAGE_INLINE void d4(const Block* const* b, __m128* d, __m128* dmin) {
    d4_with_minima(b, d, dmin);
  }
};

struct FormatQ5_K {
  using Block = BlockQ5_K;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0, kGroup = 32;
  static constexpr bool kHeader = true;
  static OFFSTAGE_INLINE void quants(const Block* b, __m512i* q) {
    const __m512i shift = halves512(0, 4), fifths = twice256(b->qh);
    for (int p = 0; p < 4; ++p) {
      // Rotating a dword by 4 − g brings bit g of every byte to its bit 4.
      const __m512i high = _mm512_rolv_epi32(fifths, halves512(4 - 2 * p, 3 - 2 * p));
      const __m512i low = _mm512_srlv_epi32(twice256(b->qs + 32 * p), shift);
      q[p] = _mm512_and_si512(select512(bytes512(15), low, high), bytes512(31));
    }
  }
  static OFFSTAGE_INLINE void pairs(const Block* b, __m512i* q) {
    const __m512i fifths = twice256(b->qh);
    for (int h = 0; h < 2; ++h) {
      const __m512i both = _mm512_loadu_si512(b->qs + 64 * h);
      for (int i = 0; i < 2; ++i) {
        const int to_bit_4 = 4 - (4 * h + i);
        const __m512i high = _mm512_rolv_epi32(fifths, halves512(to_bit_4, to_bit_4 - 2));
        const __m512i low = i == 0 ? both : _mm512_srli_epi32(both, 4);
        q[2 * h + i] = _mm512_and_si512(select512(bytes512(15), low, high), bytes512(31));
      }
    }
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m256i* scale, __m256i* min) {
    const __m128i bytes = scale_bytes_q4_k(b->scales);
    *scale = scales_q4_k(bytes);
    *min = minima_q4_k(bytes);
  }
  static OFFSTAGE_INLINE void d4(const Block* const* b, __m128* d, __m128* dmin) {
    d4_with_minima(b, d, dmin);
  }
};

struct FormatQ2_K {
  using Block = BlockQ2_K;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0, kGroup = 16;
  static OFFSTAGE_INLINE void quants(const Block* b, __m512i* q) {
    for (int h = 0; h < 2; ++h) {
      const __m512i pairs = twice256(b->qs + 32 * h);
      q[2 * h] = _mm512_and_si512(_mm512_srlv_epi32(pairs, halves512(0, 2)), bytes512(3));
      q[2 * h + 1] = _mm512_and_si512(_mm512_srlv_epi32(pairs, halves512(4, 6)), bytes512(3));
    }
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m256i* scale, __m256i* min) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales));
    const __m128i nibble = _mm_set1_epi8(15);
    *scale = _mm256_cvtepu8_epi16(_mm_and_si128(bytes, nibble));
    *min = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
  }
  static OFFSTAGE_INLINE void d4(const Block* const* b, __m128* d, __m128* dmin) {
    d4_with_minima(b, d, dmin);
  }
};

struct FormatQ3_K {
  using Block = BlockQ3_K;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 4, kGroup = 16;
  static OFFSTAGE_INLINE void quants(const Block* b, __m512i* q) {
    const __m512i thirds = twice256(b->hmask);
    for (int i = 0; i < 4; ++i) {
      const __m512i pairs = twice256(b->qs + 32 * (i / 2));
      const __m512i low = _mm512_srlv_epi32(pairs, halves512(i % 2 * 4, i % 2 * 4 + 2));
      const __m512i high = _mm512_rolv_epi32(thirds, halves512(2 - 2 * i, 1 - 2 * i));
      q[i] = _mm512_and_si512(select512(bytes512(3), low, high), bytes512(7));
    }
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m256i* scale, __m256i*) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b->scales));
    int32_t last;
    std::memcpy(&last, b->scales + 8, 4);
    const __m128i nibbles =
        _mm_and_si128(_mm_unpacklo_epi64(low, _mm_srli_epi16(low, 4)), _mm_set1_epi8(15));
    const __m128i tops = _mm_and_si128(
        _mm_srlv_epi32(_mm_set1_epi32(last), _mm_set_epi32(6, 4, 2, 0)), _mm_set1_epi8(3));
    const __m128i six = _mm_or_si128(nibbles, _mm_slli_epi16(tops, 4));
    *scale = _mm256_cvtepi8_epi16(_mm_sub_epi8(six, _mm_set1_epi8(32)));
  }
  static OFFSTAGE_INLINE void d4(const Block* const* b, __m128* d, __m128*) {
    *d = f16x4(b[0]->d, b[1]->d, b[2]->d, b[3]->d);
  }
};

struct FormatQ6_K {
  using Block = BlockQ6_K;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 32, kGroup = 16;
  static OFFSTAGE_INLINE void quants(const Block* b, __m512i* q) {
    const __m512i low_mask = bytes512(15), mask = bytes512(63);
    for (int h = 0; h < 2; ++h) {
      const __m512i low = _mm512_loadu_si512(b->ql + 64 * h);
      const __m512i high = twice256(b->qh + 32 * h);
      q[2 * h] = _mm512_and_si512(
          select512(low_mask, low, _mm512_rolv_epi32(high, halves512(4, 2))), mask);
      q[2 * h + 1] = _mm512_and_si512(
          select512(low_mask, _mm512_srli_epi32(low, 4), _mm512_rolv_epi32(high, halves512(0, -2))),
          mask);
    }
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m256i* scale, __m256i*) {
    *scale = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b->scales)));
  }
  static OFFSTAGE_INLINE void d4(const Block* const* b, __m128* d, __m128*) {
    *d = f16x4(b[0]->d, b[1]->d, b[2]->d, b[3]->d);
  }
};

}  // namespace
}  // namespace offstage
