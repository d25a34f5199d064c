// Where bytes lie in a file, and what a direct read of them needs.
#pragma once

#include <cstdint>

#include "base/checked_math.h"

namespace offstage {

// Direct reads start and end on a multiple of this in file, buffer and length.
inline constexpr uint64_t kSectorBytes = 4096;

struct Extent {
  uint32_t file = 0;    // index of the file in the FileSet that the engine was opened with
  uint64_t offset = 0;  // absolute
  uint64_t bytes = 0;
  bool operator==(const Extent&) const = default;
};

// The sector-rounded span around an extent: what is read, and what a buffer must hold.
constexpr uint64_t span_offset(const Extent& e) { return round_down(e.offset, kSectorBytes); }
constexpr uint64_t span_bytes(const Extent& e) {
  return round_up(e.offset + e.bytes, kSectorBytes) - span_offset(e);
}
// Where the extent's first byte lies in a buffer filled with its span.
constexpr uint64_t span_head(const Extent& e) { return e.offset - span_offset(e); }

}  // namespace offstage
