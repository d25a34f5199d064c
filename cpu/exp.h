// Our exp, the scalar oracle (README, "exp"); its constants are in base/arithmetic.h.
#pragma once

#include <cstdint>

#include "base/arithmetic.h"
#include "cpu/float16.h"

namespace offstage {

inline constexpr float kExpQ[5] = {kExpQ0, kExpQ1, kExpQ2, kExpQ3, kExpQ4};

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
