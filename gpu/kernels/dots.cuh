// What eight lanes of a warp do to one run of 256 quantised weights, format by format: lane b loads
// its eighth, then multiplies it with activations. Blocks are read as base/blocks.h lays them out.
//
// 32-element formats: lane b holds block b, and the eight scaled sums meet in the run's tree.
// K-quants: lane b holds 16 bytes of nibbles, so two pieces of 16 elements 32 or 64 apart; the
// integer sums are exact, so which lane has which is free.
#pragma once

#include "base/blocks.h"
#include "gpu/kernels/activations.h"
#include "gpu/kernels/arithmetic.cuh"

namespace offstage::gpu {

inline constexpr uint32_t kRunLanes = 8;
inline constexpr uint32_t kNibbles = 0x0f0f0f0fu;

// Σ of 16 products: four words of weights and 16 activations.
OFFSTAGE_DEVICE int32_t dot16(const uint32_t* w, const int8_t* q, int32_t sum) {
  const Words4 a = load_16(q);
  OFFSTAGE_UNROLL
  for (int i = 0; i < 4; ++i) sum = dot4(w[i], a.at[i], sum);
  return sum;
}

struct DotQ8_0 {
  using Run = Run32;
  static constexpr uint32_t kBlockElements = 32, kBlockBytes = sizeof(BlockQ8_0);
  static constexpr int32_t kOffset = 0;
  uint32_t w[8];
  float d;

  OFFSTAGE_DEVICE void load(const std::byte* block) {
    d = float_of_f16(load_2(block));
    load_words<8>(block + 2, w);
  }
  OFFSTAGE_DEVICE int32_t sum(const Run32& x, uint32_t b) const {
    return dot16(w + 4, x.q + 32 * b + 16, dot16(w, x.q + 32 * b, 0));
  }
  OFFSTAGE_DEVICE void unpack(uint32_t* words) const {
    OFFSTAGE_UNROLL
    for (int i = 0; i < 8; ++i) words[i] = w[i];
  }
};

// Four bits, from the lowest on, as bit 4 of four bytes.
OFFSTAGE_DEVICE uint32_t fifth_bits(uint32_t bits) {
  return ((bits & 15u) * 0x00204081u & 0x01010101u) << 4;
}

// Q4_0, and Q5_0 with a word of fifth bits before its nibbles.
template <typename Block, bool kFifthBits>
struct DotNibbles {
  using Run = Run32;
  static constexpr uint32_t kBlockElements = 32, kBlockBytes = sizeof(Block);
  static constexpr int32_t kOffset = kFifthBits ? 16 : 8;
  uint32_t low[4], high[4];
  float d;

  OFFSTAGE_DEVICE void load(const std::byte* block) {
    constexpr int kFirst = kFifthBits ? 1 : 0;  // word of nibbles
    uint32_t words[kFirst + 4];
    d = float_of_f16(load_2(block));
    load_words<kFirst + 4>(block + 2, words);
    OFFSTAGE_UNROLL
    for (int i = 0; i < 4; ++i) {
      low[i] = words[kFirst + i] & kNibbles;
      high[i] = words[kFirst + i] >> 4 & kNibbles;
      if (kFifthBits) {
        low[i] |= fifth_bits(words[0] >> 4 * i);
        high[i] |= fifth_bits(words[0] >> (16 + 4 * i));
      }
    }
  }
  // The offset is taken off once.
  OFFSTAGE_DEVICE int32_t sum(const Run32& x, uint32_t b) const {
    return dot16(high, x.q + 32 * b + 16, dot16(low, x.q + 32 * b, 0)) - kOffset * x.sum[b];
  }
  OFFSTAGE_DEVICE void unpack(uint32_t* words) const {
    OFFSTAGE_UNROLL
    for (int i = 0; i < 4; ++i) {
      words[i] = low[i];
      words[4 + i] = high[i];
    }
  }
};
using DotQ4_0 = DotNibbles<BlockQ4_0, false>;
using DotQ5_0 = DotNibbles<BlockQ5_0, true>;

struct DotMxfp4 {
  using Run = Run32;
  static constexpr uint32_t kBlockElements = 32, kBlockBytes = sizeof(BlockMXFP4);
  static constexpr int32_t kOffset = 0;
  uint32_t w[4];
  float d;

  OFFSTAGE_DEVICE void load(const std::byte* block) {
    d = float_of_e8m0_half(load_1(block));
    load_words<4>(block + 1, w);
  }
  // Magnitudes by table, from the low three bits of a nibble; then those whose fourth bit is set
  // are subtracted. Nibbles come in pairs (element j, 16 + j), so activations are paired likewise.
  OFFSTAGE_DEVICE int32_t sum(const Run32& x, uint32_t b) const {
    const Words4 first = load_16(x.q + 32 * b), second = load_16(x.q + 32 * b + 16);
    int32_t plus = 0, minus = 0;
    OFFSTAGE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint32_t nibbles = i % 2 == 0 ? w[i / 2] : w[i / 2] >> 16;
      const uint32_t a =
          permute_bytes(first.at[i / 2], second.at[i / 2], i % 2 == 0 ? 0x5140u : 0x7362u);
      const uint32_t magnitudes = permute_bytes(kLow, kHigh, nibbles & 0x7777u);
      const uint32_t negative = permute_bytes(kSigns, kSigns, nibbles & 0xffffu) & magnitudes;
      plus = dot4(magnitudes ^ negative, a, plus);
      minus = dot4(negative, a, minus);
    }
    return plus - minus;
  }
  // Signed bytes: from the table of negative values where the fourth bit is set.
  OFFSTAGE_DEVICE void unpack(uint32_t* words) const {
    OFFSTAGE_UNROLL
    for (int i = 0; i < 4; ++i) {
      uint32_t pairs[2];
      for (int half = 0; half < 2; ++half) {
        const uint32_t nibbles = w[i] >> 16 * half & 0xffffu, indices = nibbles & 0x7777u;
        const uint32_t signs = (permute_bytes(kSigns, kSigns, nibbles) & 0x01010101u) * 0xffu;
        pairs[half] = (permute_bytes(kLow, kHigh, indices) & ~signs) |
                      (permute_bytes(kLowNegative, kHighNegative, indices) & signs);
      }
      words[i] = permute_bytes(pairs[0], pairs[1], 0x6420u);
      words[4 + i] = permute_bytes(pairs[0], pairs[1], 0x7531u);
    }
  }

 private:
  static constexpr uint32_t kLow = 0x03020100u, kHigh = 0x0c080604u;  // kMxfp4Values 0 … 7
  static constexpr uint32_t kLowNegative = 0xfdfeff00u, kHighNegative = 0xf4f8fafcu;
  // A byte of 0x80, or of 0xff where the nibble's fourth bit asks for its sign: no magnitude has
  // bit 7.
  static constexpr uint32_t kSigns = 0x80808080u;
};

// Where lane b's two pieces of 16 elements begin, and what scales them: scale (signed) in the low,
// min in the high half.
struct Pieces {
  uint32_t low_at, high_at;
  uint32_t low_scale, high_scale;
};

struct SuperblockSums {
  int32_t isum, msum;
};

// Scale (low 16 bits) and min (high) of group j, of the 12 bytes that Q4_K and Q5_K share.
OFFSTAGE_DEVICE uint32_t scale_and_min(const uint32_t* packed, uint32_t j) {
  const uint32_t shift = j % 4 * 8;
  const uint32_t scale = packed[0] >> shift, min = packed[1] >> shift, rest = packed[2] >> shift;
  if (j < 4) return (scale & 63u) | (min & 63u) << 16;
  return (rest & 15u) | (scale >> 6 & 3u) << 4 | (rest >> 4 & 15u) << 16 | (min >> 6 & 3u) << 20;
}

// Q4_K, and Q5_K with its fifth bits.
template <typename Block, bool kFifthBits>
struct DotScaledNibbles {
  using Run = Run256;
  static constexpr uint32_t kBlockElements = 256, kBlockBytes = sizeof(Block);
  static constexpr bool kMinima = true;
  static constexpr int32_t kOffset = 0;
  uint32_t low[4], high[4];
  uint32_t of_low, of_high;  // scale and min
  float d, dmin;

  OFFSTAGE_DEVICE void load(const std::byte* block, uint32_t lane) {
    const Words4 head = load_16(block);
    d = float_of_f16(head.at[0] & 0xffffu);
    dmin = float_of_f16(head.at[0] >> 16);
    const uint32_t pair = lane / 2;
    of_low = scale_and_min(head.at + 1, 2 * pair);
    of_high = scale_and_min(head.at + 1, 2 * pair + 1);
    const Words4 nibbles = load_16(block + (kFifthBits ? 48 : 16) + 16 * lane);
    Words4 fifths = {};
    if (kFifthBits) fifths = load_16(block + 16 + 16 * (lane % 2));
    OFFSTAGE_UNROLL
    for (int i = 0; i < 4; ++i) {
      low[i] = nibbles.at[i] & kNibbles;
      high[i] = nibbles.at[i] >> 4 & kNibbles;
      if (kFifthBits) {
        low[i] |= (fifths.at[i] >> (2 * pair) & 0x01010101u) << 4;
        high[i] |= (fifths.at[i] >> (2 * pair + 1) & 0x01010101u) << 4;
      }
    }
  }
  OFFSTAGE_DEVICE SuperblockSums sums(const Run256& x, uint32_t lane) const {
    const uint32_t at = lane / 2 * 64 + lane % 2 * 16;  // of low; high is 32 on
    const auto scale_low = static_cast<int32_t>(of_low & 0xffffu);
    const auto scale_high = static_cast<int32_t>(of_high & 0xffffu);
    const auto min_low = static_cast<int32_t>(of_low >> 16);
    const auto min_high = static_cast<int32_t>(of_high >> 16);
    return {scale_low * dot16(low, x.q + at, 0) + scale_high * dot16(high, x.q + at + 32, 0),
            min_low * x.sum16[at / 16] + min_high * x.sum16[at / 16 + 2]};
  }
  OFFSTAGE_DEVICE Pieces pieces(uint32_t lane) const {
    const uint32_t at = lane / 2 * 64 + lane % 2 * 16;
    return {at, at + 32, of_low, of_high};
  }
};
using DotQ4_K = DotScaledNibbles<BlockQ4_K, false>;
using DotQ5_K = DotScaledNibbles<BlockQ5_K, true>;

struct DotQ6_K {
  using Run = Run256;
  static constexpr uint32_t kBlockElements = 256, kBlockBytes = sizeof(BlockQ6_K);
  static constexpr bool kMinima = false;
  static constexpr int32_t kOffset = 32;
  uint32_t low[4], high[4];
  int32_t scale_low, scale_high;
  float d, dmin;

  OFFSTAGE_DEVICE void load(const std::byte* block, uint32_t lane) {
    const uint32_t half = lane / 4, piece = lane % 4;
    uint32_t nibbles[4], tops[4];
    load_words<4>(block + 16 * lane, nibbles);
    load_words<4>(block + 128 + 32 * half + 16 * (piece % 2), tops);
    scale_low = static_cast<int8_t>(load_1(block + 192 + 8 * half + piece));
    scale_high = static_cast<int8_t>(load_1(block + 192 + 8 * half + 4 + piece));
    d = float_of_f16(load_2(block + 208));
    dmin = 0.0f;
    const uint32_t shift = 2 * (piece / 2);
    OFFSTAGE_UNROLL
    for (int i = 0; i < 4; ++i) {
      low[i] = (nibbles[i] & kNibbles) | (tops[i] >> shift & 0x03030303u) << 4;
      high[i] = (nibbles[i] >> 4 & kNibbles) | (tops[i] >> (shift + 4) & 0x03030303u) << 4;
    }
  }
  // The offset is taken off per 16 elements.
  OFFSTAGE_DEVICE SuperblockSums sums(const Run256& x, uint32_t lane) const {
    const uint32_t at = lane / 4 * 128 + lane % 4 * 16;  // of low; high is 64 on
    const int32_t first = dot16(low, x.q + at, 0) - kOffset * x.sum16[at / 16];
    const int32_t second = dot16(high, x.q + at + 64, 0) - kOffset * x.sum16[at / 16 + 4];
    return {scale_low * first + scale_high * second, 0};
  }
  OFFSTAGE_DEVICE Pieces pieces(uint32_t lane) const {
    const uint32_t at = lane / 4 * 128 + lane % 4 * 16;
    return {at, at + 64, static_cast<uint32_t>(scale_low) & 0xffffu,
            static_cast<uint32_t>(scale_high) & 0xffffu};
  }
};

// The eight lanes' integers, added.
OFFSTAGE_DEVICE int32_t sum_eight(int32_t value) {
  value += shuffle_xor(value, 4u);
  value += shuffle_xor(value, 2u);
  return value + shuffle_xor(value, 1u);
}

}  // namespace offstage::gpu
