// Our exp: constants for every instruction set, and the scalar oracle (README, "exp").
// Coefficients: minimax fit of (eʳ − 1 − r)/r² on |r| ≤ ln 2 / 2, weighted for relative error.
#pragma once

#include <cstdint>

#include "cpu/float16.h"

namespace offstage {

inline constexpr float kExpMin = -104.5f, kExpMax = 89.5f;
inline constexpr float kExpLog2e = 0x1.715476p+0f;
inline constexpr float kExpRound = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
inline constexpr float kExpLn2Hi = 0x1.62e43p-1f;
inline constexpr float kExpLn2Lo = -0x1.05c61p-29f;
inline constexpr float kExpQ[5] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.123a2p-7f,
                                   0x1.6a23cep-10f};

// The clamped SwiGLU's constants (README, "Sixteen lanes").
inline constexpr float kSwigluLimit = 7.0f, kSwigluAlpha = 1.702f;

[[maybe_unused]] static inline float exp_scalar(float x) {
  if (x < kExpMin) x = kExpMin;  // false for NaN, which then runs through
  if (x > kExpMax) x = kExpMax;
  const float t = __builtin_fmaf(x, kExpLog2e, kExpRound);
  const float n = t - kExpRound;
  const int32_t exponent = static_cast<int32_t>(bits_of_float(t) - bits_of_float(kExpRound));
  float r = __builtin_fmaf(-n, kExpLn2Hi, x);
  r = __builtin_fmaf(-n, kExpLn2Lo, r);
  float q = kExpQ[4];
  for (int i = 3; i >= 0; --i) q = __builtin_fmaf(q, r, kExpQ[i]);
  const float p = __builtin_fmaf(r * r, q, r) + 1.0f;
  const int32_t half = exponent >> 1;
  const float scale_a = float_of_bits(static_cast<uint32_t>(half + 127) << 23);
  const float scale_b = float_of_bits(static_cast<uint32_t>(exponent - half + 127) << 23);
  return (p * scale_a) * scale_b;
}

}  // namespace offstage
