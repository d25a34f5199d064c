#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "cpu/exp.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

float kv_at(KvType type, const std::byte* row, uint32_t d) {
  switch (type) {
    case KvType::kF32: {
      float value;
      std::memcpy(&value, row + size_t{d} * 4, 4);
      return value;
    }
    case KvType::kF16: {
      uint16_t half;
      std::memcpy(&half, row + size_t{d} * 2, 2);
      return float_of_f16(half);
    }
    case KvType::kQ8_0: {
      const std::byte* block = row + size_t{d} / 32 * 34;
      uint16_t scale;
      std::memcpy(&scale, block, 2);
      return static_cast<float>(static_cast<int8_t>(block[2 + d % 32])) * float_of_f16(scale);
    }
  }
  return 0;
}

float dot_lanes(KvType type, const float* q, const std::byte* k, uint32_t head_dim) {
  float lanes[16] = {};
  for (uint32_t d = 0; d < head_dim; ++d)
    lanes[d % 16] = __builtin_fmaf(q[d], kv_at(type, k, d), lanes[d % 16]);
  return sum_lanes_scalar(lanes);
}

struct Softmax {
  float m, l;
};

// Scores of one block for one head: p[i] for i in [begin, end), +0 elsewhere; its max and sum.
Softmax score_block(const AttentionArgs& args, const float* q, const std::byte* k, uint32_t begin,
                    uint32_t end, float* p) {
  const uint64_t row = kv_row_bytes(args.k_type, args.head_dim_k);
  float m = -std::numeric_limits<float>::infinity();
  for (uint32_t i = begin; i < end; ++i) {
    p[i] = args.scale * dot_lanes(args.k_type, q, k + row * i, args.head_dim_k);
    m = p[i] > m ? p[i] : m;
  }
  float lanes[16] = {};
  for (uint32_t i = 0; i < kKvBlockPositions; ++i) {
    p[i] = i < begin || i >= end ? 0.0f : exp_scalar(p[i] - m);
    lanes[i % 16] = lanes[i % 16] + p[i];
  }
  return {m, sum_lanes_scalar(lanes)};
}

void attend_head(const AttentionArgs& args, uint32_t row, uint32_t head) {
  const float* q = args.q + size_t{row} * args.q_stride + size_t{head} * args.head_dim_k;
  float* out = args.out + size_t{row} * args.out_stride + size_t{head} * args.head_dim_v;
  const uint64_t v_row = v_stride_of(args);
  const uint32_t first = first_of_row(args, row), last = args.last + row;
  const uint32_t first_block = first / kKvBlockPositions;
  Softmax total{};
  for (uint32_t block = first_block; block <= last / kKvBlockPositions; ++block) {
    const uint32_t origin = block * kKvBlockPositions;
    const uint32_t begin = std::max(first, origin) - origin;
    const uint32_t end = std::min(last + 1, origin + kKvBlockPositions) - origin;
    float p[kKvBlockPositions];
    const Softmax here = score_block(args, q, args.k_blocks[block] + args.k_offset, begin, end, p);
    float old_scale = 0.0f, new_scale = 1.0f;
    if (block == first_block) {
      total = here;
    } else {
      const float m = here.m > total.m ? here.m : total.m;
      old_scale = exp_scalar(total.m - m);
      new_scale = exp_scalar(here.m - m);
      total = {m, __builtin_fmaf(here.l, new_scale, total.l * old_scale)};
    }
    const std::byte* v = args.v_blocks[block] + args.v_offset;
    for (uint32_t d = 0; d < args.head_dim_v; ++d) {
      float o = 0.0f;
      for (uint32_t i = begin; i < end; ++i)
        o = __builtin_fmaf(p[i], kv_at(args.v_type, v + v_row * i, d), o);
      out[d] = block == first_block ? o : __builtin_fmaf(o, new_scale, out[d] * old_scale);
    }
  }
  float scale = 1.0f;
  if (args.sinks != nullptr) scale = merge_sink(args.sinks[head], &total.m, &total.l);
  for (uint32_t d = 0; d < args.head_dim_v; ++d) {
    if (args.sinks != nullptr) out[d] = out[d] * scale;
    out[d] = out[d] / total.l;
  }
}

}  // namespace

float merge_sink(float sink, float* m, float* l) {
  const float top = sink > *m ? sink : *m;
  const float scale = exp_scalar(*m - top);
  *l = exp_scalar(sink - top) + *l * scale;
  *m = top;
  return scale;
}

void attention_scalar(const AttentionArgs& args) {
  check_attention(args);
  for (uint32_t row = 0; row < args.n_rows; ++row)
    for (uint32_t head = 0; head < args.n_heads; ++head) attend_head(args, row, head);
}

uint32_t first_of_row(const AttentionArgs& args, uint32_t row) {
  const uint32_t position = args.last + row;
  const uint32_t seen = args.window == 0 || position < args.window ? 0 : position - args.window + 1;
  return std::max(args.first, seen);
}

uint64_t v_stride_of(const AttentionArgs& args) {
  return args.v_stride != 0 ? args.v_stride : kv_row_bytes(args.v_type, args.head_dim_v);
}

void check_attention(const AttentionArgs& args) {
  CHECK_LE(args.first, args.last);
  check_kv(args.k_type, args.head_dim_k);
  check_kv(args.v_type, args.head_dim_v);
}

}  // namespace offstage
