// Runs of eight 32-element blocks unpacked into AVX-512 registers, in the order of ActivationRun32:
// q[2g + h], 128-bit lane b: elements 16h … 16h + 15 of block 4g + b, unsigned (w + kOffset).
// For cpu/*_avx512.cc alone; everything has internal linkage (README, "Files").
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/blocks.h"
#include "cpu/inline.h"

namespace offstage {
namespace {

// Scales of two rows travel in one register: dword 4b + 2r + g is block 4g + b of row r.
//
// kLoads 64-byte loads at kLoadBytes · i of a run; each holds the scales of 8 / kLoads blocks,
// found at multiples of kStride words (or bytes). The tables say which word goes where.
template <int kLoads, int kStride, typename Word, int kWords>
struct ScaleMap {
  Word index[kWords] = {};        // for every destination: its source within its load
  uint64_t mask[kLoads][2] = {};  // destinations that load i fills, of row 0 and row 1
  constexpr ScaleMap() {
    constexpr int kPerLoad = 8 / kLoads;
    for (int block = 0; block < 8; ++block) {
      for (int r = 0; r < 2; ++r) {
        const int at = 4 * (block % 4) + 2 * r + block / 4;
        index[at] = static_cast<Word>(block % kPerLoad * kStride);
        mask[block / kPerLoad][r] |= uint64_t{1} << at;
      }
    }
  }
};

// f16 scales at the head of blocks of 2 · kStride bytes.
template <int kLoads, int kStride>
OFFSTAGE_INLINE __m512 f16_scales(const std::byte* row0, const std::byte* row1) {
  alignas(64) static constexpr ScaleMap<kLoads, kStride, uint16_t, 32> kMap;
  const __m512i index = _mm512_load_si512(kMap.index);
  const std::byte* rows[2] = {row0, row1};
  constexpr int kWordsRead = (8 / kLoads - 1) * kStride + 1;
  if constexpr (kWordsRead <= 16) {  // a wider load would leave the run
    __m256i words = _mm256_setzero_si256();
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < kLoads; ++i)
        words = _mm256_mask_permutexvar_epi16(
            words, static_cast<__mmask16>(kMap.mask[i][r]), _mm512_castsi512_si256(index),
            _mm256_loadu_si256(
                reinterpret_cast<const __m256i*>(rows[r] + size_t{16} * kStride / kLoads * i)));
    return _mm512_cvtph_ps(words);
  }
  __m512i words = _mm512_setzero_si512();
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < kLoads; ++i)
      words = _mm512_mask_permutexvar_epi16(
          words, static_cast<__mmask32>(kMap.mask[i][r]), index,
          _mm512_loadu_si512(rows[r] + size_t{16} * kStride / kLoads * i));
  return _mm512_cvtph_ps(_mm512_castsi512_si256(words));
}

// Four blocks of kBytes with 16 bytes of nibbles at kAt: blocks 1–3 end at the end of one 64-byte
// load.
template <int kBytes, int kAt>
OFFSTAGE_INLINE __m512i nibbles4(const std::byte* group) {
  static_assert(4 * kBytes - 64 <= kBytes + kAt);
  struct Index {
    uint8_t at[64] = {};
    constexpr Index() {
      for (int i = 16; i < 64; ++i)
        at[i] = static_cast<uint8_t>(i / 16 * kBytes + kAt + i % 16 - (4 * kBytes - 64));
    }
  };
  alignas(64) static constexpr Index kIndex;
  const __m512i head =
      _mm512_zextsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group + kAt)));
  return _mm512_mask_permutexvar_epi8(head, 0xffffffffffff0000u, _mm512_load_si512(kIndex.at),
                                      _mm512_loadu_si512(group + 4 * kBytes - 64));
}

// Nibbles of a run, at the end of every block.
template <typename Block>
OFFSTAGE_INLINE void nibble_quants(const std::byte* run, __m512i* q) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int g = 0; g < 2; ++g) {
    const __m512i nibbles =
        nibbles4<sizeof(Block), sizeof(Block) - 16>(run + 4 * sizeof(Block) * g);
    q[2 * g] = _mm512_and_si512(nibbles, mask);
    q[2 * g + 1] = _mm512_and_si512(_mm512_srli_epi32(nibbles, 4), mask);
  }
}

// The same, looked up in sixteen values plus an offset.
template <typename Block>
OFFSTAGE_INLINE void lookup_quants(const std::byte* run, const int8_t* values, int offset,
                                   __m512i* q) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_add_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)),
                                          _mm_set1_epi8(static_cast<char>(offset))));
  nibble_quants<Block>(run, q);
  for (int i = 0; i < 4; ++i) q[i] = _mm512_shuffle_epi8(table, q[i]);
}

// Nibbles with fifth bits.
template <typename Block>
OFFSTAGE_INLINE void five_bit_quants(const std::byte* run, __m512i* q) {
  const __m512i fifth = _mm512_set1_epi8(16);
  const auto* block = reinterpret_cast<const Block*>(run);
  nibble_quants<Block>(run, q);
  for (int g = 0; g < 2; ++g) {
    uint64_t low = 0, high = 0;  // fifth bits of elements 0–15 and 16–31 of the four blocks
    for (int b = 0; b < 4; ++b) {
      uint32_t bits;
      std::memcpy(&bits, block[4 * g + b].qh, 4);
      low |= static_cast<uint64_t>(bits & 0xffff) << (16 * b);
      high |= static_cast<uint64_t>(bits >> 16) << (16 * b);
    }
    q[2 * g] = _mm512_mask_add_epi8(q[2 * g], _cvtu64_mask64(low), q[2 * g], fifth);
    q[2 * g + 1] = _mm512_mask_add_epi8(q[2 * g + 1], _cvtu64_mask64(high), q[2 * g + 1], fifth);
  }
}

struct FormatQ4_0 {
  using Block = BlockQ4_0;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 8;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    nibble_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<2, 9>(row0, row1);
  }
};

struct FormatQ4_1 {
  using Block = BlockQ4_1;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    nibble_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<2, 10>(row0, row1);
  }
  static OFFSTAGE_INLINE __m512 minima2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<2, 10>(row0 + 2, row1 + 2);
  }
};

struct FormatQ5_0 {
  using Block = BlockQ5_0;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 16;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    five_bit_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<4, 11>(row0, row1);
  }
};

struct FormatQ5_1 {
  using Block = BlockQ5_1;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    five_bit_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<4, 12>(row0, row1);
  }
  static OFFSTAGE_INLINE __m512 minima2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<4, 12>(row0 + 2, row1 + 2);
  }
};

struct FormatQ8_0 {
  using Block = BlockQ8_0;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 128;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int i = 0; i < 4; ++i) {
      const std::byte* at = run + 4 * 34 * (i / 2) + 2 + 16 * (i % 2);
      __m512i bytes = _mm512_zextsi128_si512(load16(at));
      bytes = _mm512_inserti32x4(bytes, load16(at + 34), 1);
      bytes = _mm512_inserti32x4(bytes, load16(at + 68), 2);
      bytes = _mm512_inserti32x4(bytes, load16(at + 102), 3);
      q[i] = _mm512_xor_si512(bytes, sign);
    }
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<4, 17>(row0, row1);
  }

 private:
  static OFFSTAGE_INLINE __m128i load16(const std::byte* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
};

struct FormatIQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 128;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    lookup_quants<Block>(run, kIq4Values, kOffset, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return f16_scales<2, 9>(row0, row1);
  }
};

struct FormatMXFP4 {
  using Block = BlockMXFP4;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 12;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    lookup_quants<Block>(run, kMxfp4Values, kOffset, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    alignas(64) static constexpr ScaleMap<2, 17, uint8_t, 64> kMap;
    const __m512i index = _mm512_load_si512(kMap.index);
    const std::byte* rows[2] = {row0, row1};
    __m512i bytes = _mm512_setzero_si512();
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 2; ++i)
        bytes = _mm512_mask_permutexvar_epi8(bytes, kMap.mask[i][r], index,
                                             _mm512_loadu_si512(rows[r] + 68 * i));
    const __m512i e = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __mmask16 subnormal = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2));
    return _mm512_castsi512_ps(
        _mm512_mask_sllv_epi32(normal, subnormal, _mm512_set1_epi32(0x00200000), e));
  }
};

}  // namespace
}  // namespace offstage
