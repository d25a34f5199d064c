// The IQ formats of 256 elements, unpacked to integers. Values and bit positions: blocks.h.
#include <cstring>

#include "base/blocks.h"
#include "base/check.h"
#include "cpu/codebooks.h"
#include "cpu/float16.h"
#include "cpu/weight_run.h"

namespace offstage {
namespace {

// Element i of an entry, negative where its bit of `signs` is set.
template <typename Entry>
void unpack_entry(Entry entry, unsigned signs, int8_t* q) {
  for (unsigned i = 0; i < sizeof(Entry); ++i) {
    const int magnitude = static_cast<int>(entry >> (8 * i) & 0xff);
    q[i] = static_cast<int8_t>((signs >> i & 1) != 0 ? -magnitude : magnitude);
  }
}

unsigned nibble(const uint8_t* bytes, int at) { return bytes[at / 2] >> (at % 2 * 4) & 15u; }

// Scales that stand for odd numbers.
int16_t odd(unsigned s) { return static_cast<int16_t>(2 * s + 1); }

unsigned seven_signs(uint32_t packed, int at) {
  return static_cast<unsigned>(with_eighth_sign(spread_sevens(packed)) >> (8 * at) & 0xff);
}

void unpack_superblock(const BlockIQ4_XS& block, WeightRun* out) {
  out->d = float_of_f16(block.d);
  for (int g = 0; g < 8; ++g) {
    const unsigned scale = nibble(block.scales_l, g) | (block.scales_h >> (2 * g) & 3u) << 4;
    out->scale[2 * g] = out->scale[2 * g + 1] = static_cast<int16_t>(static_cast<int>(scale) - 32);
    for (int i = 0; i < 16; ++i) {
      out->q[32 * g + i] = kIq4Values[block.qs[16 * g + i] & 15];
      out->q[32 * g + 16 + i] = kIq4Values[block.qs[16 * g + i] >> 4];
    }
  }
}

void unpack_superblock(const BlockIQ3_S& block, WeightRun* out) {
  out->d = float_of_f16(block.d);
  for (int j = 0; j < 16; ++j) out->scale[j] = odd(nibble(block.scales, j / 2));
  for (int e = 0; e < 64; ++e) {
    const unsigned index = block.qs[e] | (block.qh[e / 8] >> (e % 8) & 1u) << 8;
    unpack_entry(kCodebookIQ3_S.entry[index], block.signs[e / 2] >> (e % 2 * 4), out->q + 4 * e);
  }
}

void unpack_superblock(const BlockIQ3_XXS& block, WeightRun* out) {
  out->d = 0.25f * float_of_f16(block.d);
  for (int g = 0; g < 8; ++g) {
    uint32_t packed;
    std::memcpy(&packed, block.scales_and_signs + 4 * g, 4);
    out->scale[2 * g] = out->scale[2 * g + 1] = odd(packed >> 28);
    for (int e = 0; e < 8; ++e)
      unpack_entry(kCodebookIQ3_XXS.entry[block.qs[8 * g + e]],
                   seven_signs(packed, e / 2) >> (e % 2 * 4), out->q + 32 * g + 4 * e);
  }
}

void unpack_superblock(const BlockIQ2_S& block, WeightRun* out) {
  out->d = 0.125f * float_of_f16(block.d);
  for (int j = 0; j < 16; ++j) out->scale[j] = odd(nibble(block.scales, j));
  for (int e = 0; e < 32; ++e) {
    const unsigned index = block.qs[e] | (block.qh[e / 4] >> (e % 4 * 2) & 3u) << 8;
    unpack_entry(kCodebookIQ2_S.entry[index], block.signs[e], out->q + 8 * e);
  }
}

void unpack_superblock(const BlockIQ2_XS& block, WeightRun* out) {
  out->d = 0.125f * float_of_f16(block.d);
  for (int j = 0; j < 16; ++j) out->scale[j] = odd(nibble(block.scales, j));
  for (int e = 0; e < 32; ++e)
    unpack_entry(kCodebookIQ2_XS.entry[block.qs[e] & 511], seven_signs(block.qs[e] >> 9, 0),
                 out->q + 8 * e);
}

void unpack_superblock(const BlockIQ2_XXS& block, WeightRun* out) {
  out->d = 0.125f * float_of_f16(block.d);
  for (int g = 0; g < 8; ++g) {
    uint32_t packed;
    std::memcpy(&packed, block.qs + 8 * g + 4, 4);
    out->scale[2 * g] = out->scale[2 * g + 1] = odd(packed >> 28);
    for (int e = 0; e < 4; ++e)
      unpack_entry(kCodebookIQ2_XXS.entry[block.qs[8 * g + e]], seven_signs(packed, e),
                   out->q + 32 * g + 8 * e);
  }
}

// Eight times the ternary value, and the step.
void unpack_ternary(uint64_t entry, int step, int8_t* q) {
  for (unsigned i = 0; i < 8; ++i)
    q[i] = static_cast<int8_t>(static_cast<int>(entry >> (8 * i) & 0xff) - 8 + step);
}

void unpack_superblock(const BlockIQ1_M& block, WeightRun* out) {
  unsigned d = 0;
  for (int w = 0; w < 4; ++w) {
    const unsigned word = block.scales[2 * w] | block.scales[2 * w + 1] << 8;
    d |= word >> 12 << (4 * w);
    for (int j = 0; j < 4; ++j) out->scale[4 * w + j] = odd(word >> (3 * j) & 7);
  }
  out->d = 0.125f * float_of_f16(static_cast<uint16_t>(d));
  for (int e = 0; e < 32; ++e) {
    const unsigned high = nibble(block.qh, e);
    unpack_ternary(kCodebookIQ1.entry[block.qs[e] | (high & 7) << 8], high < 8 ? 1 : -1,
                   out->q + 8 * e);
  }
}

void unpack_superblock(const BlockIQ1_S& block, WeightRun* out) {
  out->d = 0.125f * float_of_f16(block.d);
  for (int g = 0; g < 8; ++g) {
    const unsigned high = block.qh[g];
    out->scale[2 * g] = out->scale[2 * g + 1] = odd(high >> 12 & 7);
    for (int e = 0; e < 4; ++e)
      unpack_ternary(kCodebookIQ1.entry[block.qs[4 * g + e] | (high >> (3 * e) & 7) << 8],
                     high < 0x8000 ? 1 : -1, out->q + 32 * g + 8 * e);
  }
}

template <typename Block>
void unpack(const std::byte* row, uint32_t run, WeightRun* out) {
  out->dmin = 0;
  std::memset(out->min, 0, sizeof out->min);
  unpack_superblock(reinterpret_cast<const Block*>(row)[run], out);
}

}  // namespace

void unpack_run_iq(TensorType type, const std::byte* row, uint32_t run, WeightRun* out) {
  switch (type) {
    case TensorType::kIQ4_XS: return unpack<BlockIQ4_XS>(row, run, out);
    case TensorType::kIQ3_S: return unpack<BlockIQ3_S>(row, run, out);
    case TensorType::kIQ3_XXS: return unpack<BlockIQ3_XXS>(row, run, out);
    case TensorType::kIQ2_S: return unpack<BlockIQ2_S>(row, run, out);
    case TensorType::kIQ2_XS: return unpack<BlockIQ2_XS>(row, run, out);
    case TensorType::kIQ2_XXS: return unpack<BlockIQ2_XXS>(row, run, out);
    case TensorType::kIQ1_M: return unpack<BlockIQ1_M>(row, run, out);
    case TensorType::kIQ1_S: return unpack<BlockIQ1_S>(row, run, out);
    default: CHECK(false);
  }
}

}  // namespace offstage
