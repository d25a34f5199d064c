#include "runtime/attention_gqa.h"

#include <algorithm>
#include <iterator>

namespace offstage {
namespace {

constexpr uint32_t kRowsTogether = 8;  // what a kernel takes at once

// As many rows together as leave every worker several items: later rows see more, and take longer.
uint32_t rows_per_item(uint32_t n_rows, uint32_t n_kv_heads, uint32_t n_workers) {
  uint32_t together = kRowsTogether;
  while (together > 1 && (n_rows + together - 1) / together * n_kv_heads < 4 * n_workers)
    together /= 2;
  return together;
}

// How many rows, from the first, are one sequence's next positions.
uint32_t consecutive(std::span<const Row> rows) {
  uint32_t n = 1;
  while (n < rows.size() && rows[n].sequence == rows[0].sequence &&
         rows[n].position == rows[0].position + n)
    ++n;
  return n;
}

}  // namespace

GqaAttention::GqaAttention(const AttentionParts& parts, const GqaScratch& scratch,
                           uint32_t rows_max)
    : parts_(parts), s_(scratch), attended_(s_.attended_forms, rows_max, parts.spec.o_width()) {}

void GqaAttention::run(uint32_t layer, const LayerWeights& weights, std::span<const Row> rows,
                       ActivationCache& input, float* out) {
  const Compute& compute = parts_.compute;
  const auto n_rows = static_cast<uint32_t>(rows.size());
  project_qkv(weights, input, n_rows);
  rotate_and_store(layer, weights, rows);
  attend(layer, weights.sinks, rows);
  attended_.reset(s_.attended, n_rows);
  compute.matmul(weights.o, attended_.for_weights(weights.o.type, compute), n_rows, out);
  for (uint32_t t = 0; weights.o_bias != nullptr && t < n_rows; ++t)
    compute.kernels().add(out + uint64_t{t} * weights.o.rows, weights.o_bias, weights.o.rows);
}

void GqaAttention::project_qkv(const LayerWeights& weights, ActivationCache& input,
                               uint32_t n_rows) {
  const Compute& compute = parts_.compute;
  const auto product = [&](const Matrix& w, float* out) {
    return Product{w, input.for_weights(w.type, compute), out};
  };
  const Product products[] = {product(weights.q, s_.q), product(weights.k, s_.k),
                              product(weights.v, s_.v)};
  compute.matmul(products, n_rows);
  const float* const biases[] = {weights.q_bias, weights.k_bias, weights.v_bias};
  for (size_t i = 0; i < std::size(products); ++i) {
    const uint32_t width = products[i].w.rows;
    for (uint32_t t = 0; biases[i] != nullptr && t < n_rows; ++t)
      compute.kernels().add(products[i].out + uint64_t{t} * width, biases[i], width);
  }
}

// QK-norm, rotation, and the new keys and values into their pages, as stored from then on.
void GqaAttention::rotate_and_store(uint32_t layer, const LayerWeights& weights,
                                    std::span<const Row> rows) {
  const ModelSpec& spec = parts_.spec;
  const AttentionSpec& attention = spec.attention;
  const Kernels& kernels = parts_.compute.kernels();
  const auto norm_and_rotate = [&](float* x, const float* norm, uint32_t n_heads,
                                   uint32_t position) {
    const uint32_t head_dim = attention.head_dim_k;
    if (attention.qk_norm == QkNorm::kWhole)
      kernels.rms_norm(x, norm, n_heads * head_dim, spec.norm_eps, x);
    for (uint32_t h = 0; attention.qk_norm == QkNorm::kPerHead && h < n_heads; ++h)
      kernels.rms_norm(x + h * head_dim, norm, head_dim, spec.norm_eps, x + h * head_dim);
    RopeArgs rope;
    rope.x = x;
    rope.n_heads = n_heads;
    rope.head_dim = head_dim;
    rope.n_rot = spec.rotary.n_rot;
    rope.neox = spec.rotary.kind == RotaryKind::kNeox;
    rope.cos_sin = parts_.rotary.row(position);
    kernels.rope(rope);
  };
  // Work items are a row's queries, and its keys and values.
  parts_.compute.workers().parallel_for(
      2 * static_cast<uint32_t>(rows.size()), 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t item = begin; item < end; ++item) {
          const uint32_t i = item / 2;
          const Row& row = rows[i];
          if (item % 2 == 0) {
            norm_and_rotate(s_.q + uint64_t{i} * spec.q_width(), weights.q_norm, attention.n_heads,
                            row.position);
            continue;
          }
          float* k = s_.k + uint64_t{i} * spec.k_width();
          const float* v = s_.v + uint64_t{i} * spec.v_width();
          norm_and_rotate(k, weights.k_norm, attention.n_kv_heads, row.position);
          for (uint32_t h = 0; h < attention.n_kv_heads; ++h) {
            kernels.store_kv(parts_.k_type, k + h * attention.head_dim_k, attention.head_dim_k,
                             parts_.kv.k_row(row.sequence, row.position, layer, h));
            kernels.store_kv(parts_.v_type, v + h * attention.head_dim_v, attention.head_dim_v,
                             parts_.kv.v_row(row.sequence, row.position, layer, h));
          }
        }
      });
}

// Work items are (some rows, kv head): each reads its head's blocks once for the whole query group,
// and once for rows of consecutive positions.
void GqaAttention::attend(uint32_t layer, const float* sinks, std::span<const Row> rows) {
  const AttentionSpec& attention = parts_.spec.attention;
  ThreadPool& workers = parts_.compute.workers();
  const uint32_t n_kv_heads = attention.n_kv_heads;
  const uint32_t group = attention.n_heads / n_kv_heads;
  const auto n_rows = static_cast<uint32_t>(rows.size());
  const uint32_t together = rows_per_item(n_rows, n_kv_heads, workers.size());
  const auto one_item = [&](uint32_t begin, uint32_t end, uint32_t head) {
    for (uint32_t i = begin; i < end;) {
      AttentionArgs args;
      args.k_type = parts_.k_type;
      args.v_type = parts_.v_type;
      args.head_dim_k = attention.head_dim_k;
      args.head_dim_v = attention.head_dim_v;
      args.n_heads = group;
      args.n_rows = consecutive(rows.subspan(i, end - i));
      args.q_stride = parts_.spec.q_width();
      args.out_stride = parts_.spec.o_width();
      args.q = s_.q + uint64_t{i} * args.q_stride + uint64_t{head} * group * attention.head_dim_k;
      args.k_blocks = args.v_blocks = parts_.kv.blocks(rows[i].sequence);
      args.k_offset = parts_.kv.k_offset(layer, head);
      args.v_offset = parts_.kv.v_offset(layer, head);
      args.window = attention.window_of(layer);
      args.last = rows[i].position;
      if (head + 1 < n_kv_heads)
        args.then_k = args.k_blocks[first_of_row(args, 0) / kKvBlockPositions] +
                      parts_.kv.k_offset(layer, head + 1);
      args.scale = attention.scale;
      if (sinks != nullptr) args.sinks = sinks + head * group;
      args.out = s_.attended + uint64_t{i} * args.out_stride +
                 uint64_t{head} * group * attention.head_dim_v;
      parts_.compute.kernels().attention(args);
      i += args.n_rows;
    }
  };
  const uint32_t slices = (n_rows + together - 1) / together;
  workers.parallel_for(slices * n_kv_heads, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t item = begin; item < end; ++item) {
      const uint32_t row = item / n_kv_heads * together;
      one_item(row, std::min(row + together, n_rows), item % n_kv_heads);
    }
  });
}

}  // namespace offstage
