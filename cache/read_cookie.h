// Whom a read is for, in the 64 bits that come back with it.
//
// slot | generation | matrix: a completion of an earlier generation can't pass for a new one. (The
// pool lets go of a slot only when the drive has; the generation proves it.)
#pragma once

#include <cstdint>

#include "base/types.h"
#include "cache/expert_layout.h"

namespace offstage {

inline uint64_t make_cookie(SlotIndex slot, uint32_t generation, ExpertMatrix matrix) {
  return (uint64_t{slot.value} << 34) | (uint64_t{generation} << 2) | static_cast<uint64_t>(matrix);
}
inline SlotIndex cookie_slot(uint64_t cookie) {
  return SlotIndex(static_cast<uint32_t>(cookie >> 34));
}
inline uint32_t cookie_generation(uint64_t cookie) { return static_cast<uint32_t>(cookie >> 2); }
inline ExpertMatrix cookie_matrix(uint64_t cookie) { return static_cast<ExpertMatrix>(cookie & 3); }

}  // namespace offstage
