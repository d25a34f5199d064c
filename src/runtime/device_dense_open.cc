// Before the first forward: whether the device can, what it takes, and the weights.
#include <algorithm>
#include <utility>

#include "base/checked_math.h"
#include "base/units.h"
#include "runtime/device_dense.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 256;

uint64_t aligned(uint64_t bytes) { return round_up(bytes, kAlignment); }

// Every tensor of a layer's dense part: visit(data, bytes) says where it lies from now on.
template <typename Visit>
void for_each_tensor(const ModelSpec& spec, LayerWeights& w, const Visit& visit) {
  for (Matrix* m : {&w.q, &w.k, &w.v, &w.o, &w.router, &w.shared.gate, &w.shared.up, &w.shared.down,
                    &w.dense.gate, &w.dense.up, &w.dense.down})
    if (m->data != nullptr) m->data = visit(m->data, m->rows * row_bytes(m->type, m->k));
  const auto floats = [&](const float*& values, uint64_t n) {
    if (values == nullptr) return;
    values = reinterpret_cast<const float*>(
        visit(reinterpret_cast<const std::byte*>(values), n * sizeof(float)));
  };
  const bool whole = spec.attention.qk_norm == QkNorm::kWhole;
  floats(w.attn_norm, spec.hidden);
  floats(w.ffn_norm, spec.hidden);
  floats(w.q_bias, spec.q_width());
  floats(w.k_bias, spec.k_width());
  floats(w.v_bias, spec.v_width());
  floats(w.o_bias, spec.hidden);
  floats(w.q_norm, whole ? spec.q_width() : spec.attention.head_dim_k);
  floats(w.k_norm, whole ? spec.k_width() : spec.attention.head_dim_k);
  floats(w.sinks, spec.attention.n_heads);
  floats(w.router_bias, spec.router.n_experts);
  floats(w.selection_bias, spec.router.n_experts);
}

// Empty: there is a kernel for everything.
std::string why_not(const ModelSpec& spec, const DenseWeights& weights) {
  const RouterSpec& router = spec.router;
  if (spec.attention.mla.kv_rank != 0) return "there is no kernel for latent attention";
  if (spec.norm != NormKind::kRms) return "there is no kernel for layer norms";
  if (router.n_experts > gpu::kRouterExpertsMax || router.n_used > gpu::kRouterUsedMax ||
      router.n_groups > gpu::kRouterGroupsMax)
    return fmt::format(
        "its router takes {} of {} experts in {} groups, the kernel at most {} of "
        "{} in {}",
        router.n_used, router.n_experts, router.n_groups, gpu::kRouterUsedMax,
        gpu::kRouterExpertsMax, gpu::kRouterGroupsMax);
  for (const LayerWeights& w : weights.layers)
    for (const Matrix* m : {&w.q, &w.k, &w.v, &w.o, &w.router, &w.shared.gate, &w.shared.up,
                            &w.shared.down, &w.dense.gate, &w.dense.up, &w.dense.down})
      if (m->data != nullptr && is_quantised(m->type) && !gpu::has_matvec(m->type))
        return fmt::format("there is no kernel for its matrices in {}",
                           tensor_type_traits(m->type).name);
  return "";
}

}  // namespace

DeviceDense::DeviceDense(const Parts& parts, const Options& options)
    : parts_(parts),
      options_(options),
      kv_(parts.device, parts.kv, options.n_sequences),
      layers_(parts.weights.layers) {}

Result<std::unique_ptr<DeviceDense>> DeviceDense::create(const Parts& parts,
                                                         const Options& options) {
  if (const std::string reason = why_not(parts.spec, parts.weights); !reason.empty())
    return make_error(ErrorCode::kUnsupported, "{}", reason);
  std::unique_ptr<DeviceDense> dense(new DeviceDense(parts, options));
  OFFSTAGE_TRY_VOID(dense->open());
  return dense;
}

void DeviceDense::count_memory() {
  for (LayerWeights layer : layers_)
    for_each_tensor(parts_.spec, layer, [&](const std::byte* data, uint64_t bytes) {
      weights_bytes_ += aligned(bytes);
      return data;
    });
  const ModelSpec& spec = parts_.spec;
  const uint64_t rows = options_.rows_max;
  const uint64_t n_blocks = KvCache::pages_for(parts_.rotary.context(), 1);
  const auto part = [](uint64_t bytes) { return round_up(bytes, kPartAlignment); };
  positions_bytes_ = part(rows * spec.rotary.n_rot * sizeof(float)) +
                     part(spec.n_layers * 2 * rows * spec.attention.n_kv_heads * sizeof(void*)) +
                     2 * part(rows * sizeof(gpu::AttentionRow)) +
                     rows * part(n_blocks * sizeof(void*));
  working_bytes_ = lay_out_work(nullptr);
  kv_bytes_ = aligned(kv_.bytes());
}

// Counts with a null base, else says what lies where: one walk, so that the two can't disagree.
uint64_t DeviceDense::lay_out_work(std::byte* base) {
  const ModelSpec& spec = parts_.spec;
  const uint32_t rows = options_.rows_max;
  uint64_t end = 0;
  const auto bytes = [&](uint64_t n) {
    const uint64_t at = std::exchange(end, end + aligned(n));
    return base == nullptr ? nullptr : base + at;
  };
  const auto floats = [&](uint64_t n) {
    return reinterpret_cast<float*>(bytes(n * sizeof(float)));
  };
  const uint32_t ffn = std::max(spec.dense_ffn, spec.shared_ffn);
  const uint32_t widest = std::max({spec.hidden, spec.o_width(), ffn});
  work_.positions = bytes(positions_bytes_);
  work_.back = bytes(back_bytes(rows));
  work_.q = floats(uint64_t{rows} * spec.q_width());
  work_.attended = floats(uint64_t{rows} * spec.o_width());
  work_.projected = floats(uint64_t{rows} * spec.hidden);
  work_.gate = floats(uint64_t{rows} * ffn);
  work_.up = floats(uint64_t{rows} * ffn);
  work_.ffn_out = floats(uint64_t{rows} * spec.hidden);
  const uint32_t n_blocks = KvCache::pages_for(parts_.rotary.context(), 1);
  work_.attention =
      reinterpret_cast<float*>(bytes(gpu::attention_scratch_bytes(attention_args(rows, n_blocks))));
  // Q8_0's rows are as long as any format's.
  for (std::byte*& forms : work_.forms)
    forms = bytes(rows * parts_.kernels.activation_row_bytes(TensorType::kQ8_0, widest));
  return end;
}

Status DeviceDense::open() {
  count_memory();
  if (memory_bytes() > options_.vram_bytes)
    return make_error(ErrorCode::kBudget,
                      "their weights take {} of VRAM, KV for {} positions {}, and a forward works "
                      "in {}: more than {}",
                      format_bytes(weights_bytes_), parts_.rotary.context(),
                      format_bytes(kv_bytes_), format_bytes(working_bytes_),
                      format_bytes(options_.vram_bytes));
  const uint64_t rows_bytes =
      aligned(uint64_t{options_.rows_max} * parts_.spec.hidden * sizeof(float));
  const uint64_t back_end = aligned(positions_bytes_) + aligned(back_bytes(options_.rows_max));
  OFFSTAGE_TRY(std::byte* const pinned, parts_.device.allocate_pinned(back_end + 2 * rows_bytes));
  Result<std::byte*> memory = parts_.device.allocate(memory_bytes());
  if (!memory) {
    parts_.device.release_pinned(pinned);
    return tl::unexpected(std::move(memory).error());
  }
  positions_ = pinned;
  back_ = positions_ + aligned(positions_bytes_);
  x_ = reinterpret_cast<float*>(pinned + back_end);
  ffn_back_ = reinterpret_cast<float*>(pinned + back_end + rows_bytes);
  kv_.set_memory(*memory);
  lay_out_work(*memory + kv_bytes_);
  return upload_weights(*memory + kv_bytes_ + working_bytes_);
}

// Layer by layer, as the memory they come from isn't pinned and a deadline is for one copy.
Status DeviceDense::upload_weights(std::byte* to) {
  Status status;
  for (LayerWeights& layer : layers_) {
    for_each_tensor(parts_.spec, layer, [&](const std::byte* from, uint64_t bytes) {
      if (status) status = parts_.device.copy(DeviceStream::kToDevice, to, from, bytes);
      return static_cast<const std::byte*>(std::exchange(to, to + aligned(bytes)));
    });
    if (!status) return status;
    OFFSTAGE_TRY(const DeviceMark there, parts_.device.mark(DeviceStream::kToDevice));
    OFFSTAGE_TRY_VOID(parts_.device.wait(there, options_.deadline_ns));
  }
  return {};
}

}  // namespace offstage
