// A prompt's chunk at a layer, over the bus: rows there, and what they gave back to RAM.
#include <utility>

#include "runtime/device_dense.h"

namespace offstage {

// The layer before was waited for: nobody uses what this overwrites. The rows stay where they are
// until run() has waited for all.
Status DeviceDense::send_chunk(const float* x) {
  const CauseScope scope(parts_.timer, Cause::kPcie);
  Device& device = parts_.device;
  OFFSTAGE_TRY_VOID(device.copy(DeviceStream::kToDevice, reinterpret_cast<std::byte*>(on_device_.x),
                                reinterpret_cast<const std::byte*>(x),
                                uint64_t{n_rows()} * parts_.spec.hidden * sizeof(float)));
  OFFSTAGE_TRY(const DeviceMark there, device.mark(DeviceStream::kToDevice));
  return device.order(DeviceStream::kCompute, there);
}

// The stream into `spare`: it is the CPU's to go on with until all is there.
Status DeviceDense::bring_chunk_back(float* normed, float* spare) {
  const CauseScope scope(parts_.timer, Cause::kPcie);
  const RouterSpec& router = parts_.spec.router;
  const uint64_t row_bytes = uint64_t{parts_.spec.hidden} * sizeof(float);
  OFFSTAGE_TRY_VOID(bring_kv_back());
  OFFSTAGE_TRY_VOID(pieces_.bring(on_device_.x, spare, n_rows() * row_bytes));
  OFFSTAGE_TRY_VOID(pieces_.bring(on_device_.normed, normed, n_rows() * row_bytes));
  if (!parts_.spec.is_dense_layer(layer_)) {
    const uint64_t calls_bytes = uint64_t{n_rows()} * router.n_used * sizeof(uint32_t);
    const uint32_t last = (n_rows() - 1) % slice_rows_;
    OFFSTAGE_TRY_VOID(pieces_.bring(on_device_.experts, chunk_experts_.data(), calls_bytes));
    OFFSTAGE_TRY_VOID(pieces_.bring(on_device_.weights, chunk_weights_.data(), calls_bytes));
    OFFSTAGE_TRY_VOID(pieces_.bring(on_device_.scores + uint64_t{last} * router.n_experts,
                                    last_scores_.data(), router.n_experts * sizeof(float)));
  }
  return pieces_.finish();
}

// As stored, whole pages of the layer: what lies there before the rows is the same on both sides,
// and what lies behind them nobody has written yet.
Status DeviceDense::bring_kv_back() {
  const std::byte* before = nullptr;
  for (const Row& row : rows_) {
    const uint32_t first = row.position / kKvBlockPositions * kKvBlockPositions;
    std::byte* const in_ram = parts_.kv.k_row(row.sequence, first, layer_, 0);
    if (std::exchange(before, in_ram) == in_ram) continue;
    OFFSTAGE_TRY_VOID(pieces_.bring(kv_.place_of(in_ram), in_ram, parts_.kv.layer_bytes()));
  }
  return {};
}

}  // namespace offstage
