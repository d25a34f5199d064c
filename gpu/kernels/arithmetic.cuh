// The specified arithmetic (cpu/README.md) that several kernels need: exp, f16, sixteen lanes.
#pragma once

#include "base/arithmetic.h"
#include "gpu/kernels/intrinsics.cuh"
#include "gpu/kernels/kernels.h"

namespace offstage::gpu {

inline constexpr uint32_t kWarp = 32;
inline constexpr uint32_t kQuietNan = 0x7fc00000u, kInfBits = 0x7f800000u,
                          kLowestBits = 0xff800000u;

OFFSTAGE_DEVICE float exp_exact(float x) {
  if (x < kExpMin) x = kExpMin;  // false for NaN, which then runs through
  if (x > kExpMax) x = kExpMax;
  const float t = fused(x, kExpLog2e, kExpRound);
  const float n = t - kExpRound;
  const int32_t exponent = static_cast<int32_t>(bits_of_float(t) - bits_of_float(kExpRound));
  float r = fused(-n, kExpLn2Hi, x);
  r = fused(-n, kExpLn2Lo, r);
  float q = fused(kExpQ4, r, kExpQ3);
  q = fused(q, r, kExpQ2);
  q = fused(q, r, kExpQ1);
  q = fused(q, r, kExpQ0);
  const float p = fused(r * r, q, r) + 1.0f;
  const int32_t half = exponent >> 1;
  const float scale_a = float_of_bits(static_cast<uint32_t>(half + 127) << 23);
  const float scale_b = float_of_bits(static_cast<uint32_t>(exponent - half + 127) << 23);
  return (p * scale_a) * scale_b;
}

OFFSTAGE_DEVICE float sigmoid(float x) { return divided(1.0f, 1.0f + exp_exact(-x)); }

OFFSTAGE_DEVICE float activated(Activation activation, float gate, float up) {
  if (activation == Activation::kSwiglu) return divided(gate, 1.0f + exp_exact(-gate)) * up;
  const float g = gate > kSwigluLimit ? kSwigluLimit : gate;
  float u = up > kSwigluLimit ? kSwigluLimit : up;
  u = u < -kSwigluLimit ? -kSwigluLimit : u;
  return divided(g, 1.0f + exp_exact(-(kSwigluAlpha * g))) * (u + 1.0f);
}

// Nearest even of |value| < 2²².
OFFSTAGE_DEVICE int32_t round_small(float value) {
  return static_cast<int32_t>(bits_of_float(value + kExpRound) - bits_of_float(kExpRound));
}

OFFSTAGE_DEVICE float float_of_f16(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00)
    return float_of_bits(sign | (magnitude > 0x7c00 ? kQuietNan : kInfBits) | magnitude << 13);
  if (magnitude < 0x0400) {  // zero and subnormals: m · 2⁻²⁴ is exact
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return float_of_bits(sign | bits_of_float(value));
  }
  return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
}

OFFSTAGE_DEVICE uint32_t f16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > kInfBits) return sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 2¹⁶
  if (magnitude < 0x38800000u) {  // below 2⁻¹⁴: the float adder rounds to multiples of 2⁻²⁴
    const uint32_t rounded = bits_of_float(float_of_bits(magnitude) + 0.5f);
    return sign | (rounded - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | ((rounded - (112u << 23)) >> 13);
}

OFFSTAGE_DEVICE float float_of_e8m0_half(uint32_t e) {
  return float_of_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

// The tree of sixteen lanes, in each half of the warp: l + (l + 8), then + 4, + 2, + 1. Adding
// commutes, so every lane ends with the sum.
OFFSTAGE_DEVICE float sum_sixteen(float lane) {
  for (uint32_t distance = 8; distance > 0; distance /= 2)
    lane = lane + shuffle_xor(lane, distance);
  return lane;
}

// kCount words from any address. Reads only aligned words that hold a wanted byte, so at most three
// bytes around the range: memory that kernels read ends at a multiple of 4.
template <int kCount>
OFFSTAGE_DEVICE void load_words(const std::byte* at, uint32_t* words) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const std::byte* aligned = at - address % 4;
  const uint32_t shift = static_cast<uint32_t>(address % 4) * 8;
  uint32_t low = load_4(aligned);
  OFFSTAGE_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const bool needed = i + 1 < kCount || shift != 0;
    const uint32_t high = needed ? load_4(aligned + 4 * (i + 1)) : 0;
    words[i] = funnel_right(low, high, shift);
    low = high;
  }
}

}  // namespace offstage::gpu
