// Older DeepSeek files: what brings keys and values back from the latent is one matrix,
// [n_heads][nope_dim, then v_dim][kv_rank]. Latent attention multiplies a query by the keys' part
// turned on its side, which blocks of a quantised row don't allow: it is kept as floats, exactly
// what the file's blocks say. The values' part is copied as it is.
#pragma once

#include <cstdint>

#include "base/arena.h"
#include "model/spec.h"
#include "runtime/compute.h"

namespace offstage {

struct SplitKvB {
  Matrix k_b;  // F32 [n_heads][kv_rank][nope_dim]
  Matrix v_b;  // [n_heads][v_dim][kv_rank]
};

uint64_t split_kv_b_bytes(const AttentionSpec& attention, TensorType joint);
SplitKvB split_kv_b(const AttentionSpec& attention, const Matrix& joint, const Kernels& kernels,
                    HostArena& arena);

}  // namespace offstage
