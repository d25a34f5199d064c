// Attention of a few rows (cpu/README.md, "Attention"): every block of 64 positions of every kv
// head at the same time, then one merge of the blocks, ascending.
//
// Between the two kernels lie, per row, head and block, the block's values o [head_dim_v], its
// maximum m and its sum l.
#include "gpu/kernels/arithmetic.cuh"

namespace offstage::gpu {
namespace {

inline constexpr uint32_t kThreads = 128;
inline constexpr uint32_t kPositions = kKvBlockPositions;
inline constexpr uint32_t kHeads = 8;  // query heads of a kv head that share a pass over K and V
inline constexpr uint32_t kLanes = 16;
inline constexpr uint32_t kDotsAtOnce = kThreads / kLanes;

OFFSTAGE_DEVICE float kv_at(KvType type, const std::byte* row, uint32_t d) {
  if (type == KvType::kF32) return float_of_bits(load_4(row + size_t{d} * 4));
  if (type == KvType::kF16) return float_of_f16(load_2(row + size_t{d} * 2));
  const std::byte* block = row + size_t{d} / 32 * 34;
  const auto q = static_cast<int8_t>(load_1(block + 2 + d % 32));
  return static_cast<float>(q) * float_of_f16(load_2(block));
}

OFFSTAGE_BOTH size_t kv_row_bytes(KvType type, uint32_t n) {
  if (type == KvType::kF32) return size_t{n} * 4;
  return type == KvType::kF16 ? size_t{n} * 2 : size_t{n} / 32 * 34;
}

// One block's part of a row: which positions, and where their keys and values lie.
struct Part {
  uint32_t begin, end;  // within the block
  uint32_t row, first_head, n_heads, index;
  const std::byte *k, *v;
  size_t k_row, v_row;
};

// Before a head's values in the scratch.
OFFSTAGE_DEVICE size_t part_at(const AttentionArgs& args, uint32_t row, uint32_t head,
                               uint32_t index) {
  return (size_t{row} * args.n_heads + head) * args.n_blocks_max + index;
}
OFFSTAGE_DEVICE float* sums_of(const AttentionArgs& args) {
  return args.scratch + part_at(args, args.n_rows, 0, 0) * args.head_dim_v;
}

// scores[h][i] = scale · dot(q_h, k_i): sixteen lanes a position, all heads of the pass at once.
OFFSTAGE_DEVICE void score(const AttentionArgs& args, const Part& part, float* scores) {
  const uint32_t lane = threadIdx.x % kLanes;
  const float* q = args.q + (size_t{part.row} * args.n_heads + part.first_head) * args.head_dim_k;
  for (uint32_t i = threadIdx.x / kLanes; i < kPositions; i += kDotsAtOnce) {
    const bool inside = i >= part.begin && i < part.end;
    float sums[kHeads] = {};
    for (uint32_t d = lane; inside && d < args.head_dim_k; d += kLanes) {
      const float k = kv_at(args.k_type, part.k + part.k_row * i, d);
      OFFSTAGE_UNROLL
      for (uint32_t h = 0; h < kHeads; ++h)
        if (h < part.n_heads) sums[h] = fused(q[size_t{h} * args.head_dim_k + d], k, sums[h]);
    }
    OFFSTAGE_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      const float sum = sum_sixteen(sums[h]);
      if (lane == 0) scores[h * kPositions + i] = args.scale * sum;
    }
  }
}

// scores → p, and m and l of the block; a warp a head.
OFFSTAGE_DEVICE void soften(const AttentionArgs& args, const Part& part, float* scores) {
  const uint32_t lane = threadIdx.x % kWarp;
  for (uint32_t h = threadIdx.x / kWarp; h < part.n_heads; h += kThreads / kWarp) {
    float* p = scores + h * kPositions;
    float m = float_of_bits(kLowestBits);
    for (uint32_t i = lane; i < kPositions; i += kWarp)
      if (i >= part.begin && i < part.end) m = p[i] > m ? p[i] : m;
    for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
      const float other = shuffle_xor(m, distance);
      m = other > m ? other : m;
    }
    for (uint32_t i = lane; i < kPositions; i += kWarp)
      p[i] = i >= part.begin && i < part.end ? exp_exact(p[i] - m) : 0.0f;
    sync_warp();
    float sum = 0.0f;
    for (uint32_t i = lane % kLanes; i < kPositions; i += kLanes) sum = sum + p[i];
    const float l = sum_sixteen(sum);
    if (lane == 0) {
      float* ml = sums_of(args) + part_at(args, part.row, part.first_head + h, part.index) * 2;
      ml[0] = m;
      ml[1] = l;
    }
  }
}

// o_d of every head: one chain over the positions, V read once.
OFFSTAGE_DEVICE void weigh_values(const AttentionArgs& args, const Part& part, const float* p) {
  for (uint32_t d = threadIdx.x; d < args.head_dim_v; d += kThreads) {
    float o[kHeads] = {};
    for (uint32_t i = part.begin; i < part.end; ++i) {
      const float v = kv_at(args.v_type, part.v + part.v_row * i, d);
      OFFSTAGE_UNROLL
      for (uint32_t h = 0; h < kHeads; ++h)
        if (h < part.n_heads) o[h] = fused(p[h * kPositions + i], v, o[h]);
    }
    OFFSTAGE_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h)
      if (h < part.n_heads)
        args.scratch[part_at(args, part.row, part.first_head + h, part.index) * args.head_dim_v +
                     d] = o[h];
  }
}

OFFSTAGE_BOTH uint32_t passes_of(const AttentionArgs& args) {
  return (args.n_heads / args.n_kv_heads + kHeads - 1) / kHeads;
}

// Grid: blocks of positions, kv heads × passes, rows.
__global__ void attend_blocks(AttentionArgs args) {
  OFFSTAGE_SHARED(float, scores, kHeads* kPositions);
  const AttentionRow row = args.rows[blockIdx.z];
  const uint32_t block = row.first / kPositions + blockIdx.x, origin = block * kPositions;
  if (origin > row.last) return;  // the whole block of threads
  const uint32_t group = args.n_heads / args.n_kv_heads, passes = passes_of(args);
  const uint32_t kv_head = blockIdx.y / passes, done = blockIdx.y % passes * kHeads;
  Part part;
  part.begin = row.first > origin ? row.first - origin : 0;
  part.end = row.last - origin < kPositions ? row.last - origin + 1 : kPositions;
  part.row = blockIdx.z;
  part.first_head = kv_head * group + done;
  part.n_heads = group - done < kHeads ? group - done : kHeads;
  part.index = blockIdx.x;
  part.k = row.k_blocks[block] + args.k_offset + args.k_head_stride * kv_head;
  part.v = row.v_blocks[block] + args.v_offset + args.v_head_stride * kv_head;
  part.k_row = kv_row_bytes(args.k_type, args.head_dim_k);
  part.v_row = args.v_stride != 0 ? args.v_stride : kv_row_bytes(args.v_type, args.head_dim_v);
  score(args, part, scores);
  __syncthreads();
  soften(args, part, scores);
  __syncthreads();
  weigh_values(args, part, scores);
}

// Grid: heads, rows. Every thread follows m and l for itself.
__global__ void merge_blocks(AttentionArgs args) {
  const uint32_t head = blockIdx.x, row = blockIdx.y;
  const uint32_t n_blocks =
      args.rows[row].last / kPositions - args.rows[row].first / kPositions + 1;
  const size_t at = part_at(args, row, head, 0);
  const float* ml = sums_of(args) + at * 2;
  for (uint32_t d = threadIdx.x; d < args.head_dim_v; d += kThreads) {
    const float* values = args.scratch + at * args.head_dim_v + d;
    float m = ml[0], l = ml[1], o = values[0];
    for (uint32_t block = 1; block < n_blocks; ++block) {
      const float m_here = ml[2 * block], l_here = ml[2 * block + 1];
      const float top = m_here > m ? m_here : m;
      const float old_scale = exp_exact(m - top), new_scale = exp_exact(m_here - top);
      l = fused(l_here, new_scale, l * old_scale);
      o = fused(values[size_t{block} * args.head_dim_v], new_scale, o * old_scale);
      m = top;
    }
    if (args.sinks != nullptr) {
      const float sink = args.sinks[head], top = sink > m ? sink : m;
      const float scale = exp_exact(m - top);
      l = exp_exact(sink - top) + l * scale;
      o = o * scale;
    }
    args.out[(size_t{row} * args.n_heads + head) * args.head_dim_v + d] = divided(o, l);
  }
}

}  // namespace

CallStatus attention(StreamHandle stream, const AttentionArgs& args) {
  const dim3 parts(args.n_blocks_max, args.n_kv_heads * passes_of(args), args.n_rows);
  const CallStatus status =
      OFFSTAGE_LAUNCH("attention", attend_blocks, parts, kThreads, stream, args);
  if (!status.ok()) return status;
  const dim3 heads(args.n_heads, args.n_rows);
  return OFFSTAGE_LAUNCH("attention", merge_blocks, heads, kThreads, stream, args);
}

}  // namespace offstage::gpu
