// A layer's experts that lie in VRAM, computed there while the CPU computes the others.
//
//   run():     start_hits() ── where the device routes, too (device_dense.h): what computes the
//              chosen experts that lie there is launched behind the router, before the host knows
//              its choice (device_hits.h)
//   call():    take() ── of the called experts those in VRAM are the device's: launched now, if
//              they weren't then
//              RamTier::begin() with the others
//   compute(): the others as RAM and drive bring them on
//              place() ── some may be copied for this call, and computed there, so that the
//              layer is done earliest (placement.h); the CPU computes the rest
//              collect() ── waits for the device's, which stand in router order like everybody's
//              promote() ── experts that the CPU computed may be copied to VRAM for the next time
//              Who leaves for it goes back to RAM, where that has something colder and it pays.
//   nominate(): before a layer is reached, experts in RAM that it will probably call (lookahead.h)
//              may be copied to VRAM for that time
//
// A layer's hand-over is one block: the rows, unless the device has them (device_dense.h), and
// which expert takes which. It lies in pinned memory that a kernel fetches, and results come back
// the same way, so that a layer doesn't stand behind the megabytes of a promotion. Of a prompt's
// chunk the device computes its share as device_chunks.h has it, if VRAM has room for what that
// works in, and nothing comes to stay. Other forwards of more rows than `rows_max` are the CPU's.
//
// An error of the device, at any call, loses the tier and nothing else (one notice): what it had
// taken goes back to the caller, whose tier in RAM brings it on, and the bits stay (promise 1).
// Decode thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/cause_timer.h"
#include "base/clock.h"
#include "base/notices.h"
#include "base/result.h"
#include "cache/ram_tier.h"
#include "cache/usage.h"
#include "cache/vram_tier.h"
#include "gpu/device.h"
#include "model/spec.h"
#include "runtime/device_chunks.h"
#include "runtime/device_hits.h"
#include "runtime/options.h"
#include "runtime/placement.h"
#include "runtime/promotion_value.h"
#include "runtime/router.h"
#include "runtime/weights.h"

namespace offstage {

// An expert that a layer will call with this probability when it is reached.
struct Nominee {
  ExpertId expert;
  float right = 0;
};

class DeviceExperts {
 public:
  // All outlive it.
  struct Parts {
    Device& device;
    const DeviceKernels& kernels;
    const ModelSpec& spec;
    const DenseWeights& weights;
    const ExpertLayout& layout;
    RamTier& ram;
    // Where copies come from: pinned, if the system lets us. Experts', and rows of prompts.
    std::span<std::byte> ram_slots, scratch;
    CauseTimer& timer;
    const Clock& clock;
    Notices& notices;
  };
  struct Options {
    uint64_t vram_bytes = 0;  // all that it may allocate on the device
    uint32_t rows_max = 1;
    uint32_t chunk_rows = 0;  // of a prompt's chunk; 0: prompts are the CPU's
    Promote promote = Promote::kAuto;
    Placement placement = Placement::kAuto;
    bool demote = true;
    bool starts_hits = true;  // false: what is called isn't what the device's router chooses
    int64_t deadline_ns = 0;  // of a layer's experts, and of a copy
  };

  // Errors: kBudget (the message gives the floor), kUnsupported (no layer whose formats have a
  // kernel), the device's.
  static Result<std::unique_ptr<DeviceExperts>> create(const Parts& parts, const Options& options);
  ~DeviceExperts();
  DeviceExperts(const DeviceExperts&) = delete;
  DeviceExperts& operator=(const DeviceExperts&) = delete;

  // Before the first forward: experts that are in RAM and that earlier runs called most, as many as
  // there are slots.
  void fill(const ExpertUsage& usage);

  void begin_forward(Phase phase);
  // Of a step: what was launched before leaves the layer's choice, `experts` [n_rows][n_used], and
  // `normed` [n_rows][hidden] in device memory. Launches what computes those that are there. The
  // layer's take() must come next, unless the device is lost. Errors: the device's, which failed.
  Status start_hits(LayerIndex layer, const uint32_t* experts, const float* normed,
                    uint32_t n_rows);
  // The layer calls, for `normed` [n_rows][hidden], which the device may have already (else
  // nullptr). Launches the device's share, if start_hits() hasn't, and returns the rest, valid
  // until the next take(). collect() must follow.
  std::span<const ExpertCall> take(LayerIndex layer, const Routing& routing, const float* normed,
                                   Phase phase, const float* normed_on_device = nullptr);
  // Of the experts that RAM hands out now, those that the CPU is to compute; valid until the next
  // call. The device has begun to copy the others, and will compute them.
  std::span<const ReadyExpert> place(const Routing& routing, const float* normed,
                                     std::span<const ReadyExpert> ready);
  // The CPU has computed those: RAM may have the slots back of what it handed out.
  void let_go();
  // What the caller must compute after all: nothing, or all that the device had.
  struct Lost {
    std::span<const ExpertCall> taken;   // by take()
    std::span<const ExpertCall> copied;  // by place(): RAM had handed them out
    bool empty() const { return taken.empty() && copied.empty(); }
  };
  // The device's results to their places in expert_out [calls][hidden].
  Lost collect(const Routing& routing, float* expert_out);
  // After the tier's event: of the experts that the CPU computed, `costs` and all, those that pay
  // begin to be copied.
  void promote(LayerIndex layer, const EventCosts& costs);

  // For layers that aren't in their event. Of the experts that VRAM hasn't got, those in RAM whose
  // copy pays, the coming call included, begin to be copied.
  bool wants_nominees(LayerIndex layer) const;
  void nominate(LayerIndex layer, std::span<const Nominee> nominees);

  bool is_resident(LayerIndex layer, ExpertId expert) const {
    return vram_->is_resident(layer, expert);
  }
  // Prompts needn't have it in RAM.
  bool computes_in_chunks(LayerIndex layer, ExpertId expert) const {
    return chunks_ != nullptr && vram_->is_resident(layer, expert);
  }
  bool is_lost() const { return vram_->is_lost(); }
  uint64_t hits() const { return hits_; }            // calls whose experts were there
  uint64_t started() const { return started_; }      // of those, by start_hits()
  uint64_t nominated() const { return nominated_; }  // promotions begun by nominate()
  const PlacementCounts& placements() const { return placed_; }
  const DeviceChunks* chunks() const { return chunks_.get(); }  // nullptr: the CPU's
  const VramTier& vram() const { return *vram_; }
  const DeviceFacts& facts() const { return parts_.device.facts(); }
  uint32_t layers_with_slots() const;
  uint64_t working_bytes() const;  // of VRAM, beside what vram() has

  // The device was seen to fail: nothing is there any more, and a notice says so once. What an open
  // event took comes back from collect().
  void lose(const Error& error);

 private:
  // --promote always, for measurements and tests; and before the first token, when all time is the
  // copies'.
  static constexpr int64_t kPaysAlways = 1'000'000'000'000;
  static constexpr uint64_t kPartAlignment = 64;  // of a hand-over's parts
  static constexpr uint32_t kVisitors = 2;        // one is computed while the next is copied
  // Experts handed over together, and where what they need lies: the same in pinned and in device
  // memory.
  struct Group {
    std::span<const ExpertCall> calls;
    uint32_t first_place = 0, n_places = 0;  // in the event's order of results
    bool is_first = false;                   // of the event: brings the rows, too
    uint64_t jobs = 0, place_rows = 0, end = 0;
  };
  // Experts launched together; all in device memory.
  struct Share {
    const gpu::ExpertJob* jobs = nullptr;
    uint32_t n_jobs = 0;
    const uint32_t* place_rows = nullptr;
    uint32_t first_place = 0, n_places = 0;
    const uint32_t* count = nullptr;    // of places, if the host doesn't know: n_places at most
    std::span<const ExpertCall> calls;  // empty: whatever the table names
    uint32_t n_likely = 0;              // experts, for the simulated device's clock
  };

  DeviceExperts(const Parts& parts, const Options& options);
  Status open();
  Status open_tier();
  uint64_t chunk_bytes() const;
  std::string why_no_chunks() const;
  Status open_chunks();
  Status leave_chunks_to_cpu(const std::string& reason);
  std::span<const ExpertCall> take_chunk(LayerIndex layer, const Routing& routing,
                                         const float* normed, const float* normed_on_device);
  std::span<const ReadyExpert> place_chunk(std::span<const ReadyExpert> ready);
  Lost collect_chunk(float* expert_out);
  Result<VramPlan> plan();
  Status take_working_memory();
  Result<const float*> upload(const float* values, uint64_t n);
  Status upload_biases();
  const LayerWeights& weights_of(LayerIndex layer) const;
  bool has_kernels(LayerIndex layer) const;
  Status launch(const Routing& routing, const float* normed, size_t first_taken);
  Group hand_over(const Routing& routing, const float* normed, size_t first_taken);
  Status launch_group(const Group& group, uint32_t n_rows);
  Status quantise_rows(const float* rows, uint32_t n_rows);
  Status launch_share(const Share& share, uint32_t n_rows);
  template <typename Args>
  Status put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel, const Args& args,
             uint64_t host_bytes = 0);
  template <typename Args>
  Status put_experts(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                     const Args& args, const Share& share, uint64_t bytes);
  void adopt_hits();
  void note_reads(std::span<const ReadyExpert> ready, int64_t now_ns);
  uint32_t copies_of(uint32_t n, int64_t now_ns);
  bool copy_and_launch(const Routing& routing, const float* normed, ExpertId expert);
  Result<bool> wait_for(DeviceMark mark);
  Status wait();
  void release_guests();
  void release_all();
  std::optional<ExpertSpace> keep(LayerIndex layer, ExpertId expert);
  int64_t saved_ns() const;
  bool bring(LayerIndex layer, ExpertId expert, std::span<const double> calls_expected,
             int64_t saved_ns);
  void take_arrivals();
  bool drain();

  Parts parts_;
  Options options_;
  std::unique_ptr<VramTier> vram_;
  PromotionValue value_;
  PlacementMeter meter_;
  uint32_t calls_max_ = 0;
  uint64_t hand_over_bytes_ = 0;
  std::byte *handed_ = nullptr, *results_ = nullptr;  // pinned: what goes over, what comes back
  std::byte* input_ = nullptr;                        // on the device, from here on
  std::byte *forms_ = nullptr, *hidden_forms_ = nullptr;
  float *hidden_ = nullptr, *out_ = nullptr;
  DeviceHits hit_list_;
  std::vector<DeviceBiases> biases_;  // by layer
  std::unique_ptr<DeviceChunks> chunks_;

  // The event.
  bool takes_part_ = false;
  bool in_chunk_ = false;  // chunks_ does, instead
  LayerIndex layer_;
  const float* rows_there_ = nullptr;  // what take() was given
  int64_t begun_ns_ = 0;
  bool hits_started_ = false;  // of this event, or of the one that take() will begin
  bool has_rows_ = false;      // forms_ are its rows', by now or behind what was launched
  bool in_flight_ = false;     // something that is to be collected
  DeviceMark residents_done_, done_;
  std::vector<ExpertCall> taken_, left_;  // the residents first, then those that were copied
  size_t n_residents_ = 0;
  uint32_t n_places_ = 0;            // of what was launched
  uint64_t handed_bytes_ = 0;        // likewise
  std::vector<uint8_t> at_hand_;     // by expert, of those left: RAM had it
  uint32_t to_read_ = 0;             // of those left: the others
  uint32_t still_to_read_ = 0;       // not yet handed out
  int64_t waited_ns_ = 0;            // for the drive, at the last look
  std::vector<ReadyExpert> here_;    // backs what place() returned
  std::vector<ExpertPlace> guests_;  // in RAM, while they visit VRAM
  std::vector<ExpertPlace> held_;    // in RAM, while they are copied
  PlacementCounts placed_;
  uint32_t all_copied_ = 0;  // batches
  int64_t forward_began_ns_ = 0;
  bool is_decode_ = false;
  std::vector<double> expected_;       // scratch of nominate()
  std::vector<uint32_t> likely_hits_;  // by layer: experts that were there when it was called last
  uint64_t hits_ = 0, started_ = 0, nominated_ = 0;
};

}  // namespace offstage
