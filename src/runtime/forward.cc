// How a token is made.
//
//   x = embedding[token]
//   for each layer:
//     x += Wo · attention(rotate(Wq·h), rotate(Wk·h), Wv·h)     h = norm(x)  (attention_gqa.cc)
//          (or latent attention on compressed keys and values: attention_mla.cc)
//     x += Σ over the router's k experts of weight · expert(h)   h = norm(x)
//          (or one FFN, in a layer without experts)
//   logits = Wout · norm(x)
//
// Everything but the experts is resident and computed in place; the experts come from the RAM tier,
// hits first, while the misses are still being read (moe_block.cc). What a family adds (biases,
// QK-norm, sinks, a window, scales) is a value of ModelSpec, seen here as a pointer that is or
// isn't null, or a factor that is or isn't 1.
//
// Where: on the CPU, unless --vram gives a device something to keep. It may keep all but the
// embedding and the experts (device_dense.h), and of decoded tokens the logits (device_logits.h):
// then a layer's attention, the router's choice, the shared expert and the logits are asked of it,
// and computed here if it says no. Experts in VRAM are the MoE block's (device_experts.h).
//
// Two stand beside a token's way and never change a bit of it: ReadAhead has experts read before
// they are called, RoutingWatchers look on at what is called.
#include "runtime/forward.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {

Forward::Attention Forward::make_attention(const Parts& parts) {
  const AttentionParts shared = {parts.spec, parts.compute, parts.rotary,
                                 parts.kv,   parts.k_type,  parts.v_type};
  if (parts.spec.attention.mla.kv_rank != 0)
    return MlaAttention(shared, parts.scratch.mla, parts.rows_max);
  return GqaAttention(shared, parts.scratch.gqa, parts.rows_max);
}

Forward::Forward(const Parts& parts)
    : parts_(parts),
      s_(parts_.scratch),
      input_(s_.input_forms, parts.rows_max, parts.spec.hidden),
      attention_(make_attention(parts_)),
      dense_(parts.spec.activation, parts_.compute, s_.ffn, parts.rows_max, parts.spec.dense_ffn) {}

Status Forward::run(std::span<const Row> rows, Phase phase, const LogitsSink& sink) {
  const CauseScope scope(parts_.timer, Cause::kAttention);
  OFFSTAGE_TRY_VOID(check_rows(rows));
  const auto n_rows = static_cast<uint32_t>(rows.size());
  parts_.moe.begin_forward(n_rows, phase);
  parts_.watchers.begin_forward(rows, phase);
  if (parts_.device != nullptr) parts_.device->begin_forward(rows, phase);
  embed(rows);
  parts_.read_ahead.look(0, s_.x, n_rows, phase);
  for (uint32_t layer = 0; layer < parts_.spec.n_layers; ++layer) {
    parts_.trace.begin_layer(layer, parts_.timer.enter(Cause::kAttention));
    attention_block(layer, rows);
    OFFSTAGE_TRY_VOID(ffn_block(layer, n_rows, phase));
  }
  parts_.trace.end_layers(parts_.timer.enter(Cause::kRecord));
  parts_.moe.end_forward();
  OFFSTAGE_TRY_VOID(parts_.watchers.end_forward());
  parts_.timer.enter(Cause::kOutput);
  output(rows, phase, sink);
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

// s_.x past the layer's attention, and s_.normed for what follows it.
void Forward::attention_block(uint32_t layer, std::span<const Row> rows) {
  if (parts_.device != nullptr && parts_.device->run(layer, s_.x, s_.normed, s_.projected)) return;
  const LayerWeights& weights = parts_.weights.layers[layer];
  const auto n_rows = static_cast<uint32_t>(rows.size());
  const ModelSpec& spec = parts_.spec;
  parts_.compute.norm({weights.attn_norm, weights.attn_norm_bias, spec.norm_eps}, s_.x, n_rows,
                      spec.hidden, s_.normed);
  input_.reset(s_.normed, n_rows);
  std::visit([&](auto& attention) { attention.run(layer, weights, rows, input_, s_.projected); },
             attention_);
  parts_.compute.kernels().add_scaled(s_.x, s_.projected, spec.residual_scale,
                                      n_rows * spec.hidden);
  parts_.compute.norm({weights.ffn_norm, weights.ffn_norm_bias, spec.norm_eps}, s_.x, n_rows,
                      spec.hidden, s_.normed);
}

Status Forward::ffn_block(uint32_t layer, uint32_t n_rows, Phase phase) {
  if (!parts_.spec.is_dense_layer(layer)) return experts(layer, n_rows, phase);
  parts_.read_ahead.look(layer + 1, s_.x, n_rows, phase);
  dense_ffn(layer, n_rows);
  return {};
}

// Reads of the missing experts start with the call, and behind them those of experts that the next
// layer will probably call; both fly while others look on and this layer computes.
Status Forward::experts(uint32_t layer, uint32_t n_rows, Phase phase) {
  const LayerWeights& weights = parts_.weights.layers[layer];
  const LayerIndex moe_layer(layer - parts_.spec.n_dense_layers);
  const Routing& routing = parts_.moe.call(moe_layer, weights, s_.normed, n_rows, phase);
  parts_.read_ahead.learn(moe_layer, routing.calls);
  parts_.read_ahead.look(layer + 1, s_.x, n_rows, phase);
  parts_.watchers.at_layer(moe_layer, routing, s_.x);
  return parts_.moe.compute(weights, s_.normed, n_rows, s_.x);
}

void Forward::dense_ffn(uint32_t layer, uint32_t n_rows) {
  const ModelSpec& spec = parts_.spec;
  parts_.timer.enter(Cause::kExperts);
  DeviceDense* const device = parts_.device;
  if (device == nullptr || !device->start_ffn() || !device->collect_ffn(s_.projected)) {
    input_.reset(s_.normed, n_rows);
    dense_.run(parts_.weights.layers[layer].dense, input_, n_rows, s_.projected);
  }
  parts_.compute.kernels().add_scaled(s_.x, s_.projected, spec.residual_scale,
                                      n_rows * spec.hidden);
}

// Logits for the rows that want them, kLogitRows at a time.
void Forward::output(std::span<const Row> rows, Phase phase, const LogitsSink& sink) {
  const ModelSpec& spec = parts_.spec;
  size_t next = 0;
  while (next < rows.size()) {
    size_t batch[kLogitRows];
    const float* x[kLogitRows];
    uint32_t n = 0;
    for (; next < rows.size() && n < kLogitRows; ++next) {
      if (!rows[next].wants_logits) continue;
      x[n] = s_.x + next * spec.hidden;
      batch[n++] = next;
    }
    if (n == 0) return;
    float* const logits = logits_of({x, n}, phase);
    for (uint32_t i = 0; i < n; ++i) {
      float* of_row = logits + uint64_t{i} * spec.n_vocab;
      if (spec.logit_scale != 1)
        parts_.compute.kernels().scale(of_row, spec.logit_scale, spec.n_vocab);
      sink(batch[i], {of_row, spec.n_vocab});
    }
  }
}

// [rows][n_vocab], but for the model's scale.
float* Forward::logits_of(std::span<const float* const> x, Phase phase) {
  if (parts_.logits != nullptr && phase == Phase::kDecode)
    if (float* const by_device = parts_.logits->run(x)) return by_device;
  const ModelSpec& spec = parts_.spec;
  const Matrix& w = parts_.weights.output;
  const Norm norm = {parts_.weights.output_norm, parts_.weights.output_norm_bias, spec.norm_eps};
  const auto n = static_cast<uint32_t>(x.size());
  for (uint32_t i = 0; i < n; ++i)
    parts_.compute.norm(norm, x[i], 1, spec.hidden, s_.normed + uint64_t{i} * spec.hidden);
  input_.reset(s_.normed, n);
  parts_.compute.matmul(w, input_.for_weights(w.type, parts_.compute), n, s_.logits);
  for (uint32_t i = 0; i < n && parts_.weights.output_bias != nullptr; ++i)
    parts_.compute.kernels().add(s_.logits + uint64_t{i} * spec.n_vocab, parts_.weights.output_bias,
                                 spec.n_vocab);
  return s_.logits;
}

}  // namespace offstage
