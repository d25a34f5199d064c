// What a device has made, on its way back to RAM: piece by piece through a little pinned memory.
//
// Two pieces in turns: while one is taken out, the next comes. Nothing is copied straight to where
// it belongs: what a device writes late, after it was given up, must meet nobody. Decode thread
// only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/result.h"
#include "gpu/device.h"

namespace offstage {

class DevicePieces {
 public:
  static constexpr uint64_t kPieceBytes = 512 << 10;
  static constexpr uint64_t kPinnedBytes = 2 * kPieceBytes;

  DevicePieces(Device& device, int64_t deadline_ns) : device_(device), deadline_ns_(deadline_ns) {}
  // kPinnedBytes of pinned memory, the caller's.
  void set_memory(std::byte* pinned) { memory_ = pinned; }

  // to ← from, which lies on the device, written by kernels that were waited for. `to` has all of
  // it after finish(). Errors: the device's; nothing may be brought any more then.
  Status bring(const void* from, void* to, uint64_t bytes);
  Status finish();

 private:
  struct Piece {
    const std::byte* pinned = nullptr;
    std::byte* to = nullptr;
    uint64_t bytes = 0;
    DeviceMark there;
  };

  Device& device_;
  int64_t deadline_ns_;
  std::byte* memory_ = nullptr;
  uint32_t n_pieces_ = 0;
  std::optional<Piece> under_way_;
};

}  // namespace offstage
