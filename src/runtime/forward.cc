// How a token is made.
//
//   x = embedding[token]
//   for each layer:
//     x += Wo · attention(rotate(Wq·h), rotate(Wk·h), Wv·h)     h = norm(x)
//     x += Σ over the router's k experts of weight · expert(h)   h = norm(x)
//          (or one FFN, in a layer without experts)
//   logits = Wout · norm(x)
//
// Everything but the experts is resident and computed in place; the experts come from the RAM tier,
// hits first, while the misses are still being read (moe_block.cc). What a family adds (biases,
// QK-norm, sinks, a window, scales) is a value of ModelSpec, seen here as a pointer that is or
// isn't null, or a factor that is or isn't 1.
#include "runtime/forward.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {

namespace {

// The first position that a row sees through a window (0: none) that ends at its own.
uint32_t first_seen(uint32_t window, uint32_t position) {
  return window == 0 || position < window ? 0 : position - window + 1;
}

}  // namespace

Forward::Forward(const Parts& parts)
    : parts_(parts),
      s_(parts_.scratch),
      input_(s_.input_forms, parts.rows_max, parts.spec.hidden),
      attended_(s_.attended_forms, parts.rows_max, parts.spec.o_width()),
      dense_(parts.spec.activation, parts_.compute, s_.ffn, parts.rows_max, parts.spec.dense_ffn),
      moe_(parts_.spec, parts_.compute, parts_.tier, parts_.timer, s_.moe, parts.rows_max) {}

Status Forward::run(std::span<const Row> rows, Phase phase, const LogitsSink& sink) {
  OFFSTAGE_TRY_VOID(check_rows(rows));
  const CauseScope scope(parts_.timer, Cause::kAttention);
  const auto n_rows = static_cast<uint32_t>(rows.size());
  embed(rows);
  look_ahead(0, n_rows, phase);
  for (uint32_t layer = 0; layer < parts_.spec.n_layers; ++layer) {
    parts_.timer.enter(Cause::kAttention);
    attention_block(layer, rows);
    OFFSTAGE_TRY_VOID(ffn_block(layer, n_rows, phase));
  }
  parts_.timer.enter(Cause::kOutput);
  output(rows, sink);
  return {};
}

Status Forward::check_rows(std::span<const Row> rows) const {
  CHECK_LE(rows.size(), parts_.rows_max);
  for (const Row& row : rows) {
    if (row.token < 0 || static_cast<uint32_t>(row.token) >= parts_.spec.n_vocab)
      return make_error(ErrorCode::kInvalidArgument,
                        "sequence {} position {}: token {} is not in the vocabulary of {}",
                        row.sequence.value, row.position, row.token, parts_.spec.n_vocab);
    if (row.position >= parts_.rotary.context())
      return make_error(ErrorCode::kInvalidArgument,
                        "sequence {}: position {} is past the context of {}", row.sequence.value,
                        row.position, parts_.rotary.context());
  }
  for (const Row& row : rows) OFFSTAGE_TRY_VOID(parts_.kv.reserve(row.sequence, row.position + 1));
  return {};
}

void Forward::embed(std::span<const Row> rows) {
  const Matrix& embedding = parts_.weights.embedding;
  const uint64_t stride = row_bytes(embedding.type, embedding.k);
  const Kernels& kernels = parts_.compute.kernels();
  for (size_t i = 0; i < rows.size(); ++i) {
    float* x = s_.x + i * embedding.k;
    kernels.dequantise(embedding.type,
                       embedding.data + static_cast<uint64_t>(rows[i].token) * stride, embedding.k,
                       x);
    if (parts_.spec.embedding_scale != 1)
      kernels.scale(x, parts_.spec.embedding_scale, embedding.k);
  }
}

void Forward::attention_block(uint32_t layer, std::span<const Row> rows) {
  const LayerWeights& weights = parts_.weights.layers[layer];
  const auto n_rows = static_cast<uint32_t>(rows.size());
  const ModelSpec& spec = parts_.spec;
  const Kernels& kernels = parts_.compute.kernels();
  parts_.compute.norm({weights.attn_norm, weights.attn_norm_bias, spec.norm_eps}, s_.x, n_rows,
                      spec.hidden, s_.normed);
  project_qkv(weights, n_rows);
  rotate_and_store(layer, weights, rows);
  attend(layer, rows);
  attended_.reset(s_.attended, n_rows);
  parts_.compute.matmul(weights.o, attended_.for_weights(weights.o.type, parts_.compute), n_rows,
                        s_.projected);
  for (uint32_t t = 0; weights.o_bias != nullptr && t < n_rows; ++t)
    kernels.add(s_.projected + uint64_t{t} * spec.hidden, weights.o_bias, spec.hidden);
  kernels.add_scaled(s_.x, s_.projected, spec.residual_scale, n_rows * spec.hidden);
}

Status Forward::ffn_block(uint32_t layer, uint32_t n_rows, Phase phase) {
  const LayerWeights& weights = parts_.weights.layers[layer];
  const ModelSpec& spec = parts_.spec;
  parts_.compute.norm({weights.ffn_norm, weights.ffn_norm_bias, spec.norm_eps}, s_.x, n_rows,
                      spec.hidden, s_.normed);
  if (!spec.is_dense_layer(layer)) {
    // Reads of the missing experts start with the call, and behind them those of experts that the
    // next layer will probably call; both fly while this layer computes.
    const LayerIndex moe_layer(layer - spec.n_dense_layers);
    const Routing& routing = moe_.call(moe_layer, weights, s_.normed, n_rows, phase);
    parts_.lookahead.learn(moe_layer, routing.calls);
    look_ahead(layer + 1, n_rows, phase);
    return moe_.compute(weights, s_.normed, n_rows, s_.x);
  }
  look_ahead(layer + 1, n_rows, phase);
  parts_.timer.enter(Cause::kExperts);
  input_.reset(s_.normed, n_rows);
  dense_.run(weights.dense, input_, n_rows, s_.projected);
  parts_.compute.kernels().add_scaled(s_.x, s_.projected, spec.residual_scale,
                                      n_rows * spec.hidden);
  return {};
}

void Forward::look_ahead(uint32_t layer, uint32_t n_rows, Phase phase) {
  const ModelSpec& spec = parts_.spec;
  if (phase != Phase::kDecode || layer >= spec.n_layers || spec.is_dense_layer(layer)) return;
  const LayerIndex moe_layer(layer - spec.n_dense_layers);
  if (parts_.lookahead.wants(moe_layer, n_rows))
    parts_.lookahead.guess(moe_layer, parts_.weights.layers[layer], s_.x, n_rows);
}

void Forward::project_qkv(const LayerWeights& weights, uint32_t n_rows) {
  const Compute& compute = parts_.compute;
  input_.reset(s_.normed, n_rows);
  const auto project = [&](const Matrix& w, const float* bias, float* out) {
    compute.matmul(w, input_.for_weights(w.type, compute), n_rows, out);
    for (uint32_t t = 0; bias != nullptr && t < n_rows; ++t)
      compute.kernels().add(out + uint64_t{t} * w.rows, bias, w.rows);
  };
  project(weights.q, weights.q_bias, s_.q);
  project(weights.k, weights.k_bias, s_.k);
  project(weights.v, weights.v_bias, s_.v);
}

// QK-norm, rotation, and the new keys and values into their pages, as stored from then on: the
// chunk's own rows read them back from there like everybody else's.
void Forward::rotate_and_store(uint32_t layer, const LayerWeights& weights,
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
  parts_.compute.workers().parallel_for(
      static_cast<uint32_t>(rows.size()), 1, [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t i = begin; i < end; ++i) {
          const Row& row = rows[i];
          float* k = s_.k + uint64_t{i} * spec.k_width();
          const float* v = s_.v + uint64_t{i} * spec.v_width();
          norm_and_rotate(s_.q + uint64_t{i} * spec.q_width(), weights.q_norm, attention.n_heads,
                          row.position);
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

// Work items are (row, kv head): each reads its head's blocks once for the whole query group.
void Forward::attend(uint32_t layer, std::span<const Row> rows) {
  const float* sinks = parts_.weights.layers[layer].sinks;
  const AttentionSpec& attention = parts_.spec.attention;
  const uint32_t n_kv_heads = attention.n_kv_heads;
  const uint32_t group = attention.n_heads / n_kv_heads;
  parts_.compute.workers().parallel_for(
      static_cast<uint32_t>(rows.size()) * n_kv_heads, 1,
      [&](uint32_t begin, uint32_t end, uint32_t) {
        for (uint32_t item = begin; item < end; ++item) {
          const uint32_t i = item / n_kv_heads, head = item % n_kv_heads;
          AttentionArgs args;
          args.k_type = parts_.k_type;
          args.v_type = parts_.v_type;
          args.head_dim_k = attention.head_dim_k;
          args.head_dim_v = attention.head_dim_v;
          args.n_heads = group;
          args.q = s_.q + uint64_t{i} * parts_.spec.q_width() +
                   uint64_t{head} * group * attention.head_dim_k;
          args.k_blocks = args.v_blocks = parts_.kv.blocks(rows[i].sequence);
          args.k_offset = parts_.kv.k_offset(layer, head);
          args.v_offset = parts_.kv.v_offset(layer, head);
          args.first = first_seen(attention.window_of(layer), rows[i].position);
          args.last = rows[i].position;
          args.scale = attention.scale;
          if (sinks != nullptr) args.sinks = sinks + head * group;
          args.out = s_.attended + uint64_t{i} * parts_.spec.o_width() +
                     uint64_t{head} * group * attention.head_dim_v;
          parts_.compute.kernels().attention(args);
        }
      });
}

// Logits for the rows that want them, kLogitRows at a time.
void Forward::output(std::span<const Row> rows, const LogitsSink& sink) {
  const ModelSpec& spec = parts_.spec;
  const Kernels& kernels = parts_.compute.kernels();
  const Matrix& w = parts_.weights.output;
  const Norm norm = {parts_.weights.output_norm, parts_.weights.output_norm_bias, spec.norm_eps};
  size_t next = 0;
  while (next < rows.size()) {
    size_t batch[kLogitRows];
    uint32_t n = 0;
    for (; next < rows.size() && n < kLogitRows; ++next) {
      if (!rows[next].wants_logits) continue;
      parts_.compute.norm(norm, s_.x + next * spec.hidden, 1, spec.hidden,
                          s_.normed + uint64_t{n} * spec.hidden);
      batch[n++] = next;
    }
    if (n == 0) return;
    input_.reset(s_.normed, n);
    parts_.compute.matmul(w, input_.for_weights(w.type, parts_.compute), n, s_.logits);
    for (uint32_t i = 0; i < n; ++i) {
      float* logits = s_.logits + uint64_t{i} * spec.n_vocab;
      if (parts_.weights.output_bias != nullptr)
        kernels.add(logits, parts_.weights.output_bias, spec.n_vocab);
      if (spec.logit_scale != 1) kernels.scale(logits, spec.logit_scale, spec.n_vocab);
      sink(batch[i], {logits, spec.n_vocab});
    }
  }
}

}  // namespace offstage
