// IQ superblocks unpacked into AVX2 registers, with the members that formats_k_avx2.h describes.
// w of the codebook formats lies in −62 … 62 and gets an offset; IQ4_XS's −127 … 113 stays signed.
// For cpu/*_avx2.cc alone; everything has internal linkage (README, "Files").
#pragma once

#include <immintrin.h>

#include <cstring>

#include "base/blocks.h"
#include "cpu/codebooks.h"
#include "cpu/inline.h"
#include "cpu/lanes_avx2.h"
#include "cpu/scales_iq_avx2.h"

namespace offstage {
namespace {

// 32 magnitudes with their signs, + 64.
OFFSTAGE_INLINE __m256i signed32(__m256i magnitudes, uint32_t signs) {
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  const __m256i spread =
      _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(signs)),
                          _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                           2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
  return _mm256_add_epi8(_mm256_sub_epi8(_mm256_xor_si256(magnitudes, minus), minus),
                         _mm256_set1_epi8(64));
}

// Four entries of eight elements. index(i) is entry i's.
template <typename Book, typename Index>
OFFSTAGE_INLINE __m256i entries8(const Book& book, Index index) {
  const auto entry = [&](int i) { return static_cast<long long>(book.entry[index(i)]); };
  return _mm256_setr_epi64x(entry(0), entry(1), entry(2), entry(3));
}

// Eight entries of four elements.
template <typename Book, typename Index>
OFFSTAGE_INLINE __m256i entries4(const Book& book, Index index) {
  const auto entry = [&](int i) { return static_cast<int>(book.entry[index(i)]); };
  return _mm256_setr_epi32(entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6),
                           entry(7));
}

OFFSTAGE_INLINE uint32_t seven_signs4(uint32_t packed) {
  return static_cast<uint32_t>(with_eighth_sign(spread_sevens(packed)));
}

// What all have in common; Format::group() gives 32 elements.
template <typename Format, typename Stored>
struct FormatIQ {
  using Block = Stored;
  static constexpr bool kMinima = false;
  static OFFSTAGE_INLINE void pair(const Block* b, int p, __m256i* low, __m256i* high) {
    *low = Format::group(b, 2 * p);
    *high = Format::group(b, 2 * p + 1);
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m128i* scale, __m128i* min) {
    *scale = *min = iq_scales(b);
  }
  static OFFSTAGE_INLINE uint16_t d(const Block* b) { return iq_d(b); }
};

struct FormatIQ4_XS : FormatIQ<FormatIQ4_XS, BlockIQ4_XS> {
  static constexpr int kOffset = 0, kGroup = 32, kLargest = 127;
  static constexpr float kUnit = 1;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    const __m128i nibbles = load16(b->qs + 16 * g), mask = _mm_set1_epi8(15);
    const __m256i both =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_and_si128(nibbles, mask)),
                                _mm_and_si128(_mm_srli_epi16(nibbles, 4), mask), 1);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(kIq4Values)), both);
  }
};

struct FormatIQ3_S : FormatIQ<FormatIQ3_S, BlockIQ3_S> {
  static constexpr int kOffset = 64, kGroup = 32, kLargest = 79;
  static constexpr float kUnit = 1;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    const uint32_t high = b->qh[g];
    uint32_t signs;
    std::memcpy(&signs, b->signs + 4 * g, 4);
    return signed32(entries4(kCodebookIQ3_S,
                             [&](int i) { return b->qs[8 * g + i] | (high << (8 - i) & 0x100); }),
                    signs);
  }
};

struct FormatIQ3_XXS : FormatIQ<FormatIQ3_XXS, BlockIQ3_XXS> {
  static constexpr int kOffset = 64, kGroup = 32, kLargest = 126;
  static constexpr float kUnit = 0.25f;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    uint32_t packed;
    std::memcpy(&packed, b->scales_and_signs + 4 * g, 4);
    return signed32(entries4(kCodebookIQ3_XXS, [&](int i) { return b->qs[8 * g + i]; }),
                    seven_signs4(packed));
  }
};

struct FormatIQ2_S : FormatIQ<FormatIQ2_S, BlockIQ2_S> {
  static constexpr int kOffset = 64, kGroup = 16, kLargest = 107;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    const uint32_t high = b->qh[g];
    uint32_t signs;
    std::memcpy(&signs, b->signs + 4 * g, 4);
    const auto index = [&](int i) { return b->qs[4 * g + i] | (high << (8 - 2 * i) & 0x300); };
    return signed32(entries8(kCodebookIQ2_S, index), signs);
  }
};

struct FormatIQ2_XS : FormatIQ<FormatIQ2_XS, BlockIQ2_XS> {
  static constexpr int kOffset = 64, kGroup = 16, kLargest = 107;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    const uint16_t* qs = b->qs + 4 * g;
    const __m128i sevens = _mm_srli_epi16(load8(qs), 9);
    const auto bytes = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_packus_epi16(sevens, sevens)));
    return signed32(entries8(kCodebookIQ2_XS, [&](int i) { return qs[i] & 511; }),
                    static_cast<uint32_t>(with_eighth_sign(bytes)));
  }
};

struct FormatIQ2_XXS : FormatIQ<FormatIQ2_XXS, BlockIQ2_XXS> {
  static constexpr int kOffset = 64, kGroup = 32, kLargest = 107;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    uint32_t packed;
    std::memcpy(&packed, b->qs + 8 * g + 4, 4);
    return signed32(entries8(kCodebookIQ2_XXS, [&](int i) { return b->qs[8 * g + i]; }),
                    seven_signs4(packed));
  }
};

struct FormatIQ1_M : FormatIQ<FormatIQ1_M, BlockIQ1_M> {
  static constexpr int kOffset = 16, kGroup = 16, kLargest = 25;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    uint16_t high;
    std::memcpy(&high, b->qh + 2 * g, 2);
    const auto index = [&](int i) {
      return b->qs[4 * g + i] | (uint32_t{high} << 8 >> 4 * i & 0x700);
    };
    const auto step = [&](int i) { return (high >> (4 * i + 3) & 1) != 0 ? kDown : kUp; };
    return _mm256_add_epi8(entries8(kCodebookIQ1, index),
                           _mm256_setr_epi64x(step(0), step(1), step(2), step(3)));
  }

 private:
  // w + 16 from the stored 8 · (value + 1): + 8, and the step.
  static constexpr long long kUp = 0x0909090909090909, kDown = 0x0707070707070707;
};

struct FormatIQ1_S : FormatIQ<FormatIQ1_S, BlockIQ1_S> {
  static constexpr int kOffset = 16, kGroup = 32, kLargest = 25;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m256i group(const Block* b, int g) {
    const uint32_t high = b->qh[g];
    const auto index = [&](int i) { return b->qs[4 * g + i] | (high << 8 >> 3 * i & 0x700); };
    return _mm256_add_epi8(entries8(kCodebookIQ1, index),
                           _mm256_set1_epi8(high < 0x8000 ? 9 : 7));  // as IQ1_M
  }
};

}  // namespace
}  // namespace offstage
