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
// A visitor is copied for the calls of now: what is launched after visit() and before the next one
// finds it in the table, its kernels waiting for the copy on the device. It stays, in a slot of its
// layer, if it will be called more often than who leaves; else it has a slot of the few that all
// layers share, until the event ends.
//
// A promotion must pay: what its calls save, less what the expert that leaves would have saved, is
// more than the copy's time, as measured on the copies before; and copies take no more than a share
// of the tokens' time. Memory refused at the start means fewer slots, announced. After an error of
// the device, or a copy that doesn't end, the tier is empty for good and says so once: the caller
// computes on the CPU.
// Decode thread only.
#pragma once

#include <array>
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
  // By layer, of an expert's gate, up and down; all 0: the device has no kernel for the layer's
  // formats, and it gets no slots.
  std::vector<std::array<uint64_t, kExpertMatrices>> matrix_bytes;
  uint64_t copy_bytes_per_s = 12'000'000'000;  // until copies were measured
  double copy_share_max = 0.25;                // of the tokens' time
  uint32_t visitors = 0;                       // slots for experts that are copied for one event
  int64_t copy_deadline_ns = 10'000'000'000;   // a copy that takes longer won't end
};

struct VramParts {
  Device& device;
  const Clock& clock;
  Notices& notices;
  DeviceKernels::Kernel<gpu::SetSlotArgs> set_slot;
  // Asked before an expert leaves for another: where it is to be copied to first. Nothing: it is
  // dropped. The space must stay until departed() names the expert; for good if the tier is lost.
  std::function<std::optional<ExpertSpace>(LayerIndex, ExpertId)> keep = {};
};

enum class Promotion : uint8_t {
  kStarted,
  kThere,   // resident or on its way
  kUnpaid,  // would save less than it costs
  kNoTime,  // the tokens' share for copies is used up
  kBusy,    // every slot of the layer is being written
  kNoSlot,  // the layer has none
  kLost,    // the device is gone
};

enum class Visit : uint8_t {
  kStays,    // in a slot of its layer
  kLeaves,   // at end_visits(), or for another visitor
  kRefused,  // no slots, or it is on its way already
  kLost,     // the device is gone
};

struct VramCounters {
  uint64_t promotions = 0, promoted_bytes = 0, evictions = 0;  // visitors that stay among them
  uint64_t visits = 0;                                         // that leave
  uint64_t demotions = 0, demoted_bytes = 0;                   // evictions that were kept elsewhere
  uint64_t unpaid = 0, no_time = 0, busy = 0;
};

class VramTier {
 public:
  // kBudget: not one slot per layer fits; the message gives the floor.
  static Result<std::unique_ptr<VramTier>> create(VramParts parts, VramPlan plan);
  ~VramTier();
  VramTier(const VramTier&) = delete;
  VramTier& operator=(const VramTier&) = delete;

  uint32_t slots_per_layer() const { return slots_per_layer_; }  // of those that have some
  bool has_slots(LayerIndex layer) const { return plan_.matrix_bytes[layer.value][0] != 0; }
  uint64_t memory_bytes() const { return memory_bytes_; }
  // In device memory, [n_experts].
  const std::byte* const* table(LayerIndex layer) const;
  // Of a matrix in every slot of the layer.
  uint64_t offset(LayerIndex layer, ExpertMatrix matrix) const {
    return offsets_[layer.value][static_cast<size_t>(matrix)];
  }
  bool is_resident(LayerIndex layer, ExpertId expert) const;
  // True: the next kernel finds it in the table: a resident, or one that was let in for its calls.
  bool is_in_table(LayerIndex layer, ExpertId expert) const {
    return in_table_[place(layer, expert)] != 0;
  }
  // The memory of all that the layer's table names is appended to `ranges`, joined where it can be.
  void add_memory_of(LayerIndex layer, std::vector<std::span<const std::byte>>& ranges) const;
  // Of a resident: its slot's memory.
  std::span<const std::byte> slot_memory(LayerIndex layer, ExpertId expert) const;
  uint32_t resident_count() const { return n_resident_; }
  uint32_t resident_count(LayerIndex layer) const;

  // Starts copying the expert's `matrices` (they must stay as they are until poll() names the
  // expert or the device is lost). `calls_expected` [n_experts]: of the layer's experts, over the
  // time that one stays; `saved_ns` per call.
  Promotion promote(LayerIndex layer, ExpertId expert, const ExpertBytes& matrices,
                    std::span<const double> calls_expected, int64_t saved_ns);
  // For calls of now, whose kernels are launched before the next visit: while they compute, that
  // one is copied. `matrices` as in promote(); a visitor that leaves isn't named by poll(): its
  // matrices must stay until end_visits(). Without `calls_expected` none stays.
  Visit visit(LayerIndex layer, ExpertId expert, const ExpertBytes& matrices,
              std::span<const double> calls_expected);
  // Visits until here were begun one right after another, and those after it not.
  void end_burst();
  // Sleeps until the copies of the first burst since end_visits() have arrived, to know what they
  // cost.
  Status await_burst(int64_t timeout_ns);
  // The caller has waited for all that it launched for visitors.
  void end_visits();
  // What copying an expert of the layer takes, as measured, and when the copies under way are done.
  int64_t copy_ns(LayerIndex layer) const { return copy_ns(expert_bytes(layer)); }
  int64_t bus_free_ns() const { return bus_free_ns_; }

  // Experts that have arrived since: resident from now on, and their slots in RAM may be given up.
  std::span<const ExpertPlace> poll();
  // Experts that the last poll() saw copied to where VramParts::keep wanted them.
  std::span<const ExpertPlace> departed() const { return departed_; }
  // Experts on their way, oldest first.
  bool is_copying() const { return !copying_.empty(); }
  // A token took that long: a share of it may be spent on copies.
  void token_done(int64_t token_ns);

  // The caller saw the device fail: nothing is resident any more, and a notice says why.
  void lose(const Error& error);
  bool is_lost() const { return lost_; }

  const VramCounters& counters() const { return counters_; }

 private:
  enum class State : uint8_t { kEmpty, kCopying, kResident, kVisiting };
  struct Slot {
    std::byte* memory = nullptr;
    State state = State::kEmpty;
    LayerIndex layer;
    ExpertId expert;
    uint64_t bytes = 0;
    DeviceMark arrived;
    std::optional<DeviceMark> used;   // a visitor's kernels were launched before this
    std::optional<ExpertPlace> kept;  // who left for it and was copied away, which comes first
    int64_t begun_ns = 0;
    int64_t not_before_ns = 0;  // when it was last seen not to have arrived
    bool had_the_bus = false;   // no other copy was under way when it began
  };

  struct Burst {         // copies that had the bus, one after another
    DeviceMark arrived;  // the last
    uint64_t bytes = 0;
    int64_t begun_ns = 0;
    bool is_over = false;
  };

  VramTier(VramParts parts, VramPlan plan);
  Status take_memory();
  void lay_out_slots(std::byte* first, uint64_t visitor_bytes);
  bool is_idle();
  size_t place(LayerIndex layer, ExpertId expert) const;
  std::span<Slot> slots_of(LayerIndex layer);
  Slot* place_for(LayerIndex layer, std::span<const double> calls_expected);
  Status note_use();
  Slot& next_visitor();
  uint64_t expert_bytes(LayerIndex layer) const;
  int64_t copy_ns(uint64_t bytes) const;
  Status set_entry(LayerIndex layer, ExpertId expert, const std::byte* slot);
  Status start_copy(Slot& slot, LayerIndex layer, const ExpertBytes& matrices);
  Status make_way(Slot& slot);
  void leave(Slot& slot);
  void begin_slot(Slot& slot, LayerIndex layer, ExpertId expert, State state);
  Status let_in(Slot& slot);
  Status take_arrivals();
  void learn_speed(uint64_t bytes, int64_t least_ns, int64_t most_ns);

  VramParts parts_;
  VramPlan plan_;
  VramCounters counters_;
  uint32_t slots_per_layer_ = 0;
  uint32_t n_resident_ = 0;
  std::byte* memory_ = nullptr;  // tables, then slots
  uint64_t memory_bytes_ = 0;
  std::vector<std::array<uint64_t, kExpertMatrices>> offsets_;  // by layer
  std::vector<uint64_t> slot_bytes_;                            // by layer
  std::vector<uint32_t> first_slot_;                            // by layer, and the end
  std::vector<Slot> slots_;                                     // the visitors' behind the layers'
  uint32_t n_visits_ = 0;                                       // since end_visits()
  static constexpr int32_t kAbsent = -1;
  std::vector<int32_t> slot_of_;   // [layer][expert] → slot that is COPYING or RESIDENT
  std::vector<uint8_t> in_table_;  // [layer][expert], as the kernels launched by now leave it
  std::vector<uint32_t> copying_;  // slots, in the order of their copies
  std::vector<ExpertPlace> arrived_, departed_;
  double copy_ns_per_byte_;
  int64_t bus_free_ns_ = 0;
  std::optional<Burst> timed_;
  int64_t copy_credit_ns_ = 0;
  bool lost_ = false;
};

}  // namespace offstage
