// A layer's dense part, put on the device's stream slice by slice: what GqaAttention,
// MlaAttention, Router and FfnBlock do, kernel by kernel.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "runtime/device_dense.h"

namespace offstage {
namespace {

// More rows of a quantised matrix's input share its weights tile by tile. Not measured.
constexpr uint32_t kMatvecRows = 16;

gpu::KvType kv_type_of(KvType type) {
  switch (type) {
    case KvType::kF32: return gpu::KvType::kF32;
    case KvType::kF16: return gpu::KvType::kF16;
    case KvType::kQ8_0: return gpu::KvType::kQ8_0;
  }
  return gpu::KvType::kF32;
}

// Which of Work's forms a quantised matrix multiplies.
size_t form_of(TensorType type) {
  return activation_format(type) == ActivationFormat::kQ8_32 ? 0 : 1;
}

gpu::RouterScore score_of(RouterScore score) {
  switch (score) {
    case RouterScore::kSoftmax: return gpu::RouterScore::kSoftmax;
    case RouterScore::kSoftmaxOfChosen: return gpu::RouterScore::kSoftmaxOfChosen;
    case RouterScore::kSigmoid: return gpu::RouterScore::kSigmoid;
  }
  return gpu::RouterScore::kSoftmax;
}

}  // namespace

Status DeviceDense::launch_layer() {
  for (uint32_t first = 0; first < n_rows(); first += slice_rows_)
    OFFSTAGE_TRY_VOID(launch_slice({first, std::min(slice_rows_, n_rows() - first)}));
  return {};
}

// Slices ascend, so that each finds the keys and values of those before it.
Status DeviceDense::launch_slice(Slice rows) {
  const ModelSpec& spec = parts_.spec;
  const LayerWeights& weights = layers_[layer_];
  const uint64_t at = uint64_t{rows.first} * spec.hidden, n = uint64_t{rows.n} * spec.hidden;
  float* const x = on_device_.x + at;
  float* const normed = on_device_.normed + at;
  OFFSTAGE_TRY_VOID(
      norm(x, weights.attn_norm, weights.attn_norm_bias, rows.n, spec.hidden, normed));
  Input input = {normed, spec.hidden, rows.n};
  OFFSTAGE_TRY_VOID(is_latent() ? make_latents(weights, input, rows)
                                : make_heads(weights, input, rows));
  OFFSTAGE_TRY_VOID(store(rows));
  OFFSTAGE_TRY_VOID(attend(rows));
  Input attended = {work_.attended, spec.o_width(), rows.n};
  if (is_latent()) {
    OFFSTAGE_TRY_VOID(multiply_heads(weights.mla.v_b, {work_.attended, mla().kv_rank},
                                     {work_.per_head, mla().v_dim}, rows.n));
    attended = {work_.per_head, spec.attention.n_heads * mla().v_dim, rows.n};
  }
  OFFSTAGE_TRY_VOID(multiply(weights.o, attended, weights.o_bias, work_.projected));
  OFFSTAGE_TRY_VOID(put("residual", parts_.kernels.add_scaled,
                        gpu::AddScaledArgs{x, work_.projected, spec.residual_scale, n}));
  OFFSTAGE_TRY_VOID(norm(x, weights.ffn_norm, weights.ffn_norm_bias, rows.n, spec.hidden, normed));
  return spec.is_dense_layer(layer_) ? Status() : choose(weights, rows);
}

Status DeviceDense::make_heads(const LayerWeights& weights, Input& input, Slice rows) {
  const AttentionSpec& attention = parts_.spec.attention;
  OFFSTAGE_TRY_VOID(multiply(weights.q, input, weights.q_bias, work_.q));
  OFFSTAGE_TRY_VOID(multiply(weights.k, input, weights.k_bias, on_device_.k));
  OFFSTAGE_TRY_VOID(multiply(weights.v, input, weights.v_bias, on_device_.v));
  OFFSTAGE_TRY_VOID(rotate(work_.q, weights.q_norm, attention.n_heads, rows));
  return rotate(on_device_.k, weights.k_norm, attention.n_kv_heads, rows);
}

// QK-norm and rotation, as GqaAttention's.
Status DeviceDense::rotate(float* x, const float* weight, uint32_t n_heads, Slice rows) {
  const ModelSpec& spec = parts_.spec;
  const uint32_t head_dim = spec.attention.head_dim_k;
  if (spec.attention.qk_norm == QkNorm::kWhole)
    OFFSTAGE_TRY_VOID(norm(x, weight, nullptr, rows.n, n_heads * head_dim, x));
  if (spec.attention.qk_norm == QkNorm::kPerHead)
    OFFSTAGE_TRY_VOID(norm(x, weight, nullptr, rows.n * n_heads, head_dim, x));
  return put("rotate", parts_.kernels.rope, rope_args(x, n_heads, rows));
}

gpu::RopeArgs DeviceDense::rope_args(float* x, uint32_t n_heads, Slice rows) const {
  const ModelSpec& spec = parts_.spec;
  gpu::RopeArgs args;
  args.x = x;
  args.n_rows = rows.n;
  args.n_heads = n_heads;
  args.head_dim = spec.attention.head_dim_k;
  args.n_rot = spec.rotary.n_rot;
  args.neox = spec.rotary.kind == RotaryKind::kNeox;
  args.cos_sin = reinterpret_cast<const float*>(work_.positions + at_.angles) +
                 uint64_t{rows.first} * spec.rotary.n_rot;
  return args;
}

// The rows' latents, and the queries as those are asked. Whatever takes the normed rows comes
// first: forms of other inputs lie in the same place.
Status DeviceDense::make_latents(const LayerWeights& weights, Input& input, Slice rows) {
  const MlaWeights& w = weights.mla;
  const uint32_t rank = mla().kv_rank, n_heads = parts_.spec.attention.n_heads;
  const bool is_compressed = mla().q_rank != 0;
  OFFSTAGE_TRY_VOID(multiply(w.kv_a, input, nullptr, on_device_.k));
  OFFSTAGE_TRY_VOID(multiply(is_compressed ? w.q_a : weights.q, input, nullptr,
                             is_compressed ? work_.q_low : work_.per_head));
  if (is_compressed) {
    OFFSTAGE_TRY_VOID(norm(work_.q_low, w.q_a_norm, nullptr, rows.n, mla().q_rank, work_.q_low));
    Input low = {work_.q_low, mla().q_rank, rows.n};
    OFFSTAGE_TRY_VOID(multiply(w.q_b, low, nullptr, work_.per_head));
  }
  OFFSTAGE_TRY_VOID(put("norm", parts_.kernels.rms_norm,
                        gpu::RmsNormArgs{on_device_.k, w.kv_a_norm, rows.n, rank,
                                         parts_.spec.norm_eps, on_device_.k, mla().row_dim()}));
  OFFSTAGE_TRY_VOID(put("rotate", parts_.kernels.rope, rope_args(on_device_.k + rank, 1, rows)));
  OFFSTAGE_TRY_VOID(multiply_heads(w.k_b, {work_.per_head, mla().head_dim()},
                                   {work_.q, mla().row_dim()}, rows.n));
  gpu::RopeArgs rotated = rope_args(work_.q + rank, n_heads, rows);
  rotated.from = work_.per_head + mla().nope_dim;
  rotated.from_stride = mla().head_dim();
  return put("rotate", parts_.kernels.rope, rotated);
}

Status DeviceDense::store(Slice rows) {
  const AttentionSpec& attention = parts_.spec.attention;
  const uint32_t n = rows.n * attention.n_kv_heads;
  const uint64_t first = uint64_t{rows.first} * attention.n_kv_heads;
  const uint64_t offset = layer_ * parts_.kv.layer_bytes();
  const auto places = [&](uint64_t at) {
    return reinterpret_cast<std::byte* const*>(work_.positions + at) + first;
  };
  OFFSTAGE_TRY_VOID(put("store keys", parts_.kernels.store_kv,
                        gpu::StoreKvArgs{kv_type_of(parts_.k_type), on_device_.k, n,
                                         attention.head_dim_k, places(at_.k_rows), offset}));
  if (is_latent()) return {};
  return put("store values", parts_.kernels.store_kv,
             gpu::StoreKvArgs{kv_type_of(parts_.v_type), on_device_.v, n, attention.head_dim_v,
                              places(at_.v_rows), offset});
}

gpu::AttentionArgs DeviceDense::attention_args(uint32_t n_rows, uint32_t n_blocks_max) const {
  const AttentionSpec& attention = parts_.spec.attention;
  gpu::AttentionArgs args;
  args.k_type = kv_type_of(parts_.k_type);
  args.v_type = kv_type_of(is_latent() ? parts_.k_type : parts_.v_type);
  args.head_dim_k = attention.head_dim_k;
  args.head_dim_v = attention.head_dim_v;
  args.n_heads = attention.n_heads;
  args.n_kv_heads = attention.n_kv_heads;
  args.n_rows = n_rows;
  args.k_head_stride = kKvBlockPositions * kv_row_bytes(parts_.k_type, attention.head_dim_k);
  if (is_latent())
    args.v_stride = kv_row_bytes(parts_.k_type, attention.head_dim_k);
  else
    args.v_head_stride = kKvBlockPositions * kv_row_bytes(parts_.v_type, attention.head_dim_v);
  args.scale = attention.scale;
  args.n_blocks_max = n_blocks_max;
  return args;
}

// That any of the rows sees.
uint32_t DeviceDense::n_blocks_max(Slice rows, uint32_t window) const {
  uint32_t n_max = 0;
  for (const Row& row : rows_.subspan(rows.first, rows.n))
    n_max = std::max(n_max, row.position / kKvBlockPositions -
                                first_seen(window, row.position) / kKvBlockPositions + 1);
  return n_max;
}

// As many rows at once as have room for what their blocks give. Every row sees those before it in
// the slice: all are stored already.
Status DeviceDense::attend(Slice slice) {
  const ModelSpec& spec = parts_.spec;
  const uint32_t window = spec.attention.window_of(layer_);
  const auto* seen =
      reinterpret_cast<const gpu::AttentionRow*>(work_.positions + at_.seen[window != 0 ? 1 : 0]);
  const uint64_t of_row =
      gpu::attention_scratch_bytes(attention_args(1, n_blocks_max(slice, window)));
  const auto at_once =
      static_cast<uint32_t>(std::min<uint64_t>(slice.n, attention_bytes_ / of_row));
  for (uint32_t done = 0; done < slice.n; done += at_once) {
    const Slice rows = {slice.first + done, std::min(at_once, slice.n - done)};
    gpu::AttentionArgs args = attention_args(rows.n, n_blocks_max(rows, window));
    args.rows = seen + rows.first;
    args.q = work_.q + uint64_t{done} * spec.q_width();
    args.k_offset = parts_.kv.k_offset(layer_, 0);
    args.v_offset = is_latent() ? args.k_offset : parts_.kv.v_offset(layer_, 0);
    args.sinks = layers_[layer_].sinks;
    args.scratch = work_.attention;
    args.out = work_.attended + uint64_t{done} * spec.o_width();
    const uint64_t read =
        uint64_t{rows.n} * args.n_blocks_max * (args.k_head_stride + args.v_head_stride);
    OFFSTAGE_TRY_VOID(put("attention", parts_.kernels.attention, args, read * args.n_kv_heads));
  }
  return {};
}

Status DeviceDense::choose(const LayerWeights& weights, Slice rows) {
  const RouterSpec& router = parts_.spec.router;
  const uint64_t first_call = uint64_t{rows.first} * router.n_used;
  Input input = {on_device_.normed + uint64_t{rows.first} * parts_.spec.hidden, parts_.spec.hidden,
                 rows.n};
  OFFSTAGE_TRY_VOID(multiply(weights.router, input, weights.router_bias, on_device_.scores));
  gpu::RouteArgs args;
  args.logits = on_device_.scores;
  args.n_rows = rows.n;
  args.n_experts = router.n_experts;
  args.n_used = router.n_used;
  args.score = score_of(router.score);
  args.selection_bias = weights.selection_bias;
  args.n_groups = router.n_groups;
  args.n_groups_used = router.n_groups_used;
  args.normalise_weights = router.normalise_weights;
  args.weights_scale = router.weights_scale;
  args.experts = on_device_.experts + first_call;
  args.weights = on_device_.weights + first_call;
  return put("route", parts_.kernels.route, args);
}

const FfnWeights& DeviceDense::ffn_of(uint32_t layer) const {
  return parts_.spec.is_dense_layer(layer) ? layers_[layer].dense : layers_[layer].shared;
}

uint32_t DeviceDense::ffn_width(uint32_t layer) const {
  return parts_.spec.is_dense_layer(layer) ? parts_.spec.dense_ffn : parts_.spec.shared_ffn;
}

// A chunk's rows stay there until they are collected.
Status DeviceDense::launch_ffn() {
  for (uint32_t first = 0; first < n_rows(); first += slice_rows_)
    OFFSTAGE_TRY_VOID(launch_ffn({first, std::min(slice_rows_, n_rows() - first)}));
  if (in_chunk_) return {};
  return move("hand back", reinterpret_cast<const std::byte*>(work_.ffn_out),
              reinterpret_cast<std::byte*>(ffn_back_),
              uint64_t{n_rows()} * parts_.spec.hidden * sizeof(float));
}

Status DeviceDense::launch_ffn(Slice rows) {
  const FfnWeights& ffn = ffn_of(layer_);
  const uint32_t width = ffn_width(layer_);
  const uint64_t at = uint64_t{rows.first} * parts_.spec.hidden;
  Input input = {on_device_.normed + at, parts_.spec.hidden, rows.n};
  OFFSTAGE_TRY_VOID(multiply(ffn.gate, input, nullptr, work_.gate));
  OFFSTAGE_TRY_VOID(multiply(ffn.up, input, nullptr, work_.up));
  gpu::ActivateArgs args;
  args.activation = parts_.spec.activation == Activation::kSwiglu ? gpu::Activation::kSwiglu
                                                                  : gpu::Activation::kSwigluClamped;
  args.gate = work_.gate;
  args.up = work_.up;
  args.n = uint64_t{rows.n} * width;
  OFFSTAGE_TRY_VOID(put("activate", parts_.kernels.activate, args));
  Input hidden = {work_.gate, width, rows.n};
  return multiply(ffn.down, hidden, nullptr, work_.ffn_out + at);
}

Status DeviceDense::norm(const float* x, const float* weight, const float* bias, uint32_t n_rows,
                         uint32_t n, float* y) {
  const float eps = parts_.spec.norm_eps;
  if (bias != nullptr)
    return put("norm", parts_.kernels.layer_norm,
               gpu::LayerNormArgs{x, weight, bias, n_rows, n, eps, y});
  return put("norm", parts_.kernels.rms_norm, gpu::RmsNormArgs{x, weight, n_rows, n, eps, y});
}

// out [n_rows][w.rows] = input · wᵀ + bias
Status DeviceDense::multiply(const Matrix& w, Input& input, const float* bias, float* out) {
  const uint64_t bytes = w.rows * row_bytes(w.type, w.k);
  if (!is_quantised(w.type))
    return put("matvec", parts_.kernels.float_matvec,
               gpu::FloatMatvecArgs{w.type, w.k, w.rows, w.data, input.x, input.n_rows, bias, out},
               bytes);
  const size_t form = form_of(w.type);
  if (!std::exchange(input.is_made[form], true))
    OFFSTAGE_TRY_VOID(
        put("quantise", parts_.kernels.quantise_activations,
            gpu::QuantiseArgs{w.type, input.x, input.n_rows, input.k, work_.forms[form]}));
  gpu::MatvecArgs args;
  args.type = w.type;
  args.k = w.k;
  args.n = w.rows;
  args.matrix = w.data;
  args.n_places = input.n_rows;
  args.activations = work_.forms[form];
  args.bias = bias;
  args.out = out;
  return multiply(args);
}

// to[row][h] = w[h] · from[row][h]; w holds n_heads matrices, one below the other.
Status DeviceDense::multiply_heads(const Matrix& w, PerHead from, PerHead to, uint32_t n_rows) {
  const uint32_t n_heads = parts_.spec.attention.n_heads, n = w.rows / n_heads;
  if (!is_quantised(w.type))
    return put("heads", parts_.kernels.float_matvec,
               gpu::FloatMatvecArgs{w.type, w.k, n, w.data, from.x, n_rows, nullptr, to.x, n_heads,
                                    from.stride, to.stride},
               w.rows * row_bytes(w.type, w.k));
  std::byte* const forms = work_.forms[form_of(w.type)];
  OFFSTAGE_TRY_VOID(
      put("quantise", parts_.kernels.quantise_activations,
          gpu::QuantiseArgs{w.type, from.x, n_rows * n_heads, w.k, forms, from.stride}));
  gpu::MatvecArgs args;
  args.type = w.type;
  args.k = w.k;
  args.n = n;
  args.matrix = w.data;
  args.n_places = n_rows;
  args.activations = forms;
  args.out = to.x;
  args.n_heads = n_heads;
  args.out_stride = to.stride;
  return multiply(args);
}

Status DeviceDense::multiply(const gpu::MatvecArgs& args) {
  const uint64_t bytes = uint64_t{args.n} * args.n_heads * row_bytes(args.type, args.k);
  if (args.n_places > kMatvecRows) return put("matmul", parts_.kernels.matmul, args, bytes);
  return put("matvec", parts_.kernels.matvec, args, bytes);
}

Status DeviceDense::move(std::string_view name, const std::byte* from, std::byte* to,
                         uint64_t bytes) {
  return put(name, parts_.kernels.move_words, gpu::MoveWordsArgs{from, to, bytes}, 0, bytes);
}

// The simulated device's check of races is told of all that copies could meet: a chunk's rows and
// KV. What goes over and back by kernels they never meet.
template <typename Args>
Status DeviceDense::put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                        const Args& args, uint64_t bytes, uint64_t host_bytes) {
  DeviceWork work;
  work.name = name;
  work.bytes = bytes;
  work.host_bytes = host_bytes;
  if constexpr (!std::is_same_v<Args, gpu::MoveWordsArgs>) work.ranges.push_back(work_memory_);
  if constexpr (std::is_same_v<Args, gpu::AttentionArgs> || std::is_same_v<Args, gpu::StoreKvArgs>)
    work.ranges.push_back(kv_.memory());
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device.launch(std::move(work));
}

}  // namespace offstage
