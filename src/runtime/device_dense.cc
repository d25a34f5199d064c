#include "runtime/device_dense.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"

namespace offstage {
namespace {

gpu::KvType kv_type_of(KvType type) {
  switch (type) {
    case KvType::kF32: return gpu::KvType::kF32;
    case KvType::kF16: return gpu::KvType::kF16;
    case KvType::kQ8_0: return gpu::KvType::kQ8_0;
  }
  return gpu::KvType::kF32;
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

void DeviceDense::begin_forward(std::span<const Row> rows, Phase phase) {
  takes_part_ = has_run_ = has_choice_ = false;
  if (is_lost()) return;
  if (phase != Phase::kDecode || rows.size() > options_.rows_max) return kv_.forget(rows);
  rows_ = rows;
  Status status;
  {
    const CauseScope scope(parts_.timer, Cause::kPcie);
    status = kv_.bring(rows, options_.deadline_ns);
  }
  const CauseScope scope(parts_.timer, Cause::kGpu);
  on_device_ = lay_out_back(work_.back, n_rows());
  in_ram_ = lay_out_back(back_, n_rows());
  if (status) status = hand_over_positions();
  if (!status) return lose(status.error());
  takes_part_ = true;
  ++forwards_;
}

uint64_t DeviceDense::back_bytes(uint32_t n_rows) const {
  const ModelSpec& spec = parts_.spec;
  return uint64_t{n_rows} * sizeof(float) *
         (2 * uint64_t{spec.hidden} + spec.k_width() + spec.v_width() + spec.router.n_experts +
          2 * uint64_t{spec.router.n_used});
}

DeviceDense::Back DeviceDense::lay_out_back(std::byte* memory, uint32_t n_rows) const {
  const ModelSpec& spec = parts_.spec;
  auto* next = reinterpret_cast<float*>(memory);
  const auto take = [&](uint64_t width) { return std::exchange(next, next + n_rows * width); };
  Back back;
  back.x = take(spec.hidden);
  back.normed = take(spec.hidden);
  back.k = take(spec.k_width());
  back.v = take(spec.v_width());
  back.scores = take(spec.router.n_experts);
  back.weights = take(spec.router.n_used);
  back.experts = reinterpret_cast<uint32_t*>(next);
  return back;
}

// Into pinned memory, and from there in one go. The forward before was waited for, so nobody reads
// what this overwrites.
Status DeviceDense::hand_over_positions() {
  const ModelSpec& spec = parts_.spec;
  const uint32_t n_kv_heads = spec.attention.n_kv_heads, n_rot = spec.rotary.n_rot;
  uint64_t end = 0;
  const auto part = [&](uint64_t bytes) {
    return std::exchange(end, end + round_up(bytes, kPartAlignment));
  };
  at_ = {};
  at_.angles = part(uint64_t{n_rows()} * n_rot * sizeof(float));
  at_.kv_rows =
      part(uint64_t{spec.n_layers} * 2 * n_rows() * n_kv_heads * sizeof(const std::byte*));
  for (uint64_t& seen : at_.seen) seen = part(n_rows() * sizeof(gpu::AttentionRow));
  auto** kv_row = reinterpret_cast<std::byte**>(positions_ + at_.kv_rows);
  for (uint32_t layer = 0; layer < spec.n_layers; ++layer) {
    for (const Row& row : rows_)
      for (uint32_t h = 0; h < n_kv_heads; ++h)
        *kv_row++ = kv_.place_of(parts_.kv.k_row(row.sequence, row.position, layer, h));
    for (const Row& row : rows_)
      for (uint32_t h = 0; h < n_kv_heads; ++h)
        *kv_row++ = kv_.place_of(parts_.kv.v_row(row.sequence, row.position, layer, h));
  }
  for (uint32_t i = 0; i < n_rows(); ++i) {
    const Row& row = rows_[i];
    std::memcpy(positions_ + at_.angles + uint64_t{i} * n_rot * sizeof(float),
                parts_.rotary.row(row.position), n_rot * sizeof(float));
    const uint32_t n_blocks = row.position / kKvBlockPositions + 1;
    const uint64_t table_at = part(n_blocks * sizeof(const std::byte*));
    auto** table = reinterpret_cast<const std::byte**>(positions_ + table_at);
    for (uint32_t b = 0; b < n_blocks; ++b)
      table[b] = kv_.place_of(parts_.kv.blocks(row.sequence)[b]);
    const auto* on_device = reinterpret_cast<const std::byte* const*>(work_.positions + table_at);
    for (uint32_t windowed = 0; windowed < 2; ++windowed) {
      const uint32_t first = first_seen(windowed != 0 ? spec.attention.window : 0, row.position);
      reinterpret_cast<gpu::AttentionRow*>(positions_ + at_.seen[windowed])[i] = {
          on_device, on_device, first, row.position};
      uint32_t& n_max = at_.n_blocks_max[windowed];
      n_max = std::max(n_max, n_blocks - first / kKvBlockPositions);
    }
  }
  CHECK_LE(end, positions_bytes_);
  return move("positions", positions_, work_.positions, end);
}

bool DeviceDense::run(uint32_t layer, float* x, float* normed) {
  has_run_ = has_choice_ = false;
  if (!takes_part_ || is_lost()) return false;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  layer_ = layer;
  Status status = launch(layer, x);
  if (status) status = wait_for_all();
  if (!status) {
    lose(status.error());
    return false;
  }
  take_back(x, normed);
  return true;
}

Status DeviceDense::launch(uint32_t layer, const float* x) {
  const ModelSpec& spec = parts_.spec;
  const LayerWeights& weights = layers_[layer];
  const uint64_t n = uint64_t{n_rows()} * spec.hidden;
  std::memcpy(x_, x, n * sizeof(float));
  OFFSTAGE_TRY_VOID(move("rows", reinterpret_cast<const std::byte*>(x_),
                         reinterpret_cast<std::byte*>(on_device_.x), n * sizeof(float)));
  OFFSTAGE_TRY_VOID(
      norm(on_device_.x, weights.attn_norm, n_rows(), spec.hidden, on_device_.normed));
  OFFSTAGE_TRY_VOID(project(weights));
  OFFSTAGE_TRY_VOID(rotate(work_.q, weights.q_norm, spec.attention.n_heads));
  OFFSTAGE_TRY_VOID(rotate(on_device_.k, weights.k_norm, spec.attention.n_kv_heads));
  OFFSTAGE_TRY_VOID(store(layer));
  OFFSTAGE_TRY_VOID(attend(layer));
  Input attended = {work_.attended, spec.o_width()};
  OFFSTAGE_TRY_VOID(multiply(weights.o, attended, weights.o_bias, work_.projected));
  OFFSTAGE_TRY_VOID(put("residual", parts_.kernels.add_scaled,
                        gpu::AddScaledArgs{on_device_.x, work_.projected, spec.residual_scale, n}));
  OFFSTAGE_TRY_VOID(norm(on_device_.x, weights.ffn_norm, n_rows(), spec.hidden, on_device_.normed));
  if (!spec.is_dense_layer(layer)) OFFSTAGE_TRY_VOID(choose(weights));
  return move("hand back", work_.back, back_, back_bytes(n_rows()));
}

Status DeviceDense::project(const LayerWeights& weights) {
  Input input = {on_device_.normed, parts_.spec.hidden};
  OFFSTAGE_TRY_VOID(multiply(weights.q, input, weights.q_bias, work_.q));
  OFFSTAGE_TRY_VOID(multiply(weights.k, input, weights.k_bias, on_device_.k));
  return multiply(weights.v, input, weights.v_bias, on_device_.v);
}

// QK-norm and rotation, as GqaAttention's.
Status DeviceDense::rotate(float* x, const float* weight, uint32_t n_heads) {
  const ModelSpec& spec = parts_.spec;
  const uint32_t head_dim = spec.attention.head_dim_k;
  if (spec.attention.qk_norm == QkNorm::kWhole)
    OFFSTAGE_TRY_VOID(norm(x, weight, n_rows(), n_heads * head_dim, x));
  if (spec.attention.qk_norm == QkNorm::kPerHead)
    OFFSTAGE_TRY_VOID(norm(x, weight, n_rows() * n_heads, head_dim, x));
  gpu::RopeArgs args;
  args.x = x;
  args.n_rows = n_rows();
  args.n_heads = n_heads;
  args.head_dim = head_dim;
  args.n_rot = spec.rotary.n_rot;
  args.neox = spec.rotary.kind == RotaryKind::kNeox;
  args.cos_sin = reinterpret_cast<const float*>(work_.positions + at_.angles);
  return put("rotate", parts_.kernels.rope, args);
}

Status DeviceDense::store(uint32_t layer) {
  const AttentionSpec& attention = parts_.spec.attention;
  const uint32_t n = n_rows() * attention.n_kv_heads;
  auto* const* rows =
      reinterpret_cast<std::byte* const*>(work_.positions + at_.kv_rows) + uint64_t{layer} * 2 * n;
  OFFSTAGE_TRY_VOID(put(
      "store keys", parts_.kernels.store_kv,
      gpu::StoreKvArgs{kv_type_of(parts_.k_type), on_device_.k, n, attention.head_dim_k, rows}));
  return put(
      "store values", parts_.kernels.store_kv,
      gpu::StoreKvArgs{kv_type_of(parts_.v_type), on_device_.v, n, attention.head_dim_v, rows + n});
}

gpu::AttentionArgs DeviceDense::attention_args(uint32_t n_rows, uint32_t n_blocks_max) const {
  const AttentionSpec& attention = parts_.spec.attention;
  gpu::AttentionArgs args;
  args.k_type = kv_type_of(parts_.k_type);
  args.v_type = kv_type_of(parts_.v_type);
  args.head_dim_k = attention.head_dim_k;
  args.head_dim_v = attention.head_dim_v;
  args.n_heads = attention.n_heads;
  args.n_kv_heads = attention.n_kv_heads;
  args.n_rows = n_rows;
  args.k_head_stride = kKvBlockPositions * kv_row_bytes(parts_.k_type, attention.head_dim_k);
  args.v_head_stride = kKvBlockPositions * kv_row_bytes(parts_.v_type, attention.head_dim_v);
  args.scale = attention.scale;
  args.n_blocks_max = n_blocks_max;
  return args;
}

Status DeviceDense::attend(uint32_t layer) {
  const uint32_t windowed = parts_.spec.attention.window_of(layer) != 0 ? 1 : 0;
  gpu::AttentionArgs args = attention_args(n_rows(), at_.n_blocks_max[windowed]);
  args.rows = reinterpret_cast<const gpu::AttentionRow*>(work_.positions + at_.seen[windowed]);
  args.q = work_.q;
  args.k_offset = parts_.kv.k_offset(layer, 0);
  args.v_offset = parts_.kv.v_offset(layer, 0);
  args.sinks = layers_[layer].sinks;
  args.scratch = work_.attention;
  args.out = work_.attended;
  const uint64_t read =
      uint64_t{n_rows()} * args.n_blocks_max * (args.k_head_stride + args.v_head_stride);
  return put("attention", parts_.kernels.attention, args, read * args.n_kv_heads);
}

Status DeviceDense::choose(const LayerWeights& weights) {
  const RouterSpec& router = parts_.spec.router;
  Input input = {on_device_.normed, parts_.spec.hidden};
  OFFSTAGE_TRY_VOID(multiply(weights.router, input, weights.router_bias, on_device_.scores));
  gpu::RouteArgs args;
  args.logits = on_device_.scores;
  args.n_rows = n_rows();
  args.n_experts = router.n_experts;
  args.n_used = router.n_used;
  args.score = score_of(router.score);
  args.selection_bias = weights.selection_bias;
  args.n_groups = router.n_groups;
  args.n_groups_used = router.n_groups_used;
  args.normalise_weights = router.normalise_weights;
  args.weights_scale = router.weights_scale;
  args.experts = on_device_.experts;
  args.weights = on_device_.weights;
  return put("route", parts_.kernels.route, args);
}

// The new keys and values are rounded once more: on both sides to the same bits.
void DeviceDense::take_back(float* x, float* normed) {
  const ModelSpec& spec = parts_.spec;
  const AttentionSpec& attention = spec.attention;
  parts_.timer.enter(Cause::kAttention);
  std::copy_n(in_ram_.x, uint64_t{n_rows()} * spec.hidden, x);
  std::copy_n(in_ram_.normed, uint64_t{n_rows()} * spec.hidden, normed);
  for (uint32_t i = 0; i < n_rows(); ++i) {
    const Row& row = rows_[i];
    const float* k = in_ram_.k + uint64_t{i} * spec.k_width();
    const float* v = in_ram_.v + uint64_t{i} * spec.v_width();
    for (uint32_t h = 0; h < attention.n_kv_heads; ++h) {
      parts_.cpu.store_kv(parts_.k_type, k + h * attention.head_dim_k, attention.head_dim_k,
                          parts_.kv.k_row(row.sequence, row.position, layer_, h));
      parts_.cpu.store_kv(parts_.v_type, v + h * attention.head_dim_v, attention.head_dim_v,
                          parts_.kv.v_row(row.sequence, row.position, layer_, h));
    }
  }
  choice_ = {in_ram_.experts, in_ram_.weights, in_ram_.scores};
  has_choice_ = !spec.is_dense_layer(layer_);
  has_run_ = true;
}

const FfnWeights& DeviceDense::ffn_of(uint32_t layer) const {
  return parts_.spec.is_dense_layer(layer) ? layers_[layer].dense : layers_[layer].shared;
}

uint32_t DeviceDense::ffn_width(uint32_t layer) const {
  return parts_.spec.is_dense_layer(layer) ? parts_.spec.dense_ffn : parts_.spec.shared_ffn;
}

bool DeviceDense::start_ffn() {
  if (!has_run_ || is_lost() || ffn_width(layer_) == 0) return false;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  const Status launched = launch_ffn();
  if (!launched) lose(launched.error());
  return launched.has_value();
}

Status DeviceDense::launch_ffn() {
  const FfnWeights& ffn = ffn_of(layer_);
  const uint32_t width = ffn_width(layer_);
  const uint64_t out_bytes = uint64_t{n_rows()} * parts_.spec.hidden * sizeof(float);
  Input input = {on_device_.normed, parts_.spec.hidden};
  OFFSTAGE_TRY_VOID(multiply(ffn.gate, input, nullptr, work_.gate));
  OFFSTAGE_TRY_VOID(multiply(ffn.up, input, nullptr, work_.up));
  gpu::ActivateArgs args;
  args.activation = parts_.spec.activation == Activation::kSwiglu ? gpu::Activation::kSwiglu
                                                                  : gpu::Activation::kSwigluClamped;
  args.gate = work_.gate;
  args.up = work_.up;
  args.n = uint64_t{n_rows()} * width;
  OFFSTAGE_TRY_VOID(put("activate", parts_.kernels.activate, args));
  Input hidden = {work_.gate, width};
  OFFSTAGE_TRY_VOID(multiply(ffn.down, hidden, nullptr, work_.ffn_out));
  return move("hand back", reinterpret_cast<const std::byte*>(work_.ffn_out),
              reinterpret_cast<std::byte*>(ffn_back_), out_bytes);
}

bool DeviceDense::collect_ffn(float* out) {
  if (is_lost()) return false;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  if (const Status there = wait_for_all(); !there) {
    lose(there.error());
    return false;
  }
  std::copy_n(ffn_back_, uint64_t{n_rows()} * parts_.spec.hidden, out);
  return true;
}

Status DeviceDense::norm(const float* x, const float* weight, uint32_t n_rows, uint32_t n,
                         float* y) {
  return put("norm", parts_.kernels.rms_norm,
             gpu::RmsNormArgs{x, weight, n_rows, n, parts_.spec.norm_eps, y});
}

// out [n_rows][w.rows] = input · wᵀ + bias
Status DeviceDense::multiply(const Matrix& w, Input& input, const float* bias, float* out) {
  const uint64_t bytes = w.rows * row_bytes(w.type, w.k);
  if (!is_quantised(w.type))
    return put("matvec", parts_.kernels.float_matvec,
               gpu::FloatMatvecArgs{w.type, w.k, w.rows, w.data, input.x, n_rows(), bias, out},
               bytes);
  const size_t form = activation_format(w.type) == ActivationFormat::kQ8_32 ? 0 : 1;
  if (!std::exchange(input.is_made[form], true))
    OFFSTAGE_TRY_VOID(
        put("quantise", parts_.kernels.quantise_activations,
            gpu::QuantiseArgs{w.type, input.x, n_rows(), input.k, work_.forms[form]}));
  gpu::MatvecArgs args;
  args.type = w.type;
  args.k = w.k;
  args.n = w.rows;
  args.matrix = w.data;
  args.n_places = n_rows();
  args.activations = work_.forms[form];
  args.bias = bias;
  args.out = out;
  return put("matvec", parts_.kernels.matvec, args, bytes);
}

Status DeviceDense::move(std::string_view name, const std::byte* from, std::byte* to,
                         uint64_t bytes) {
  return put(name, parts_.kernels.move_words, gpu::MoveWordsArgs{from, to, bytes}, 0, bytes);
}

// The simulated device's check of races is told where copies could meet a kernel: in KV.
template <typename Args>
Status DeviceDense::put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                        const Args& args, uint64_t bytes, uint64_t host_bytes) {
  DeviceWork work;
  work.name = name;
  work.bytes = bytes;
  work.host_bytes = host_bytes;
  if constexpr (std::is_same_v<Args, gpu::AttentionArgs> || std::is_same_v<Args, gpu::StoreKvArgs>)
    work.ranges.push_back(kv_.memory());
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device.launch(std::move(work));
}

Status DeviceDense::wait_for_all() {
  OFFSTAGE_TRY(const DeviceMark done, parts_.device.mark(DeviceStream::kCompute));
  return parts_.device.wait(done, options_.deadline_ns);
}

void DeviceDense::lose(const Error& error) {
  lost_ = true;
  if (experts_ != nullptr) return experts_->lose(error);
  parts_.notices.add(
      "vram", fmt::format("VRAM: not used any more, the CPU computes all: {}", error.message));
}

}  // namespace offstage
