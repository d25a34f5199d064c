// Arithmetic over numbers that came from a file: every sum, product and rounding that could wrap
// goes through here and answers nullopt instead. Unsigned 64-bit throughout; the caller turns
// nullopt into an error with file, key and offset.
#pragma once

#include <cstdint>
#include <optional>

namespace offstage {

inline std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

inline std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// Rounds up to a multiple of `alignment` (any value ≥ 1, not only powers of two).
inline std::optional<uint64_t> checked_round_up(uint64_t value, uint64_t alignment) {
  if (alignment == 0) return std::nullopt;
  const uint64_t remainder = value % alignment;
  if (remainder == 0) return value;
  return checked_add(value, alignment - remainder);
}

// For values already known to be small: sizes of our own buffers.
constexpr uint64_t round_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}
constexpr uint64_t round_down(uint64_t value, uint64_t alignment) {
  return value / alignment * alignment;
}

}  // namespace offstage
