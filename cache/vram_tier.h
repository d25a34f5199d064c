// The VRAM tier: experts that lie in a device's memory, in slots of each layer's own.
//
// In: experts in RAM that the router calls often, with what a call is expected to save. Out: per
// layer a table of slot pointers on the device, for the kernels of gpu/kernels (null: not here),
// and the same on the host.
//
//   EMPTY ──promote()──► COPYING ──its copy has arrived: poll()──► RESIDENT
//                           ▲                                          │
//                           └────── promote() of a better one ─────────┘
//
// Tables are changed in the order of the compute stream: an entry is cleared before its slot is
// written and set after it was, so a kernel sees an expert whole or not at all. The copy into a
// slot waits on its own stream for all that was launched before. is_resident() is what the next
// kernel will see.
//
// A promotion must pay: what its calls save, less what the expert that leaves would have saved, is
// more than the copy's time, as measured on the copies before; and copies take no more than a share
// of the tokens' time. Memory refused at the start means fewer slots, announced. After an error of
// the device the tier is empty for good and says so once: the caller computes on the CPU.
// Decode thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/notices.h"
#include "base/result.h"
#include "base/types.h"
#include "cache/ram_tier.h"
#include "gpu/device.h"

namespace offstage {

struct VramPlan {
  uint64_t budget_bytes = 0;  // slots and tables
  uint32_t n_experts = 0;
  std::vector<uint64_t> slot_bytes;  // by layer: an expert's matrices as kernels want them
  uint64_t copy_bytes_per_s = 12'000'000'000;  // until copies were measured
  double copy_share_max = 0.25;                // of the tokens' time
};

struct VramParts {
  Device& device;
  const Clock& clock;
  Notices& notices;
  // gpu::set_slot, or what stands for it.
  std::function<gpu::CallStatus(gpu::StreamHandle, const gpu::SetSlotArgs&)> set_slot;
};

enum class Promotion : uint8_t {
  kStarted,
  kThere,   // resident or on its way
  kUnpaid,  // would save less than it costs
  kNoTime,  // the tokens' share for copies is used up
  kBusy,    // every slot of the layer is being written
  kLost,    // the device is gone
};

struct VramCounters {
  uint64_t promotions = 0, promoted_bytes = 0, evictions = 0;
  uint64_t unpaid = 0, no_time = 0, busy = 0;
};

class VramTier {
 public:
  // kBudget: not one slot per layer fits; the message gives the floor.
  static Result<std::unique_ptr<VramTier>> create(VramParts parts, VramPlan plan);
  ~VramTier();
  VramTier(const VramTier&) = delete;
  VramTier& operator=(const VramTier&) = delete;

  uint32_t slots_per_layer() const { return slots_per_layer_; }
  // In device memory, [n_experts].
  const std::byte* const* table(LayerIndex layer) const;
  bool is_resident(LayerIndex layer, ExpertId expert) const;

  // Starts copying `bytes` (slot_bytes of the layer at most; they must stay as they are until
  // poll() names the expert, and the device lives). `calls_expected` [n_experts]: of the layer's
  // experts, over the time that one stays; `saved_ns` per call.
  Promotion promote(LayerIndex layer, ExpertId expert, std::span<const std::byte> bytes,
                    std::span<const double> calls_expected, int64_t saved_ns);
  // Experts that have arrived since: resident from now on, and their slots in RAM may be given up.
  std::span<const ExpertPlace> poll();
  // A token took that long: a share of it may be spent on copies.
  void token_done(int64_t token_ns);

  const VramCounters& counters() const { return counters_; }

 private:
  enum class State : uint8_t { kEmpty, kCopying, kResident };
  struct Slot {
    std::byte* memory = nullptr;
    State state = State::kEmpty;
    ExpertId expert;
    uint64_t bytes = 0;
    DeviceMark arrived;
    int64_t begun_ns = 0;
  };

  VramTier(VramParts parts, VramPlan plan);
  Status take_memory();
  bool is_idle();
  Slot* slot_of(LayerIndex layer, ExpertId expert);
  std::span<Slot> slots_of(LayerIndex layer);
  Slot* place_for(LayerIndex layer, std::span<const double> calls_expected);
  int64_t copy_ns(uint64_t bytes) const;
  Status set_entry(LayerIndex layer, ExpertId expert, const std::byte* slot);
  Status start_copy(LayerIndex layer, Slot& slot, std::span<const std::byte> bytes);
  Status take_arrivals();
  void give_up(const Error& error);

  VramParts parts_;
  VramPlan plan_;
  VramCounters counters_;
  uint32_t slots_per_layer_ = 0;
  std::byte* memory_ = nullptr;  // tables, then slots
  std::vector<Slot> slots_;      // [layer][slots_per_layer_]
  std::vector<ExpertPlace> arrived_;
  double copy_bytes_per_ns_;
  int64_t copy_credit_ns_ = 0;
  bool lost_ = false;
};

}  // namespace offstage
