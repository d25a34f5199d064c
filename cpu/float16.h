// f16 and bf16 ↔ float in integer arithmetic, with the bits that F16C gives (nearest even,
// subnormals kept, NaNs quieted). Internal linkage on purpose: see README, "Files".
#pragma once

#include <cstdint>
#include <cstring>

namespace offstage {

static inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[maybe_unused]] static inline float float_of_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude > 0x7c00) return float_of_bits(sign | 0x7fc00000u | (magnitude << 13));
  if (magnitude == 0x7c00) return float_of_bits(sign | 0x7f800000u);
  if (magnitude < 0x0400) {  // zero and subnormals: m · 2⁻²⁴ is exact
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return float_of_bits(sign | bits_of_float(value));
  }
  return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
}

[[maybe_unused]] static inline uint16_t f16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 2¹⁶
  if (magnitude < 0x38800000u) {  // below 2⁻¹⁴: the float adder rounds to multiples of 2⁻²⁴
    const uint32_t rounded = bits_of_float(float_of_bits(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

[[maybe_unused]] static inline float float_of_bf16(uint16_t half) {
  return float_of_bits(static_cast<uint32_t>(half) << 16);
}

// 2^(e − 128); e of 0 and 1 give the subnormals 2⁻¹²⁸ and 2⁻¹²⁷.
[[maybe_unused]] static inline float float_of_e8m0_half(uint8_t e) {
  return float_of_bits(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

}  // namespace offstage
