// The IQ formats' codebooks, a byte per element, element 0 lowest, and the signs that some of them
// store seven to a group of eight. Tables are baseline data; the functions have internal linkage,
// because files of every instruction set include them (README, "Files").
#pragma once

#include <cstdint>

namespace offstage {

// Entries of eight elements (uint64_t) or four (uint32_t).
template <typename Entry, int kEntries>
struct Codebook {
  Entry entry[kEntries];
};

// Magnitudes: 8, 25, 43 (IQ2), 4 … 62 (IQ3_XXS), 1, 3 … 15 (IQ3_S).
extern const Codebook<uint64_t, 256> kCodebookIQ2_XXS;
extern const Codebook<uint64_t, 512> kCodebookIQ2_XS;
extern const Codebook<uint64_t, 1024> kCodebookIQ2_S;
extern const Codebook<uint32_t, 256> kCodebookIQ3_XXS;
extern const Codebook<uint32_t, 512> kCodebookIQ3_S;
// Eight times the ternary value plus one: 0, 8, 16. w is that − 8, and a step of ±1.
extern const Codebook<uint64_t, 2048> kCodebookIQ1;

// The low 28 bits of either dword as four bytes of seven.
[[maybe_unused]] static inline uint64_t spread_sevens(uint64_t packed) {
  return (packed & 0x0000007f0000007f) | (packed << 1 & 0x00007f0000007f00) |
         (packed << 2 & 0x007f0000007f0000) | (packed << 3 & 0x7f0000007f000000);
}

// In every byte: seven stored signs and the eighth, which makes their number even.
[[maybe_unused]] static inline uint64_t with_eighth_sign(uint64_t sevens) {
  uint64_t parity = sevens ^ (sevens >> 4);  // bits 0–3 of each byte, then 0–1, then 0
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return sevens | (parity & 0x0101010101010101) << 7;
}

}  // namespace offstage
