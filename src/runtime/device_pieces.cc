#include "runtime/device_pieces.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace offstage {

Status DevicePieces::bring(const void* from, void* to, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at += kPieceBytes) {
    Piece next;
    std::byte* const pinned = memory_ + n_pieces_++ % 2 * kPieceBytes;
    next.pinned = pinned;
    next.to = static_cast<std::byte*>(to) + at;
    next.bytes = std::min(bytes - at, kPieceBytes);
    OFFSTAGE_TRY_VOID(device_.copy(DeviceStream::kToHost, pinned,
                                   static_cast<const std::byte*>(from) + at, next.bytes));
    OFFSTAGE_TRY(next.there, device_.mark(DeviceStream::kToHost));
    OFFSTAGE_TRY_VOID(finish());  // the one before
    under_way_ = next;
  }
  return {};
}

Status DevicePieces::finish() {
  if (!under_way_) return {};
  const Piece piece = *std::exchange(under_way_, std::nullopt);
  OFFSTAGE_TRY_VOID(device_.wait(piece.there, deadline_ns_));
  std::memcpy(piece.to, piece.pinned, piece.bytes);
  return {};
}

}  // namespace offstage
