#include "runtime/device_dense.h"

#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"

namespace offstage {

void DeviceDense::begin_forward(std::span<const Row> rows, Phase phase) {
  takes_part_ = has_run_ = has_choice_ = false;
  if (is_lost()) return;
  in_chunk_ = phase == Phase::kPrefill;
  const uint32_t most = in_chunk_ ? options_.chunk_rows : options_.rows_max;
  if (rows.size() > most) return kv_.forget(rows);
  rows_ = rows;
  Status status;
  {
    const CauseScope scope(parts_.timer, Cause::kPcie);
    status = kv_.bring(rows, options_.deadline_ns);
  }
  const CauseScope scope(parts_.timer, Cause::kGpu);
  on_device_ = lay_out_back(work_.back, n_rows(), std::min(n_rows(), slice_rows_));
  if (!in_chunk_) in_ram_ = lay_out_back(back_, n_rows(), n_rows());
  if (status) status = hand_over_positions();
  if (!status) return lose(status.error());
  takes_part_ = true;
  ++(in_chunk_ ? chunks_ : forwards_);
}

uint64_t DeviceDense::back_bytes(uint32_t n_rows, uint32_t slice_rows) const {
  const ModelSpec& spec = parts_.spec;
  const uint64_t of_row = 2 * uint64_t{spec.hidden} + 2 * uint64_t{spec.router.n_used};
  const uint64_t of_slice = uint64_t{spec.k_width()} + v_width() + spec.router.n_experts;
  return (n_rows * of_row + slice_rows * of_slice) * sizeof(float);
}

DeviceDense::Back DeviceDense::lay_out_back(std::byte* memory, uint32_t n_rows,
                                            uint32_t slice_rows) const {
  const ModelSpec& spec = parts_.spec;
  auto* next = reinterpret_cast<float*>(memory);
  const auto take = [&](uint64_t rows, uint64_t width) {
    return std::exchange(next, next + rows * width);
  };
  Back back;
  back.x = take(n_rows, spec.hidden);
  back.normed = take(n_rows, spec.hidden);
  back.weights = take(n_rows, spec.router.n_used);
  back.experts = reinterpret_cast<uint32_t*>(take(n_rows, spec.router.n_used));
  back.k = take(slice_rows, spec.k_width());
  back.v = take(slice_rows, v_width());
  back.scores = next;
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
  at_.k_rows = part(uint64_t{n_rows()} * n_kv_heads * sizeof(std::byte*));
  const uint32_t v_rows = is_latent() ? 0 : n_rows() * n_kv_heads;
  at_.v_rows = part(uint64_t{v_rows} * sizeof(std::byte*));
  for (uint64_t& seen : at_.seen) seen = part(n_rows() * sizeof(gpu::AttentionRow));
  end = write_tables(end);
  auto** k_row = reinterpret_cast<std::byte**>(positions_ + at_.k_rows);
  auto** v_row = reinterpret_cast<std::byte**>(positions_ + at_.v_rows);
  for (uint32_t i = 0; i < n_rows(); ++i) {
    const Row& row = rows_[i];
    std::memcpy(positions_ + at_.angles + uint64_t{i} * n_rot * sizeof(float),
                parts_.rotary.row(row.position), n_rot * sizeof(float));
    for (uint32_t h = 0; h < n_kv_heads; ++h) {
      *k_row++ = kv_.place_of(parts_.kv.k_row(row.sequence, row.position, 0, h));
      if (v_rows != 0) *v_row++ = kv_.place_of(parts_.kv.v_row(row.sequence, row.position, 0, h));
    }
    const auto* table =
        reinterpret_cast<const std::byte* const*>(work_.positions + table_at_[row.sequence.value]);
    for (uint32_t windowed = 0; windowed < 2; ++windowed)
      reinterpret_cast<gpu::AttentionRow*>(positions_ + at_.seen[windowed])[i] = {
          table, table, first_seen(windowed != 0 ? spec.attention.window : 0, row.position),
          row.position};
  }
  CHECK_LE(end, positions_bytes_);
  return move("positions", positions_, work_.positions, end);
}

// The pages of every sequence, once for all of its rows. Returns where they end.
uint64_t DeviceDense::write_tables(uint64_t end) {
  for (const Row& row : rows_) {
    uint32_t& n_blocks = n_blocks_[row.sequence.value];
    n_blocks = std::max(n_blocks, row.position / kKvBlockPositions + 1);
  }
  for (const Row& row : rows_) {
    const uint32_t n_blocks = std::exchange(n_blocks_[row.sequence.value], 0u);
    if (n_blocks == 0) continue;  // written already
    table_at_[row.sequence.value] = end;
    auto** table = reinterpret_cast<const std::byte**>(positions_ + end);
    end += round_up(n_blocks * sizeof(std::byte*), kPartAlignment);
    CHECK_LE(end, positions_bytes_);
    for (uint32_t b = 0; b < n_blocks; ++b)
      table[b] = kv_.place_of(parts_.kv.blocks(row.sequence)[b]);
  }
  return end;
}

bool DeviceDense::run(uint32_t layer, float* x, float* normed, float* spare) {
  has_run_ = has_choice_ = false;
  if (!takes_part_ || is_lost()) return false;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  layer_ = layer;
  if (const Status computed = compute(x, normed, spare); !computed) {
    lose(computed.error());
    return false;
  }
  parts_.timer.enter(Cause::kAttention);
  if (in_chunk_) {
    std::copy_n(spare, uint64_t{n_rows()} * parts_.spec.hidden, x);
    choice_ = {chunk_experts_.data(), chunk_weights_.data(), last_scores_.data()};
  } else {
    take_step(x, normed);
  }
  has_choice_ = !parts_.spec.is_dense_layer(layer);
  has_run_ = true;
  return true;
}

Status DeviceDense::compute(float* x, float* normed, float* spare) {
  if (in_chunk_) {
    OFFSTAGE_TRY_VOID(send_chunk(x));
    OFFSTAGE_TRY_VOID(launch_layer());
    OFFSTAGE_TRY_VOID(wait_for_all());
    return bring_chunk_back(normed, spare);
  }
  OFFSTAGE_TRY_VOID(send_step(x));
  OFFSTAGE_TRY_VOID(launch_layer());
  OFFSTAGE_TRY_VOID(move("hand back", work_.back, back_, back_bytes(n_rows(), n_rows())));
  OFFSTAGE_TRY(const DeviceMark back, parts_.device.mark(DeviceStream::kCompute));
  OFFSTAGE_TRY_VOID(start_hits());
  return parts_.device.wait(back, options_.deadline_ns);
}

// What the host learns meanwhile is its choice. The rows stay until the next run().
Status DeviceDense::start_hits() {
  if (experts_ == nullptr || parts_.spec.is_dense_layer(layer_)) return {};
  return experts_->start_hits(LayerIndex(layer_ - parts_.spec.n_dense_layers), on_device_.experts,
                              on_device_.normed, n_rows());
}

Status DeviceDense::send_step(const float* x) {
  const uint64_t n = uint64_t{n_rows()} * parts_.spec.hidden;
  std::memcpy(x_, x, n * sizeof(float));
  return move("rows", reinterpret_cast<const std::byte*>(x_),
              reinterpret_cast<std::byte*>(on_device_.x), n * sizeof(float));
}

// The new keys and values are rounded once more: on both sides to the same bits.
void DeviceDense::take_step(float* x, float* normed) {
  const ModelSpec& spec = parts_.spec;
  const AttentionSpec& attention = spec.attention;
  std::copy_n(in_ram_.x, uint64_t{n_rows()} * spec.hidden, x);
  std::copy_n(in_ram_.normed, uint64_t{n_rows()} * spec.hidden, normed);
  for (uint32_t i = 0; i < n_rows(); ++i) {
    const Row& row = rows_[i];
    const float* k = in_ram_.k + uint64_t{i} * spec.k_width();
    const float* v = in_ram_.v + uint64_t{i} * v_width();
    for (uint32_t h = 0; h < attention.n_kv_heads; ++h) {
      parts_.cpu.store_kv(parts_.k_type, k + h * attention.head_dim_k, attention.head_dim_k,
                          parts_.kv.k_row(row.sequence, row.position, layer_, h));
      if (is_latent()) continue;
      parts_.cpu.store_kv(parts_.v_type, v + h * attention.head_dim_v, attention.head_dim_v,
                          parts_.kv.v_row(row.sequence, row.position, layer_, h));
    }
  }
  choice_ = {in_ram_.experts, in_ram_.weights,
             in_ram_.scores + uint64_t{n_rows() - 1} * spec.router.n_experts};
}

bool DeviceDense::start_ffn() {
  if (!has_run_ || is_lost() || ffn_width(layer_) == 0) return false;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  const Status launched = launch_ffn();
  if (!launched) lose(launched.error());
  return launched.has_value();
}

bool DeviceDense::collect_ffn(float* out) {
  if (is_lost()) return false;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  const uint64_t n = uint64_t{n_rows()} * parts_.spec.hidden;
  Status there = wait_for_all();
  if (there && in_chunk_) {
    const CauseScope on_the_bus(parts_.timer, Cause::kPcie);
    there = pieces_.bring(work_.ffn_out, out, n * sizeof(float));
    if (there) there = pieces_.finish();
  }
  if (!there) {
    lose(there.error());
    return false;
  }
  if (!in_chunk_) std::copy_n(ffn_back_, n, out);
  return true;
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
