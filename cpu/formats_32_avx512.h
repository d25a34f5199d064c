// Runs of eight 32-element blocks unpacked into AVX-512 registers, in the order of ActivationRun32:
// q[2g + h], 128-bit lane b: elements 16h … 16h + 15 of block 4g + b, unsigned (w + kOffset), at
// most kQuantMax.
// For cpu/*_avx512.cc alone; everything has internal linkage (README, "Files").
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "base/blocks.h"
#include "cpu/inline.h"

namespace offstage {
namespace {

// Scales of two rows travel in one register: dword 4b + 2r + g is block 4g + b of row r.
constexpr int scale_lane(int block, int row) { return 4 * (block % 4) + 2 * row + block / 4; }

// Both groups of a run whose blocks have kBytes, from the start of each: with four scales in 64
// bytes, where nibbles4 reads too, one look-up finds a row's eight. Scales are Words at kAt of
// their block and go to the kEvery-th Word of their register, from kFirst on.
template <typename Word, int kBytes, int kAt, int kEvery, int kFirst>
struct ScaleMap {
  static constexpr int kPerLoad = 64 / sizeof(Word);
  Word index[kPerLoad] = {};
  uint64_t mask[2] = {};  // what belongs to row 0 and row 1
  constexpr ScaleMap() {
    static_assert(3 * kBytes + kAt + sizeof(Word) <= 64);
    for (int block = 0; block < 8; ++block) {
      for (int r = 0; r < 2; ++r) {
        const int to = kEvery * scale_lane(block, r) + kFirst;
        index[to] =
            static_cast<Word>((block % 4 * kBytes + kAt) / sizeof(Word) + block / 4 * kPerLoad);
        mask[r] |= uint64_t{1} << to;
      }
    }
  }
};

// f16 at kAt of small blocks.
template <int kBytes, int kAt>
OFFSTAGE_INLINE __m512 near_f16_scales(const std::byte* row0, const std::byte* row1) {
  alignas(64) static constexpr ScaleMap<uint16_t, kBytes, kAt, 1, 0> kMap;
  const __m512i index = _mm512_load_si512(kMap.index);
  const auto of_row = [&](const std::byte* row, uint64_t mask) {
    return _mm512_castsi512_si256(
        _mm512_maskz_permutex2var_epi16(static_cast<__mmask32>(mask), _mm512_loadu_si512(row),
                                        index, _mm512_loadu_si512(row + 4 * kBytes)));
  };
  return _mm512_cvtph_ps(_mm256_or_si256(of_row(row0, kMap.mask[0]), of_row(row1, kMap.mask[1])));
}

// The same of larger blocks: two loads for every group.
template <int kBytes, int kAt>
struct FarScaleMap {
  static constexpr int kSecond = 4 * kBytes < 128 ? 4 * kBytes - 64 : 64;  // none leaves the group
  uint16_t index[32] = {};
  uint32_t mask[2][2] = {};  // what belongs to row r of group g
  constexpr FarScaleMap() {
    for (int block = 0; block < 8; ++block) {
      for (int r = 0; r < 2; ++r) {
        const int byte = block % 4 * kBytes + kAt;
        const int to = scale_lane(block, r);
        index[to] = static_cast<uint16_t>(byte < 64 ? byte / 2 : 32 + (byte - kSecond) / 2);
        mask[r][block / 4] |= uint32_t{1} << to;
      }
    }
  }
};

template <int kBytes, int kAt>
OFFSTAGE_INLINE __m512 far_f16_scales(const std::byte* row0, const std::byte* row1) {
  alignas(64) static constexpr FarScaleMap<kBytes, kAt> kMap;
  const __m512i index = _mm512_load_si512(kMap.index);
  const auto of_group = [&](const std::byte* group, uint32_t mask) {
    return _mm512_castsi512_si256(_mm512_maskz_permutex2var_epi16(
        mask, _mm512_loadu_si512(group), index, _mm512_loadu_si512(group + kMap.kSecond)));
  };
  const auto of_row = [&](const std::byte* row, const uint32_t* mask) {
    return _mm256_or_si256(of_group(row, mask[0]), of_group(row + 4 * kBytes, mask[1]));
  };
  return _mm512_cvtph_ps(_mm256_or_si256(of_row(row0, kMap.mask[0]), of_row(row1, kMap.mask[1])));
}

// Nibbles of four blocks of kBytes, 16 bytes at kAt of each. Three of the blocks lie within one
// 64-byte load: the first three of a small block, which are where its scales come from too, or the
// last three.
template <int kBytes, int kAt>
OFFSTAGE_INLINE __m512i nibbles4(const std::byte* group) {
  static_assert(4 * kBytes - 64 <= kBytes + kAt);
  constexpr bool kFirstThree = 3 * kBytes <= 64;
  struct Index {
    uint8_t at[64] = {};
    constexpr Index() {
      for (int i = 0; i < 64; ++i) {
        const int byte = i / 16 * kBytes + kAt + i % 16;
        if constexpr (kFirstThree)
          at[i] = static_cast<uint8_t>(i < 48 ? byte : 64 + i % 16);
        else if (i >= 16)
          at[i] = static_cast<uint8_t>(byte - (4 * kBytes - 64));
      }
    }
  };
  alignas(64) static constexpr Index kIndex;
  const __m512i index = _mm512_load_si512(kIndex.at);
  const auto load16 = [&](int at) {
    return _mm512_zextsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group + at)));
  };
  if constexpr (kFirstThree)
    return _mm512_permutex2var_epi8(_mm512_loadu_si512(group), index, load16(3 * kBytes + kAt));
  return _mm512_mask_permutexvar_epi8(load16(kAt), 0xffffffffffff0000u, index,
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

// The same, looked up in sixteen values plus an offset. vpermb looks at six bits of an index: the
// table is there four times over, so that what stands above a nibble doesn't matter.
template <typename Block>
OFFSTAGE_INLINE void lookup_quants(const std::byte* run, const int8_t* values, int offset,
                                   __m512i* q) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_add_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)),
                                          _mm_set1_epi8(static_cast<char>(offset))));
  for (int g = 0; g < 2; ++g) {
    const __m512i nibbles =
        nibbles4<sizeof(Block), sizeof(Block) - 16>(run + 4 * sizeof(Block) * g);
    q[2 * g] = _mm512_permutexvar_epi8(nibbles, table);
    q[2 * g + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(nibbles, 4), table);
  }
}

// Nibbles with fifth bits: each byte looks at the byte of `qh` that has its own.
template <typename Block>
OFFSTAGE_INLINE void five_bit_quants(const std::byte* run, __m512i* q) {
  constexpr int kBytes = sizeof(Block);
  constexpr int kSecond = 4 * kBytes - 64;  // a group is two loads, as for its scales
  struct Index {
    uint8_t half[2][64] = {};
    uint8_t bit[64] = {};
    constexpr Index() {
      for (int i = 0; i < 64; ++i) {
        for (int h = 0; h < 2; ++h) {
          const int qh = static_cast<int>(offsetof(Block, qh));
          const int byte = i / 16 * kBytes + qh + 2 * h + i % 16 / 8;
          half[h][i] = static_cast<uint8_t>(byte < 64 ? byte : 64 + byte - kSecond);
        }
        bit[i] = static_cast<uint8_t>(1 << i % 8);
      }
    }
  };
  alignas(64) static constexpr Index kIndex;
  const __m512i bit = _mm512_load_si512(kIndex.bit);
  nibble_quants<Block>(run, q);
  for (int i = 0; i < 4; ++i) {
    const std::byte* group = run + 4 * kBytes * (i / 2);
    const __m512i qh =
        _mm512_permutex2var_epi8(_mm512_loadu_si512(group), _mm512_load_si512(kIndex.half[i % 2]),
                                 _mm512_loadu_si512(group + kSecond));
    q[i] = _mm512_mask_add_epi8(q[i], _mm512_test_epi8_mask(qh, bit), q[i], _mm512_set1_epi8(16));
  }
}

struct FormatQ4_0 {
  using Block = BlockQ4_0;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 8;
  static constexpr int kQuantMax = 15;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    nibble_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return near_f16_scales<18, 0>(row0, row1);
  }
};

struct FormatQ4_1 {
  using Block = BlockQ4_1;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0;
  static constexpr int kQuantMax = 15;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    nibble_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return near_f16_scales<20, 0>(row0, row1);
  }
  static OFFSTAGE_INLINE __m512 minima2(const std::byte* row0, const std::byte* row1) {
    return near_f16_scales<20, 2>(row0, row1);
  }
};

struct FormatQ5_0 {
  using Block = BlockQ5_0;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 16;
  static constexpr int kQuantMax = 31;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    five_bit_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return far_f16_scales<22, 0>(row0, row1);
  }
};

struct FormatQ5_1 {
  using Block = BlockQ5_1;
  static constexpr bool kMinima = true;
  static constexpr int kOffset = 0;
  static constexpr int kQuantMax = 31;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    five_bit_quants<Block>(run, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return far_f16_scales<24, 0>(row0, row1);
  }
  static OFFSTAGE_INLINE __m512 minima2(const std::byte* row0, const std::byte* row1) {
    return far_f16_scales<24, 2>(row0, row1);
  }
};

struct FormatQ8_0 {
  using Block = BlockQ8_0;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 128;
  static constexpr int kQuantMax = 255;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int g = 0; g < 2; ++g) {
      const std::byte* group = run + 4 * sizeof(Block) * g;
      q[2 * g] = _mm512_xor_si512(halves4<0>(group), sign);
      q[2 * g + 1] = _mm512_xor_si512(halves4<1>(group), sign);
    }
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return far_f16_scales<34, 0>(row0, row1);
  }

 private:
  // Half kHalf of four blocks, in two loads; those of the first halves have the scales too.
  template <int kHalf>
  static OFFSTAGE_INLINE __m512i halves4(const std::byte* group) {
    constexpr int kFirst = kHalf == 0 ? 0 : 18;
    constexpr int kSecond = kHalf == 0 ? 64 : 72;
    struct Index {
      uint16_t at[32] = {};
      constexpr Index() {
        for (int i = 0; i < 32; ++i) {
          const int byte = i / 8 * 34 + 2 + 16 * kHalf + i % 8 * 2;
          const bool is_first = byte < kFirst + 64;
          at[i] = static_cast<uint16_t>(is_first ? (byte - kFirst) / 2 : 32 + (byte - kSecond) / 2);
        }
      }
    };
    alignas(64) static constexpr Index kIndex;
    return _mm512_permutex2var_epi16(_mm512_loadu_si512(group + kFirst),
                                     _mm512_load_si512(kIndex.at),
                                     _mm512_loadu_si512(group + kSecond));
  }
};

struct FormatIQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 128;
  static constexpr int kQuantMax = 255;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    lookup_quants<Block>(run, kIq4Values, kOffset, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    return near_f16_scales<18, 0>(row0, row1);
  }
};

struct FormatMXFP4 {
  using Block = BlockMXFP4;
  static constexpr bool kMinima = false;
  static constexpr int kOffset = 12;
  static constexpr int kQuantMax = 24;
  static OFFSTAGE_INLINE void quants(const std::byte* run, __m512i* q) {
    lookup_quants<Block>(run, kMxfp4Values, kOffset, q);
  }
  static OFFSTAGE_INLINE __m512 scales2(const std::byte* row0, const std::byte* row1) {
    alignas(64) static constexpr ScaleMap<uint8_t, 17, 0, 4, 3> kMap;  // e << 24
    const __m512i index = _mm512_load_si512(kMap.index);
    const auto of_row = [&](const std::byte* row, uint64_t mask) {
      return _mm512_maskz_permutex2var_epi8(mask, _mm512_loadu_si512(row), index,
                                            _mm512_loadu_si512(row + 68));
    };
    const __m512i e = _mm512_or_si512(of_row(row0, kMap.mask[0]), of_row(row1, kMap.mask[1]));
    const __m512i normal = _mm512_sub_epi32(_mm512_srli_epi32(e, 1), _mm512_set1_epi32(1 << 23));
    const __mmask16 subnormal = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2 << 24));
    const __m512i tiny = _mm512_set1_epi32(0x00200000);
    return _mm512_castsi512_ps(
        _mm512_mask_sllv_epi32(normal, subnormal, tiny, _mm512_srli_epi32(e, 24)));
  }
};

}  // namespace
}  // namespace offstage
