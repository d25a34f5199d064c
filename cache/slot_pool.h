// The slots of the RAM tier: memory, and the state machine that guards it (promise 3).
//
//   EMPTY ──begin_read──► READING(generation) ──verified──► VERIFIED ◄──unpin── IN USE
//     ▲                        │ abandon: after its last outstanding read     ▲
//     └────────clear───────────┴───────────────────────────── VERIFIED ──pin──┘
//
// Every transition checks the state it leaves; a wrong one is a bug and ends the process. A slot's
// memory is given to a drive only in READING and to a kernel only in IN USE, and it can't become
// EMPTY while a read is outstanding or a pin is held. The arena is taken once at start. Decode
// thread only. Builds with DCHECK fill a slot with a poison pattern when it empties.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/arena.h"
#include "base/notices.h"
#include "base/result.h"
#include "base/types.h"
#include "cache/slot_plan.h"

namespace offstage {

enum class SlotState : uint8_t { kEmpty, kReading, kVerified, kInUse };

struct Slot {
  std::byte* memory = nullptr;  // class_bytes of its class, kSectorBytes-aligned
  uint32_t slot_class = 0;
  SlotState state = SlotState::kEmpty;
  uint32_t generation = 0;  // one more with every begin_read
  uint32_t pins = 0;
  uint32_t reads_outstanding = 0;  // buffers that the drive may still write
  LayerIndex layer;
  ExpertId expert;
};

class SlotPool {
 public:
  static Result<SlotPool> create(const SlotPlan& plan, Notices& notices);
  // For simulated drives without contents: all slots of a class share one's memory, since nobody
  // writes or reads it. So a forecast needs no more memory for a machine of a terabyte.
  static Result<SlotPool> create_shared(const SlotPlan& plan, Notices& notices);

  std::optional<SlotIndex> take_empty(uint32_t slot_class);  // stays EMPTY until begin_read
  void begin_read(SlotIndex index, LayerIndex layer, ExpertId expert);
  void read_started(SlotIndex index);
  void read_returned(SlotIndex index);  // the drive can't touch that buffer any more
  void verified(SlotIndex index);
  void pin(SlotIndex index);
  void unpin(SlotIndex index);
  void clear(SlotIndex index);  // VERIFIED, or READING with no read outstanding → EMPTY, free

  const Slot& operator[](SlotIndex index) const { return slots_[index.value]; }
  uint32_t size() const { return static_cast<uint32_t>(slots_.size()); }
  uint32_t empty_count(uint32_t slot_class) const {
    return static_cast<uint32_t>(empty_[slot_class].size());
  }
  // All slots' memory, for registration with the io engine.
  std::span<std::byte> memory() const { return {arena_.data(), arena_.size_bytes()}; }

 private:
  static Result<SlotPool> create(const SlotPlan& plan, bool shared, Notices& notices);
  explicit SlotPool(HostArena arena) : arena_(std::move(arena)) {}
  HostArena arena_;
  std::vector<Slot> slots_;
  std::vector<std::vector<SlotIndex>> empty_;  // per class, last emptied on top
  std::vector<uint64_t> class_bytes_;
};

}  // namespace offstage
