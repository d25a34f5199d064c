// The stored blocks of quantised weights, byte by byte as ggml writes them. Facts alone: nothing in
// this header makes code, so files of every instruction set may include it.
//
// f16 fields hold raw bits. Alignment is at most 2: a row starts anywhere a block can end.
#pragma once

#include <cstdint>

namespace offstage {

// 32 elements: value = d · (stored − offset). In the nibble formats byte i of qs holds element i in
// its low and element 16 + i in its high half.
struct BlockQ8_0 {
  uint16_t d;
  int8_t qs[32];
};
struct BlockQ4_0 {
  uint16_t d;
  uint8_t qs[16];  // offset 8
};
struct BlockQ5_0 {
  uint16_t d;
  uint8_t qh[4];   // bit i: fifth bit of element i
  uint8_t qs[16];  // offset 16
};
struct BlockMXFP4 {
  uint8_t e;       // d = 2^(e − 128)
  uint8_t qs[16];  // index into kMxfp4Values
};

// 256 elements in groups with a small scale each; value = d·scale·q − dmin·min.
struct BlockQ2_K {
  uint8_t scales[16];  // group of 16: low nibble scale, high nibble min
  uint8_t qs[64];      // byte 32h + i, bits 2s…2s+1: element 128h + 32s + i
  uint16_t d, dmin;
};
struct BlockQ3_K {
  uint8_t hmask[32];   // bit g of byte i: element 32g + i; clear means − 4
  uint8_t qs[64];      // low two bits, as Q2_K
  uint8_t scales[12];  // 16 × 6 bits, offset 32: low nibbles in 0…7, high bit pairs in 8…11
  uint16_t d;
};
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];  // 8 scales and 8 mins of 6 bits, see unpack_scales_q4_k
  uint8_t qs[128];     // byte 32p + i: low nibble element 64p + i, high nibble 64p + 32 + i
};
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];   // bit g of byte i: fifth bit of element 32g + i
  uint8_t qs[128];  // as Q4_K
};
struct BlockQ6_K {
  uint8_t ql[128];    // byte 64h + i: low nibble element 128h + i, high nibble 128h + 64 + i
  uint8_t qh[64];     // byte 32h + i, bits 2s…2s+1: high bits of element 128h + 32s + i
  int8_t scales[16];  // groups of 16
  uint16_t d;
};

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockMXFP4) == 17 && sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// OCP Microscaling e2m1, doubled so that all are integers.
inline constexpr int8_t kMxfp4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                            0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace offstage
