// Before the first forward: whether the device can, what it takes, and the weights.
#include <algorithm>
#include <array>
#include <utility>

#include "base/checked_math.h"
#include "base/units.h"
#include "runtime/device_dense.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 256;

// Of what weights, KV and steps leave of VRAM, for chunks at most: the rest is for experts.
constexpr uint64_t kChunkShare = 8;
// Rows of a chunk that are computed together: as many, or half, and so on, as that share allows. 32
// share a tile's weights (gpu/kernels/matmul.cu).
constexpr uint32_t kSliceRows = 256, kSliceRowsMin = 32;
// Attention has room for so many rows that see the whole context, which are enough to keep a card
// busy: their blocks are computed at the same time. Rows that see less are more at once.
constexpr uint32_t kAttentionRows = 16;
constexpr uint64_t kAttentionBytesMax = 32 << 20;

uint64_t aligned(uint64_t bytes) { return round_up(bytes, kAlignment); }

std::array<Matrix*, 16> matrices_of(LayerWeights& w) {
  return {&w.q,           &w.k,          &w.v,        &w.o,         &w.mla.q_a,     &w.mla.q_b,
          &w.mla.kv_a,    &w.mla.k_b,    &w.mla.v_b,  &w.router,    &w.shared.gate, &w.shared.up,
          &w.shared.down, &w.dense.gate, &w.dense.up, &w.dense.down};
}

// Every tensor of a layer's dense part: visit(data, bytes) says where it lies from now on.
template <typename Visit>
void for_each_tensor(const ModelSpec& spec, LayerWeights& w, const Visit& visit) {
  for (Matrix* m : matrices_of(w))
    if (m->data != nullptr) m->data = visit(m->data, m->rows * row_bytes(m->type, m->k));
  const auto floats = [&](const float*& values, uint64_t n) {
    if (values == nullptr) return;
    values = reinterpret_cast<const float*>(
        visit(reinterpret_cast<const std::byte*>(values), n * sizeof(float)));
  };
  const bool whole = spec.attention.qk_norm == QkNorm::kWhole;
  for (const float** of_stream : {&w.attn_norm, &w.attn_norm_bias, &w.ffn_norm, &w.ffn_norm_bias})
    floats(*of_stream, spec.hidden);
  floats(w.q_bias, spec.q_width());
  floats(w.k_bias, spec.k_width());
  floats(w.v_bias, spec.v_width());
  floats(w.o_bias, spec.hidden);
  floats(w.q_norm, whole ? spec.q_width() : spec.attention.head_dim_k);
  floats(w.k_norm, whole ? spec.k_width() : spec.attention.head_dim_k);
  floats(w.mla.q_a_norm, spec.attention.mla.q_rank);
  floats(w.mla.kv_a_norm, spec.attention.mla.kv_rank);
  floats(w.sinks, spec.attention.n_heads);
  floats(w.router_bias, spec.router.n_experts);
  floats(w.selection_bias, spec.router.n_experts);
}

// Empty: there is a kernel for everything.
std::string why_not(const ModelSpec& spec, const DenseWeights& weights) {
  const RouterSpec& router = spec.router;
  if (router.n_experts > gpu::kRouterExpertsMax || router.n_used > gpu::kRouterUsedMax ||
      router.n_groups > gpu::kRouterGroupsMax)
    return fmt::format(
        "its router takes {} of {} experts in {} groups, the kernel at most {} of "
        "{} in {}",
        router.n_used, router.n_experts, router.n_groups, gpu::kRouterUsedMax,
        gpu::kRouterExpertsMax, gpu::kRouterGroupsMax);
  for (LayerWeights w : weights.layers)
    for (const Matrix* m : matrices_of(w))
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
      layers_(parts.weights.layers),
      pieces_(parts.device, options.deadline_ns),
      n_blocks_(options.n_sequences),
      table_at_(options.n_sequences) {}

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
  kv_bytes_ = aligned(kv_.bytes());
  slice_rows_ = options_.rows_max;
  count_working();
}

// What the widest forward works in.
void DeviceDense::count_working() {
  const ModelSpec& spec = parts_.spec;
  const uint64_t rows = widest_forward();
  const uint64_t n_pages = parts_.kv.pages_bytes() / parts_.kv.page_bytes();
  const uint64_t n_tables = std::min<uint64_t>(rows, options_.n_sequences);
  const auto part = [](uint64_t bytes) { return round_up(bytes, kPartAlignment); };
  positions_bytes_ = part(rows * spec.rotary.n_rot * sizeof(float)) +
                     2 * part(rows * spec.attention.n_kv_heads * sizeof(void*)) +
                     2 * part(rows * sizeof(gpu::AttentionRow)) + part(n_pages * sizeof(void*)) +
                     n_tables * kPartAlignment;
  const uint32_t n_blocks = KvCache::pages_for(parts_.rotary.context(), 1);
  const uint64_t of_row = gpu::attention_scratch_bytes(attention_args(1, n_blocks));
  attention_bytes_ =
      std::max(of_row * options_.rows_max,
               std::min(of_row * std::min(slice_rows_, kAttentionRows), kAttentionBytesMax));
  working_bytes_ = lay_out_work(nullptr);
}

// Counts with a null base, else says what lies where: one walk, so that the two can't disagree.
uint64_t DeviceDense::lay_out_work(std::byte* base) {
  const ModelSpec& spec = parts_.spec;
  const uint32_t rows = widest_forward(), slice = slice_rows_;
  uint64_t end = 0;
  const auto bytes = [&](uint64_t n) {
    const uint64_t at = std::exchange(end, end + aligned(n));
    return base == nullptr ? nullptr : base + at;
  };
  const auto floats = [&](uint64_t n) {
    return reinterpret_cast<float*>(bytes(n * sizeof(float)));
  };
  const uint32_t ffn = std::max(spec.dense_ffn, spec.shared_ffn);
  const uint32_t n_heads = spec.attention.n_heads;
  const uint32_t o_input = is_latent() ? n_heads * mla().v_dim : spec.o_width();
  const uint32_t widest = std::max({spec.hidden, o_input, ffn, mla().q_rank});
  work_.positions = bytes(positions_bytes_);
  work_.back = bytes(back_bytes(rows, slice));
  work_.q = floats(uint64_t{slice} * spec.q_width());
  work_.attended = floats(uint64_t{slice} * spec.o_width());
  work_.q_low = floats(uint64_t{slice} * mla().q_rank);
  work_.projected = floats(uint64_t{slice} * spec.hidden);
  work_.gate = floats(uint64_t{slice} * ffn);
  work_.up = floats(uint64_t{slice} * ffn);
  work_.ffn_out = floats(ffn == 0 ? 0 : uint64_t{rows} * spec.hidden);
  work_.attention = reinterpret_cast<float*>(bytes(attention_bytes_));
  // Before the forms that are made of it: tests would see it reach into them.
  const uint64_t per_head = is_latent() ? std::max(mla().head_dim(), mla().v_dim) : 0;
  work_.per_head = floats(slice * n_heads * per_head);
  // Q8_0's rows are as long as any format's.
  const auto form_bytes = [&](uint32_t k) {
    return parts_.kernels.activation_row_bytes(TensorType::kQ8_0, k);
  };
  const uint64_t heads_forms =
      is_latent() ? n_heads * form_bytes(std::max(mla().nope_dim, mla().kv_rank)) : 0;
  for (std::byte*& forms : work_.forms)
    forms = bytes(slice * std::max(form_bytes(widest), heads_forms));
  return end;
}

Status DeviceDense::open() {
  const uint32_t chunk_rows = std::exchange(options_.chunk_rows, 0);
  count_memory();
  if (memory_bytes() > options_.vram_bytes)
    return make_error(ErrorCode::kBudget,
                      "their weights take {} of VRAM, KV for {} positions {}, and a forward works "
                      "in {}: more than {}",
                      format_bytes(weights_bytes_), parts_.rotary.context(),
                      format_bytes(kv_bytes_), format_bytes(working_bytes_),
                      format_bytes(options_.vram_bytes));
  if (chunk_rows != 0) make_room_for_chunks(chunk_rows);
  Status taken = take_memory();
  if (!taken && taken.error().code == ErrorCode::kOutOfMemory && options_.chunk_rows != 0) {
    leave_chunks_to_cpu(taken.error().message);
    taken = take_memory();
  }
  OFFSTAGE_TRY_VOID(std::move(taken));
  if (options_.chunk_rows != 0) pin_scratch();
  return upload_weights(work_memory_.data() + work_memory_.size());
}

void DeviceDense::make_room_for_chunks(uint32_t chunk_rows) {
  const uint64_t without = working_bytes_, left = options_.vram_bytes - memory_bytes();
  options_.chunk_rows = chunk_rows;
  for (uint32_t rows = kSliceRows; rows >= kSliceRowsMin; rows /= 2) {
    slice_rows_ = std::max(options_.rows_max, std::min(chunk_rows, rows));
    count_working();
    chunk_bytes_ = working_bytes_ - without;
    if (chunk_bytes_ <= left / kChunkShare) return;
  }
  leave_chunks_to_cpu(
      fmt::format("a chunk of {} tokens works in {}, more than 1/{} of the {} of "
                  "VRAM beside their weights and KV",
                  chunk_rows, format_bytes(chunk_bytes_), kChunkShare, format_bytes(left)));
}

void DeviceDense::leave_chunks_to_cpu(const std::string& reason) {
  options_.chunk_rows = 0;
  chunk_bytes_ = 0;
  slice_rows_ = options_.rows_max;
  count_working();
  parts_.notices.add(
      "vram_dense_prompts",
      fmt::format("attention, router and shared expert of prompts stay with the CPU: {}", reason));
}

// All of it, or the device is as before.
Status DeviceDense::take_memory() {
  const uint32_t steps = options_.rows_max;
  const uint64_t rows_bytes = aligned(uint64_t{steps} * parts_.spec.hidden * sizeof(float));
  const uint64_t back_at = aligned(positions_bytes_);
  const uint64_t x_at = back_at + aligned(back_bytes(steps, steps));
  const uint64_t pieces_at = x_at + 2 * rows_bytes;
  const bool has_chunks = options_.chunk_rows != 0;
  OFFSTAGE_TRY(
      std::byte* const pinned,
      parts_.device.allocate_pinned(pieces_at + (has_chunks ? DevicePieces::kPinnedBytes : 0)));
  Result<std::byte*> memory = parts_.device.allocate(memory_bytes());
  if (!memory) {
    parts_.device.release_pinned(pinned);
    return tl::unexpected(std::move(memory).error());
  }
  positions_ = pinned;
  back_ = pinned + back_at;
  x_ = reinterpret_cast<float*>(pinned + x_at);
  ffn_back_ = reinterpret_cast<float*>(pinned + x_at + rows_bytes);
  kv_.set_memory(*memory);
  work_memory_ = {*memory + kv_bytes_, working_bytes_};
  lay_out_work(work_memory_.data());
  if (!has_chunks) return {};
  pieces_.set_memory(pinned + pieces_at);
  chunk_experts_.resize(uint64_t{options_.chunk_rows} * parts_.spec.router.n_used);
  chunk_weights_.resize(chunk_experts_.size());
  last_scores_.resize(parts_.spec.router.n_experts);
  return {};
}

void DeviceDense::pin_scratch() {
  const Status pinned = parts_.device.pin(parts_.scratch);
  if (!pinned)
    parts_.notices.add("vram_dense_prompts",
                       fmt::format("working memory in RAM can't be pinned, so prompts go to the "
                                   "device slower: {}",
                                   pinned.error().message));
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
