#include "runtime/joint_kv_b.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "base/checked_math.h"

namespace offstage {
namespace {

uint64_t k_bytes(const AttentionSpec& attention) {
  const MlaSpec& mla = attention.mla;
  return round_up(uint64_t{attention.n_heads} * mla.kv_rank * mla.nope_dim * sizeof(float), 64);
}

uint64_t v_head_bytes(const MlaSpec& mla, TensorType joint) {
  return mla.v_dim * row_bytes(joint, mla.kv_rank);
}

}  // namespace

uint64_t split_kv_b_bytes(const AttentionSpec& attention, TensorType joint) {
  return k_bytes(attention) + round_up(attention.n_heads * v_head_bytes(attention.mla, joint), 64);
}

SplitKvB split_kv_b(const AttentionSpec& attention, const Matrix& joint, const Kernels& kernels,
                    HostArena& arena) {
  const MlaSpec& mla = attention.mla;
  const uint32_t n_heads = attention.n_heads, rank = mla.kv_rank, nope = mla.nope_dim;
  const uint64_t row = row_bytes(joint.type, rank), v_bytes = v_head_bytes(mla, joint.type);
  CHECK_EQ(joint.rows, n_heads * (nope + mla.v_dim));
  auto* keys = reinterpret_cast<float*>(arena.take(k_bytes(attention), 64));
  std::byte* values = arena.take(round_up(n_heads * v_bytes, 64), 64);
  std::vector<float> floats(rank);
  for (uint32_t h = 0; h < n_heads; ++h) {
    const std::byte* head = joint.data + uint64_t{h} * (nope + mla.v_dim) * row;
    for (uint32_t i = 0; i < nope; ++i) {
      kernels.dequantise(joint.type, head + i * row, rank, floats.data());
      for (uint32_t j = 0; j < rank; ++j) keys[(uint64_t{h} * rank + j) * nope + i] = floats[j];
    }
    std::copy_n(head + nope * row, v_bytes, values + h * v_bytes);
  }
  return {{TensorType::kF32, reinterpret_cast<const std::byte*>(keys), n_heads * rank, nope},
          {joint.type, values, n_heads * mla.v_dim, rank}};
}

}  // namespace offstage
