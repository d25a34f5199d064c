#include "cpu/weight_run.h"

#include <algorithm>

#include "base/blocks.h"
#include "base/check.h"
#include "cpu/codebooks.h"
#include "cpu/float16.h"

namespace offstage {
namespace {

void unpack_block(const BlockQ8_0& block, int8_t* q, float* d, float*) {
  *d = float_of_f16(block.d);
  for (int i = 0; i < 32; ++i) q[i] = block.qs[i];
}

void unpack_block(const BlockQ4_0& block, int8_t* q, float* d, float*) {
  *d = float_of_f16(block.d);
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>((block.qs[i] & 15) - 8);
    q[16 + i] = static_cast<int8_t>((block.qs[i] >> 4) - 8);
  }
}

void unpack_block(const BlockQ4_1& block, int8_t* q, float* d, float* m) {
  *d = float_of_f16(block.d);
  *m = float_of_f16(block.m);
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>(block.qs[i] & 15);
    q[16 + i] = static_cast<int8_t>(block.qs[i] >> 4);
  }
}

template <typename Block>
void unpack_five_bits(const Block& block, int offset, int8_t* q) {
  for (int i = 0; i < 16; ++i) {
    const int low_fifth = (block.qh[i / 8] >> (i % 8)) & 1;
    const int high_fifth = (block.qh[2 + i / 8] >> (i % 8)) & 1;
    q[i] = static_cast<int8_t>(((block.qs[i] & 15) | low_fifth << 4) - offset);
    q[16 + i] = static_cast<int8_t>(((block.qs[i] >> 4) | high_fifth << 4) - offset);
  }
}

void unpack_block(const BlockQ5_0& block, int8_t* q, float* d, float*) {
  *d = float_of_f16(block.d);
  unpack_five_bits(block, 16, q);
}

void unpack_block(const BlockQ5_1& block, int8_t* q, float* d, float* m) {
  *d = float_of_f16(block.d);
  *m = float_of_f16(block.m);
  unpack_five_bits(block, 0, q);
}

void unpack_block(const BlockIQ4_NL& block, int8_t* q, float* d, float*) {
  *d = float_of_f16(block.d);
  for (int i = 0; i < 16; ++i) {
    q[i] = kIq4Values[block.qs[i] & 15];
    q[16 + i] = kIq4Values[block.qs[i] >> 4];
  }
}

void unpack_block(const BlockMXFP4& block, int8_t* q, float* d, float*) {
  *d = float_of_e8m0_half(block.e);
  for (int i = 0; i < 16; ++i) {
    q[i] = kMxfp4Values[block.qs[i] & 15];
    q[16 + i] = kMxfp4Values[block.qs[i] >> 4];
  }
}

template <typename Block>
void unpack_blocks(const std::byte* row, uint32_t k, uint32_t run, WeightRun* out) {
  const auto* blocks = reinterpret_cast<const Block*>(row) + size_t{run} * 8;
  const uint32_t n_blocks = std::min(8u, k / 32 - run * 8);
  std::fill(std::begin(out->q), std::end(out->q), int8_t{0});
  std::fill(std::begin(out->d_block), std::end(out->d_block), 0.0f);
  std::fill(std::begin(out->m_block), std::end(out->m_block), 0.0f);
  for (uint32_t b = 0; b < n_blocks; ++b)
    unpack_block(blocks[b], out->q + 32 * b, &out->d_block[b], &out->m_block[b]);
}

// Q4_K and Q5_K: scale and min of groups 0…3 are the low 6 bits of bytes j and 4 + j; those of
// groups 4…7 have their low nibbles in byte 4 + j and their top two bits above those of group j
// − 4.
void unpack_scales_q4_k(const uint8_t* packed, WeightRun* out) {
  for (int j = 0; j < 8; ++j) {
    int scale, min;
    if (j < 4) {
      scale = packed[j] & 63;
      min = packed[4 + j] & 63;
    } else {
      scale = (packed[4 + j] & 15) | (packed[j - 4] >> 6) << 4;
      min = (packed[4 + j] >> 4) | (packed[j] >> 6) << 4;
    }
    out->scale[2 * j] = out->scale[2 * j + 1] = static_cast<int16_t>(scale);
    out->min[2 * j] = out->min[2 * j + 1] = static_cast<int16_t>(min);
  }
}

void unpack_superblock(const BlockQ4_K& block, WeightRun* out) {
  out->d = float_of_f16(block.d);
  out->dmin = float_of_f16(block.dmin);
  unpack_scales_q4_k(block.scales, out);
  for (int i = 0; i < 256; ++i) {
    const int byte = block.qs[i / 64 * 32 + i % 32];
    out->q[i] = static_cast<int8_t>(i % 64 < 32 ? byte & 15 : byte >> 4);
  }
}

void unpack_superblock(const BlockQ5_K& block, WeightRun* out) {
  out->d = float_of_f16(block.d);
  out->dmin = float_of_f16(block.dmin);
  unpack_scales_q4_k(block.scales, out);
  for (int i = 0; i < 256; ++i) {
    const int byte = block.qs[i / 64 * 32 + i % 32];
    const int fifth = (block.qh[i % 32] >> (i / 32)) & 1;
    out->q[i] = static_cast<int8_t>((i % 64 < 32 ? byte & 15 : byte >> 4) | fifth << 4);
  }
}

void unpack_superblock(const BlockQ2_K& block, WeightRun* out) {
  out->d = float_of_f16(block.d);
  out->dmin = float_of_f16(block.dmin);
  for (int j = 0; j < 16; ++j) {
    out->scale[j] = block.scales[j] & 15;
    out->min[j] = block.scales[j] >> 4;
  }
  for (int i = 0; i < 256; ++i)
    out->q[i] = static_cast<int8_t>((block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3);
}

void unpack_superblock(const BlockQ3_K& block, WeightRun* out) {
  out->d = float_of_f16(block.d);
  out->dmin = 0;
  for (int j = 0; j < 16; ++j) {
    const int low = (block.scales[j % 8] >> (j / 8 * 4)) & 15;
    const int high = (block.scales[8 + j % 4] >> (j / 4 * 2)) & 3;
    out->scale[j] = static_cast<int16_t>((low | high << 4) - 32);
    out->min[j] = 0;
  }
  for (int i = 0; i < 256; ++i) {
    const int low = (block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    const int high = (block.hmask[i % 32] >> (i / 32)) & 1;
    out->q[i] = static_cast<int8_t>(low - (high ? 0 : 4));
  }
}

void unpack_superblock(const BlockQ6_K& block, WeightRun* out) {
  out->d = float_of_f16(block.d);
  out->dmin = 0;
  for (int j = 0; j < 16; ++j) {
    out->scale[j] = block.scales[j];
    out->min[j] = 0;
  }
  for (int i = 0; i < 256; ++i) {
    const int byte = block.ql[i / 128 * 64 + i % 64];
    const int low = i % 128 < 64 ? byte & 15 : byte >> 4;
    const int high = (block.qh[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    out->q[i] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

template <typename Block>
void unpack_k(const std::byte* row, uint32_t run, WeightRun* out) {
  unpack_superblock(reinterpret_cast<const Block*>(row)[run], out);
}

}  // namespace

bool has_minima(TensorType type) {
  return type == TensorType::kQ4_1 || type == TensorType::kQ5_1 || type == TensorType::kQ2_K ||
         type == TensorType::kQ4_K || type == TensorType::kQ5_K;
}

void unpack_run_scalar(TensorType type, const std::byte* row, uint32_t k, uint32_t run,
                       WeightRun* out) {
  switch (type) {
    case TensorType::kQ8_0: return unpack_blocks<BlockQ8_0>(row, k, run, out);
    case TensorType::kQ4_0: return unpack_blocks<BlockQ4_0>(row, k, run, out);
    case TensorType::kQ4_1: return unpack_blocks<BlockQ4_1>(row, k, run, out);
    case TensorType::kQ5_0: return unpack_blocks<BlockQ5_0>(row, k, run, out);
    case TensorType::kQ5_1: return unpack_blocks<BlockQ5_1>(row, k, run, out);
    case TensorType::kIQ4_NL: return unpack_blocks<BlockIQ4_NL>(row, k, run, out);
    case TensorType::kMXFP4: return unpack_blocks<BlockMXFP4>(row, k, run, out);
    case TensorType::kQ2_K: return unpack_k<BlockQ2_K>(row, run, out);
    case TensorType::kQ3_K: return unpack_k<BlockQ3_K>(row, run, out);
    case TensorType::kQ4_K: return unpack_k<BlockQ4_K>(row, run, out);
    case TensorType::kQ5_K: return unpack_k<BlockQ5_K>(row, run, out);
    case TensorType::kQ6_K: return unpack_k<BlockQ6_K>(row, run, out);
    case TensorType::kIQ4_XS:
    case TensorType::kIQ3_S:
    case TensorType::kIQ3_XXS:
    case TensorType::kIQ2_S:
    case TensorType::kIQ2_XS:
    case TensorType::kIQ2_XXS:
    case TensorType::kIQ1_M:
    case TensorType::kIQ1_S: return unpack_run_iq(type, row, run, out);
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: break;
  }
  CHECK(false);
}

}  // namespace offstage
