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
struct BlockQ4_1 {
  uint16_t d, m;  // value = d · stored + m
  uint8_t qs[16];
};
struct BlockQ5_1 {
  uint16_t d, m;
  uint8_t qh[4];  // as Q5_0
  uint8_t qs[16];
};
struct BlockIQ4_NL {
  uint16_t d;
  uint8_t qs[16];  // index into kIq4Values
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

// 256 elements as signed entries of a codebook, in groups with a small scale each. d counts eighths
// (IQ1, IQ2), quarters (IQ3_XXS) or whole units; small scales without a sign stand for 2s + 1.
struct BlockIQ4_XS {
  uint16_t d;
  uint16_t scales_h;    // bits 2g, 2g + 1: high bits of group g's scale, offset 32
  uint8_t scales_l[4];  // nibble g: low bits of group g's scale
  uint8_t qs[128];      // byte 16g + i: low nibble element 32g + i, high nibble 32g + 16 + i
};
struct BlockIQ3_S {
  uint16_t d;
  uint8_t qs[64];     // low 8 bits of the entry of elements 4i … 4i + 3
  uint8_t qh[8];      // bit i of all 64: ninth bit of entry i
  uint8_t signs[32];  // bit i of all 256: element i is negative
  uint8_t scales[4];  // nibble g: scale of group of 32 g
};
struct BlockIQ3_XXS {
  uint16_t d;
  uint8_t qs[64];                // entry of elements 4i … 4i + 3
  uint8_t scales_and_signs[32];  // dword g: 4 × 7 signs, 4 bits of scale (see codebooks.h)
};
struct BlockIQ2_S {
  uint16_t d;
  uint8_t qs[32];     // low 8 bits of the entry of elements 8i … 8i + 7
  uint8_t signs[32];  // bit i of all 256: element i is negative
  uint8_t qh[8];      // bits 2i, 2i + 1 of all 64: high bits of entry i
  uint8_t scales[8];  // nibble j: scale of group of 16 j
};
struct BlockIQ2_XS {
  uint16_t d;
  uint16_t qs[32];    // 9 bits of entry, 7 signs
  uint8_t scales[8];  // nibble j: scale of group of 16 j
};
struct BlockIQ2_XXS {
  uint16_t d;
  uint8_t qs[64];  // qword g: 4 entries of a byte each, then 4 × 7 signs and 4 bits of scale
};
struct BlockIQ1_M {
  uint8_t qs[32];     // low 8 bits of the entry of elements 8i … 8i + 7
  uint8_t qh[16];     // nibble i: 3 high bits of entry i, then 1: its step is −1, not +1
  uint8_t scales[8];  // word w: 4 × 3 bits, scales of groups of 16 4w … + 3, then nibble w of d
};
struct BlockIQ1_S {
  uint16_t d;
  uint8_t qs[32];  // as IQ1_M
  uint16_t qh[8];  // of group of 32 g: 4 × 3 high bits of its entries, 3 bits of scale, step −1
};

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockMXFP4) == 17 && sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_1) == 24 && sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockIQ4_XS) == 136 && sizeof(BlockIQ3_S) == 110);
static_assert(sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ2_S) == 82 && sizeof(BlockIQ2_XS) == 74);
static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ1_M) == 56 && sizeof(BlockIQ1_S) == 50);

// OCP Microscaling e2m1, doubled so that all are integers.
inline constexpr int8_t kMxfp4Values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                            0, -1, -2, -3, -4, -6, -8, -12};

inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

}  // namespace offstage
