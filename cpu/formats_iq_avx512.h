// IQ superblocks unpacked into AVX-512 registers, with the members that formats_k_avx512.h
// describes. For cpu/*_avx512.cc alone; everything has internal linkage (README, "Files").
#pragma once

#include <immintrin.h>

#include <cstring>

#include "base/blocks.h"
#include "cpu/codebooks.h"
#include "cpu/formats_k_avx512.h"
#include "cpu/inline.h"
#include "cpu/scales_iq_avx2.h"

namespace offstage {
namespace {

OFFSTAGE_INLINE uint64_t bits64(const void* p) {
  uint64_t bits;
  std::memcpy(&bits, p, 8);
  return bits;
}

// 64 magnitudes with their signs, + 64.
OFFSTAGE_INLINE __m512i signed64(__m512i magnitudes, uint64_t signs) {
  const __m512i offset = bytes512(64);
  return _mm512_mask_sub_epi8(_mm512_add_epi8(offset, magnitudes), _cvtu64_mask64(signs), offset,
                              magnitudes);
}

// Eight entries of eight elements. index(i) is entry i's.
template <typename Book, typename Index>
OFFSTAGE_INLINE __m512i entries8(const Book& book, Index index) {
  // Loads into either half of a register: as scalars they would go through general registers.
  const auto two = [&](int i) {
    const __m128 low =
        _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&book.entry[index(i)])));
    return _mm_castps_si128(
        _mm_loadh_pi(low, reinterpret_cast<const __m64*>(&book.entry[index(i + 1)])));
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(two(2), two(0))),
                            _mm256_set_m128i(two(6), two(4)), 1);
}

// Sixteen entries of four elements.
template <typename Book, typename Index>
OFFSTAGE_INLINE __m512i entries4(const Book& book, Index index) {
  const auto four = [&](int i) {
    const auto entry = [&](int j) { return static_cast<int>(book.entry[index(i + j)]); };
    return _mm_setr_epi32(entry(0), entry(1), entry(2), entry(3));
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(four(4), four(0))),
                            _mm256_set_m128i(four(12), four(8)), 1);
}

// What all have in common; Format::quarter() gives 64 elements.
template <typename Format, typename Stored>
struct FormatIQ {
  using Block = Stored;
  static constexpr bool kMinima = false;
  static OFFSTAGE_INLINE void quants(const Block* b, __m512i* q) {
    for (int i = 0; i < 4; ++i) q[i] = Format::quarter(b, i);
  }
  static OFFSTAGE_INLINE void scales(const Block* b, __m256i* scale, __m256i*) {
    *scale = _mm256_cvtepi8_epi16(iq_scales(b));
  }
  static OFFSTAGE_INLINE void d4(const Block* const* b, __m128* d, __m128*) {
    *d = _mm_mul_ps(f16x4(iq_d(b[0]), iq_d(b[1]), iq_d(b[2]), iq_d(b[3])),
                    _mm_set1_ps(Format::kUnit));
  }
};

struct FormatIQ4_XS : FormatIQ<FormatIQ4_XS, BlockIQ4_XS> {
  static constexpr int kOffset = 128, kGroup = 32;
  static constexpr float kUnit = 1;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    const __m512i values = _mm512_xor_si512(
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Values))),
        bytes512(kOffset));
    // 16 bytes of either group, twice each: low nibbles, then high ones.
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3),
                                                   twice256(b->qs + 32 * i));
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    return _mm512_shuffle_epi8(values,
                               _mm512_and_si512(_mm512_srlv_epi32(twice, shift), bytes512(15)));
  }
};

struct FormatIQ3_S : FormatIQ<FormatIQ3_S, BlockIQ3_S> {
  static constexpr int kOffset = 64, kGroup = 32;
  static constexpr float kUnit = 1;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    const uint32_t high = uint32_t{b->qh[2 * i]} | uint32_t{b->qh[2 * i + 1]} << 8;
    const auto index = [&](int j) { return b->qs[16 * i + j] | (high << 8 >> j & 0x100); };
    return signed64(entries4(kCodebookIQ3_S, index), bits64(b->signs + 8 * i));
  }
};

struct FormatIQ3_XXS : FormatIQ<FormatIQ3_XXS, BlockIQ3_XXS> {
  static constexpr int kOffset = 64, kGroup = 32;
  static constexpr float kUnit = 0.25f;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    return signed64(entries4(kCodebookIQ3_XXS, [&](int j) { return b->qs[16 * i + j]; }),
                    with_eighth_sign(spread_sevens(bits64(b->scales_and_signs + 8 * i))));
  }
};

struct FormatIQ2_S : FormatIQ<FormatIQ2_S, BlockIQ2_S> {
  static constexpr int kOffset = 64, kGroup = 16;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    const uint32_t high = uint32_t{b->qh[2 * i]} | uint32_t{b->qh[2 * i + 1]} << 8;
    const auto index = [&](int j) { return b->qs[8 * i + j] | (high << 8 >> 2 * j & 0x300); };
    return signed64(entries8(kCodebookIQ2_S, index), bits64(b->signs + 8 * i));
  }
};

struct FormatIQ2_XS : FormatIQ<FormatIQ2_XS, BlockIQ2_XS> {
  static constexpr int kOffset = 64, kGroup = 16;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    const uint16_t* qs = b->qs + 8 * i;
    const __m128i sevens = _mm_srli_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(qs)), 9);
    const auto bytes = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(sevens, sevens)));
    return signed64(entries8(kCodebookIQ2_XS, [&](int j) { return qs[j] & 511; }),
                    with_eighth_sign(bytes));
  }
};

struct FormatIQ2_XXS : FormatIQ<FormatIQ2_XXS, BlockIQ2_XXS> {
  static constexpr int kOffset = 64, kGroup = 32;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    const uint8_t* qs = b->qs + 16 * i;
    const uint64_t packed = bits64(qs) >> 32 | (bits64(qs + 8) & 0xffffffff00000000u);
    const auto index = [&](int j) { return qs[j < 4 ? j : j + 4]; };
    return signed64(entries8(kCodebookIQ2_XXS, index), with_eighth_sign(spread_sevens(packed)));
  }
};

// w + 16 from the stored 8 · (value + 1) of eight entries: + 8, and a step of ±1 each.
OFFSTAGE_INLINE __m512i with_steps(__m512i entries, __mmask8 down) {
  return _mm512_add_epi8(entries, _mm512_mask_blend_epi64(down, bytes512(9), bytes512(7)));
}

struct FormatIQ1_M : FormatIQ<FormatIQ1_M, BlockIQ1_M> {
  static constexpr int kOffset = 16, kGroup = 16;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    uint32_t high;
    std::memcpy(&high, b->qh + 4 * i, 4);
    const auto index = [&](int j) {
      return b->qs[8 * i + j] | (static_cast<uint32_t>(uint64_t{high} << 8 >> 4 * j) & 0x700);
    };
    uint32_t down = high >> 3 & 0x11111111;  // bit 4j → bit j
    down = (down | down >> 3) & 0x03030303;
    down = (down | down >> 6) & 0x000f000f;
    return with_steps(entries8(kCodebookIQ1, index), static_cast<__mmask8>(down | down >> 12));
  }
};

struct FormatIQ1_S : FormatIQ<FormatIQ1_S, BlockIQ1_S> {
  static constexpr int kOffset = 16, kGroup = 32;
  static constexpr float kUnit = 0.125f;
  static OFFSTAGE_INLINE __m512i quarter(const Block* b, int i) {
    const auto index = [&](int j) {
      return b->qs[8 * i + j] | (uint32_t{b->qh[2 * i + j / 4]} << 8 >> 3 * (j % 4) & 0x700);
    };
    const uint32_t down = (b->qh[2 * i] >> 15) * 0x0fu | (b->qh[2 * i + 1] >> 15) * 0xf0u;
    return with_steps(entries8(kCodebookIQ1, index), static_cast<__mmask8>(down));
  }
};

}  // namespace
}  // namespace offstage
