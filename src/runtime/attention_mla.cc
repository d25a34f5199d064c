#include "runtime/attention_mla.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {
namespace {

// Rows of one head's matrix that a work item takes: 64 rows of 512 in Q8_0 are 35 KiB.
constexpr uint32_t kSliceRows = 64;
// Heads that share one conversion of the cache's rows: what the widest kernel takes at once.
constexpr uint32_t kHeadsTogether = 8;

// As many heads together as leave every worker an item; a kernel takes 8, 4 or 1.
uint32_t heads_per_item(uint32_t n_rows, uint32_t n_heads, uint32_t n_workers) {
  uint32_t together = kHeadsTogether;
  while (together > 1 && n_rows * ((n_heads + together - 1) / together) < n_workers)
    together = together == 4 ? 1 : together / 2;
  return together;
}

}  // namespace

MlaAttention::MlaAttention(const AttentionParts& parts, const MlaScratch& scratch,
                           uint32_t rows_max)
    : parts_(parts),
      s_(scratch),
      q_low_(s_.q_low_forms, mla().q_rank == 0 ? 0 : rows_max, mla().q_rank),
      values_(s_.values_forms, rows_max, n_heads() * mla().v_dim) {}

void MlaAttention::run(uint32_t layer, const LayerWeights& weights, std::span<const Row> rows,
                       ActivationCache& input, float* out) {
  const Compute& compute = parts_.compute;
  const auto n_rows = static_cast<uint32_t>(rows.size());
  const Matrix& kv_a = weights.mla.kv_a;
  project_queries(weights, input, n_rows);
  compute.matmul(kv_a, input.for_weights(kv_a.type, compute), n_rows, s_.kv);
  rotate_and_store(layer, weights.mla, rows);
  multiply_heads(weights.mla.k_b, {s_.q, mla().head_dim()}, {s_.absorbed, mla().row_dim()}, n_rows);
  attend(layer, rows);
  multiply_heads(weights.mla.v_b, {s_.latents, mla().kv_rank}, {s_.values, mla().v_dim}, n_rows);
  values_.reset(s_.values, n_rows);
  compute.matmul(weights.o, values_.for_weights(weights.o.type, compute), n_rows, out);
}

void MlaAttention::project_queries(const LayerWeights& weights, ActivationCache& input,
                                   uint32_t n_rows) {
  const Compute& compute = parts_.compute;
  const MlaWeights& w = weights.mla;
  if (mla().q_rank == 0) {
    compute.matmul(weights.q, input.for_weights(weights.q.type, compute), n_rows, s_.q);
    return;
  }
  compute.matmul(w.q_a, input.for_weights(w.q_a.type, compute), n_rows, s_.q_low);
  compute.norm({w.q_a_norm, nullptr, parts_.spec.norm_eps}, s_.q_low, n_rows, mla().q_rank,
               s_.q_low);
  q_low_.reset(s_.q_low, n_rows);
  compute.matmul(w.q_b, q_low_.for_weights(w.q_b.type, compute), n_rows, s_.q);
}

// The new latents into their pages, and the queries' rotated part behind the place where
// multiply_heads puts the other.
void MlaAttention::rotate_and_store(uint32_t layer, const MlaWeights& weights,
                                    std::span<const Row> rows) {
  const Kernels& kernels = parts_.compute.kernels();
  const uint32_t rank = mla().kv_rank, row_dim = mla().row_dim(), rope_dim = mla().rope_dim;
  const auto rotate = [&](float* x, uint32_t n, uint32_t position) {
    RopeArgs rope;
    rope.x = x;
    rope.n_heads = n;
    rope.head_dim = row_dim;
    rope.n_rot = rope_dim;
    rope.neox = parts_.spec.rotary.kind == RotaryKind::kNeox;
    rope.cos_sin = parts_.rotary.row(position);
    kernels.rope(rope);
  };
  const auto one_row = [&](uint32_t i) {
    const Row& row = rows[i];
    float* kv = s_.kv + uint64_t{i} * row_dim;
    kernels.rms_norm(kv, weights.kv_a_norm, rank, parts_.spec.norm_eps, kv);
    rotate(kv + rank, 1, row.position);
    kernels.store_kv(parts_.k_type, kv, row_dim,
                     parts_.kv.k_row(row.sequence, row.position, layer, 0));
    const float* q = s_.q + uint64_t{i} * n_heads() * mla().head_dim();
    float* absorbed = s_.absorbed + uint64_t{i} * n_heads() * row_dim;
    for (uint32_t h = 0; h < n_heads(); ++h)
      std::copy_n(q + uint64_t{h} * mla().head_dim() + mla().nope_dim, rope_dim,
                  absorbed + uint64_t{h} * row_dim + rank);
    rotate(absorbed + rank, n_heads(), row.position);
  };
  parts_.compute.workers().parallel_for(static_cast<uint32_t>(rows.size()), 1,
                                        [&](uint32_t begin, uint32_t end, uint32_t) {
                                          for (uint32_t i = begin; i < end; ++i) one_row(i);
                                        });
}

// Work items are (row, some heads): one decode step has work for every core, and where rows abound
// the cache's rows are converted once for several heads.
void MlaAttention::attend(uint32_t layer, std::span<const Row> rows) {
  const uint32_t row_dim = mla().row_dim(), rank = mla().kv_rank;
  ThreadPool& workers = parts_.compute.workers();
  const auto n_rows = static_cast<uint32_t>(rows.size());
  const uint32_t together = heads_per_item(n_rows, n_heads(), workers.size());
  const uint32_t slices = (n_heads() + together - 1) / together;
  const auto one_item = [&](uint32_t i, uint32_t first_head) {
    AttentionArgs args;
    args.k_type = args.v_type = parts_.k_type;
    args.head_dim_k = row_dim;
    args.head_dim_v = rank;
    args.n_heads = std::min(together, n_heads() - first_head);
    const uint64_t head = uint64_t{i} * n_heads() + first_head;
    args.q = s_.absorbed + head * row_dim;
    args.k_blocks = args.v_blocks = parts_.kv.blocks(rows[i].sequence);
    args.k_offset = args.v_offset = parts_.kv.k_offset(layer, 0);
    args.v_stride = kv_row_bytes(parts_.k_type, row_dim);
    args.last = rows[i].position;
    args.scale = parts_.spec.attention.scale;
    args.out = s_.latents + head * rank;
    parts_.compute.kernels().attention(args);
  };
  workers.parallel_for(n_rows * slices, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t item = begin; item < end; ++item)
      one_item(item / slices, item % slices * together);
  });
}

void MlaAttention::multiply_heads(const Matrix& w, PerHead from, PerHead to, uint32_t n_rows) {
  const Kernels& kernels = parts_.compute.kernels();
  ThreadPool& workers = parts_.compute.workers();
  const ActivationFormat format = activation_format(w.type);
  const uint64_t form_bytes = activation_row_bytes(format, w.k);
  const uint32_t n = n_heads();
  // Forms lie by head, then row: what one head's matrix multiplies is contiguous.
  workers.parallel_for(n * n_rows, 4, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t item = begin; item < end; ++item) {
      const uint32_t h = item / n_rows, row = item % n_rows;
      kernels.quantise_activations(format, from.x + (uint64_t{row} * n + h) * from.head_stride, w.k,
                                   s_.head_forms + item * form_bytes);
    }
  });
  const uint32_t head_rows = w.rows / n;
  CHECK_LE(head_rows, to.head_stride);
  const uint32_t slices = (head_rows + kSliceRows - 1) / kSliceRows;
  workers.parallel_for(n * slices, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t item = begin; item < end; ++item) {
      const uint32_t h = item / slices, first = item % slices * kSliceRows;
      MatmulArgs args;
      args.type = w.type;
      args.weights = w.data;
      args.k = w.k;
      args.row_begin = h * head_rows + first;
      args.row_end = h * head_rows + std::min(first + kSliceRows, head_rows);
      args.activations = s_.head_forms + uint64_t{h} * n_rows * form_bytes;
      args.n_tokens = n_rows;
      // The kernel counts rows of the whole matrix.
      args.out = to.x + uint64_t{h} * (to.head_stride - head_rows);
      args.out_stride = n * to.head_stride;
      kernels.matmul(args);
    }
  });
}

}  // namespace offstage
