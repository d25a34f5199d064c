// Keys, values and attention: a part of kernels.h, whose head holds for it too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/kernels/stream.h"

namespace offstage::gpu {

enum class KvType : uint32_t { kF32, kF16, kQ8_0 };

// x [n_rows][n] floats → row r as stored, at out[r] + offset.
struct StoreKvArgs {
  KvType type = KvType::kF16;
  const float* x = nullptr;
  uint32_t n_rows = 0, n = 0;       // Q8_0: n a multiple of 32
  std::byte* const* out = nullptr;  // [n_rows], at multiples of 2 (F32: 4)
  uint64_t offset = 0;              // the same for all: one table serves every layer
};
CallStatus store_kv(StreamHandle stream, const StoreKvArgs& args);

// One query row of one sequence: positions [first, last] are attended.
struct AttentionRow {
  const std::byte* const* k_blocks = nullptr;  // by absolute block of 64 positions
  const std::byte* const* v_blocks = nullptr;
  uint32_t first = 0, last = 0;
};
// Every head of every row. K and V of a kv head lie at k_offset + head · k_head_stride in a block,
// as [64][row].
struct AttentionArgs {
  KvType k_type = KvType::kF16, v_type = KvType::kF16;
  uint32_t head_dim_k = 0, head_dim_v = 0;  // Q8_0: multiples of 32
  uint32_t n_heads = 0, n_kv_heads = 0;     // a kv head serves n_heads / n_kv_heads neighbours
  uint32_t n_rows = 0;
  const AttentionRow* rows = nullptr;
  const float* q = nullptr;  // [n_rows][n_heads][head_dim_k]
  uint64_t k_offset = 0, v_offset = 0, k_head_stride = 0, v_head_stride = 0;
  uint64_t v_stride = 0;  // from a position's V to the next one's; 0: the row's own bytes
  float scale = 1;
  const float* sinks = nullptr;  // [n_heads], or null
  uint32_t n_blocks_max = 0;     // blocks that a row's [first, last] touches, at most
  float* scratch = nullptr;      // attention_scratch_bytes(args)
  float* out = nullptr;          // [n_rows][n_heads][head_dim_v]
};
// Per row, head and block: the block's values, maximum and sum.
inline uint64_t attention_scratch_bytes(const AttentionArgs& args) {
  const uint64_t parts = uint64_t{args.n_rows} * args.n_heads * args.n_blocks_max;
  return parts * (args.head_dim_v + 2) * sizeof(float);
}
CallStatus attention(StreamHandle stream, const AttentionArgs& args);

}  // namespace offstage::gpu
