// Where bytes lie in a file, and what a direct read of them needs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/checked_math.h"

namespace offstage {

// Direct reads start and end on a multiple of this in file, buffer and length.
inline constexpr uint64_t kSectorBytes = 4096;

// Files that one extent may be striped over: a machine's drives, with room.
inline constexpr uint32_t kStripesMax = 16;

// Plain, or striped over files that follow each other (io/store.h): as many as it has stripes, from
// `file` on; each stripe at `offset` of its file. A buffer holds them one after another. The last
// stripe may be the shortest, so the files take turns at it: the first stripe lies `turn` files
// behind `file`, the others behind it and then from `file` on.
struct Extent {
  uint32_t file = 0;    // index of the file among those that the engine was opened with
  uint64_t offset = 0;  // absolute; a multiple of kSectorBytes if striped
  uint64_t bytes = 0;
  uint64_t stripe_bytes = 0;  // 0: plain; else a multiple of kSectorBytes
  uint32_t turn = 0;          // counted around
  bool operator==(const Extent&) const = default;
};

constexpr uint64_t stripe_count(const Extent& e) {
  return e.stripe_bytes == 0 ? 1 : (e.bytes + e.stripe_bytes - 1) / e.stripe_bytes;
}
constexpr uint32_t stripe_file(const Extent& e, uint32_t i) {
  return e.file + (i + e.turn) % static_cast<uint32_t>(stripe_count(e));
}
// Stripe i as a plain extent. In the extent's buffer it begins at i · stripe_bytes.
constexpr Extent stripe(const Extent& e, uint32_t i) {
  const uint64_t begin = i * e.stripe_bytes;
  return {stripe_file(e, i), e.offset,
          e.stripe_bytes == 0 ? e.bytes : std::min(e.stripe_bytes, e.bytes - begin)};
}

// The sector-rounded span around an extent: what is read, and what a buffer must hold.
constexpr uint64_t span_offset(const Extent& e) { return round_down(e.offset, kSectorBytes); }
constexpr uint64_t span_bytes(const Extent& e) {
  return round_up(e.offset + e.bytes, kSectorBytes) - span_offset(e);
}
// Where the extent's first byte lies in a buffer filled with its span.
constexpr uint64_t span_head(const Extent& e) { return e.offset - span_offset(e); }

}  // namespace offstage
