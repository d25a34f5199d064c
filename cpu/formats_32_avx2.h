// 32-element blocks unpacked two at a time into AVX2 registers, in the order of ActivationRun32:
// half 0 (elements 0–15 of either block) and half 1. For cpu/*_avx2.cc alone; everything has
// internal linkage (README, "Files").
//
// Each format gives
//   kSigned   the stored form is w itself, else it is unsigned
//   kOffset   what the unsigned form adds to w
//   kMinima   blocks have a minimum too: minima() as scales()
//   kFit      how many products of a byte pair still sum within 16 bits
//   pair()    halves of blocks `block` and `block` + 1
//   scales()  of a run's eight blocks, in kRunBlockOrder
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "base/blocks.h"
#include "cpu/inline.h"
#include "cpu/lanes_avx2.h"

namespace offstage {
namespace {

template <typename Block, uint16_t Block::*kField = &Block::d>
OFFSTAGE_INLINE __m256 f16_scales(const std::byte* run) {
  const auto* b = reinterpret_cast<const Block*>(run);
  const auto d = [&](int i) { return static_cast<short>(b[i].*kField); };
  return _mm256_cvtph_ps(_mm_setr_epi16(d(0), d(4), d(2), d(6), d(1), d(5), d(3), d(7)));
}

// 16 bytes of two blocks, side by side.
template <typename Block>
OFFSTAGE_INLINE __m256i two_blocks(const Block* b, size_t at) {
  const auto* bytes = reinterpret_cast<const std::byte*>(b) + at;
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(bytes)),
                                 load16(bytes + sizeof(Block)), 1);
}

template <typename Block>
OFFSTAGE_INLINE void two_nibbles(const Block* b, size_t at, __m256i* h0, __m256i* h1) {
  const __m256i v = two_blocks(b, at), mask = _mm256_set1_epi8(15);
  *h0 = _mm256_and_si256(v, mask);
  *h1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
}

// Looks nibbles up in sixteen values.
OFFSTAGE_INLINE void look_up(__m128i values, __m256i* h0, __m256i* h1) {
  const __m256i twice = _mm256_broadcastsi128_si256(values);
  *h0 = _mm256_shuffle_epi8(twice, *h0);
  *h1 = _mm256_shuffle_epi8(twice, *h1);
}

// The fifth bits of two blocks, 16 where set: byte j of a half takes bit j of its 16.
template <typename Block>
OFFSTAGE_INLINE void add_fifths(const Block* b, __m256i* h0, __m256i* h1) {
  const auto spread = [](const uint8_t* qh) {
    int32_t value;
    __builtin_memcpy(&value, qh, 4);
    return _mm_cvtsi32_si128(value);
  };
  const __m256i bits =
      _mm256_inserti128_si256(_mm256_castsi128_si256(spread(b[0].qh)), spread(b[1].qh), 1);
  // The byte that holds it, then the bit alone.
  const __m256i byte0 =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
  const __m256i byte1 = _mm256_add_epi8(byte0, _mm256_set1_epi8(2));
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  const auto fifths = [&](__m256i bytes) {
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8(16));
  };
  *h0 = _mm256_or_si256(*h0, fifths(_mm256_shuffle_epi8(bits, byte0)));
  *h1 = _mm256_or_si256(*h1, fifths(_mm256_shuffle_epi8(bits, byte1)));
}

struct FormatQ4_0 {
  using Block = BlockQ4_0;
  static constexpr bool kSigned = false, kMinima = false;
  static constexpr int kOffset = 8, kFit = 8;
  static OFFSTAGE_INLINE void pair(const std::byte* run, int block, __m256i* h0, __m256i* h1) {
    two_nibbles(reinterpret_cast<const Block*>(run) + block, 2, h0, h1);
  }
  static OFFSTAGE_INLINE __m256 scales(const std::byte* run) { return f16_scales<Block>(run); }
};

struct FormatQ4_1 {
  using Block = BlockQ4_1;
  static constexpr bool kSigned = false, kMinima = true;
  static constexpr int kOffset = 0, kFit = 8;
  static OFFSTAGE_INLINE void pair(const std::byte* run, int block, __m256i* h0, __m256i* h1) {
    two_nibbles(reinterpret_cast<const Block*>(run) + block, 4, h0, h1);
  }
  static OFFSTAGE_INLINE __m256 scales(const std::byte* run) { return f16_scales<Block>(run); }
  static OFFSTAGE_INLINE __m256 minima(const std::byte* run) {
    return f16_scales<Block, &Block::m>(run);
  }
};

struct FormatQ5_0 {
  using Block = BlockQ5_0;
  static constexpr bool kSigned = false, kMinima = false;
  static constexpr int kOffset = 16, kFit = 4;
  static OFFSTAGE_INLINE void pair(const std::byte* run, int block, __m256i* h0, __m256i* h1) {
    const Block* b = reinterpret_cast<const Block*>(run) + block;
    two_nibbles(b, 6, h0, h1);
    add_fifths(b, h0, h1);
  }
  static OFFSTAGE_INLINE __m256 scales(const std::byte* run) { return f16_scales<Block>(run); }
};

struct FormatQ5_1 {
  using Block = BlockQ5_1;
  static constexpr bool kSigned = false, kMinima = true;
  static constexpr int kOffset = 0, kFit = 4;
  static OFFSTAGE_INLINE void pair(const std::byte* run, int block, __m256i* h0, __m256i* h1) {
    const Block* b = reinterpret_cast<const Block*>(run) + block;
    two_nibbles(b, 8, h0, h1);
    add_fifths(b, h0, h1);
  }
  static OFFSTAGE_INLINE __m256 scales(const std::byte* run) { return f16_scales<Block>(run); }
  static OFFSTAGE_INLINE __m256 minima(const std::byte* run) {
    return f16_scales<Block, &Block::m>(run);
  }
};

struct FormatQ8_0 {
  using Block = BlockQ8_0;
  static constexpr bool kSigned = true, kMinima = false;
  static constexpr int kOffset = 0, kFit = 1;
  static OFFSTAGE_INLINE void pair(const std::byte* run, int block, __m256i* h0, __m256i* h1) {
    const Block* b = reinterpret_cast<const Block*>(run) + block;
    *h0 = two_blocks(b, 2);
    *h1 = two_blocks(b, 18);
  }
  static OFFSTAGE_INLINE __m256 scales(const std::byte* run) { return f16_scales<Block>(run); }
};

struct FormatIQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr bool kSigned = true, kMinima = false;
  static constexpr int kOffset = 0, kFit = 1;
  static OFFSTAGE_INLINE void pair(const std::byte* run, int block, __m256i* h0, __m256i* h1) {
    two_nibbles(reinterpret_cast<const Block*>(run) + block, 2, h0, h1);
    look_up(load16(kIq4Values), h0, h1);
  }
  static OFFSTAGE_INLINE __m256 scales(const std::byte* run) { return f16_scales<Block>(run); }
};

struct FormatMXFP4 {
  using Block = BlockMXFP4;
  static constexpr bool kSigned = false, kMinima = false;
  static constexpr int kOffset = 12, kFit = 4;
  static OFFSTAGE_INLINE void pair(const std::byte* run, int block, __m256i* h0, __m256i* h1) {
    two_nibbles(reinterpret_cast<const Block*>(run) + block, 1, h0, h1);
    look_up(_mm_add_epi8(load16(kMxfp4Values), _mm_set1_epi8(kOffset)), h0, h1);
  }
  static OFFSTAGE_INLINE __m256 scales(const std::byte* run) {
    const auto* b = reinterpret_cast<const Block*>(run);
    const __m256i e =
        _mm256_setr_epi32(b[0].e, b[4].e, b[2].e, b[6].e, b[1].e, b[5].e, b[3].e, b[7].e);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small));
  }
};

// Sums of byte products within dwords; exact for both signed and unsigned stored forms.
template <typename Format>
OFFSTAGE_INLINE __m256i products(__m256i w, __m256i a) {
  if constexpr (Format::kSigned)  // |w| ≤ 128 and |a| ≤ 127: a pair sums within 16 bits
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return _mm256_maddubs_epi16(w, a);
}

}  // namespace
}  // namespace offstage
