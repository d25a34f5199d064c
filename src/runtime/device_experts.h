// A layer's experts that lie in VRAM, computed there while the CPU computes the others.
//
//   call():    take() ── of the called experts those in VRAM are the device's: launched at once
//              RamTier::begin() with the others
//   compute(): the CPU's experts as RAM and drive bring them on
//              collect() ── waits for the device's, which stand in router order like everybody's
//              promote() ── experts that the CPU computed may be copied to VRAM for the next time
//
// A layer's hand-over is one block: the rows, and which expert takes which. It lies in pinned
// memory that a kernel fetches, and results come back the same way, so that a layer doesn't stand
// behind the megabytes of a promotion. Prompts are computed by the CPU; so are forwards of more
// rows than `rows_max`.
//
// An error of the device, at any call, loses the tier and nothing else (one notice): what it had
// taken goes back to the caller, whose tier in RAM brings it on, and the bits stay (promise 1).
// Decode thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
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
#include "runtime/options.h"
#include "runtime/promotion_value.h"
#include "runtime/router.h"
#include "runtime/weights.h"

namespace offstage {

class DeviceExperts {
 public:
  struct Parts {
    std::unique_ptr<Device> device;
    DeviceKernels kernels;
    const ModelSpec& spec;
    const DenseWeights& weights;
    const ExpertLayout& layout;
    RamTier& ram;
    std::span<std::byte> ram_slots;  // where copies come from: pinned, if the system lets us
    CauseTimer& timer;
    const Clock& clock;
    Notices& notices;
  };
  struct Options {
    uint64_t vram_bytes = 0;  // all that is allocated on the device
    uint32_t rows_max = 1;
    Promote promote = Promote::kAuto;
    int64_t deadline_ns = 0;  // of a layer's experts, and of a copy
  };

  // Errors: kBudget (the message gives the floor), kUnsupported (no layer whose formats have a
  // kernel), the device's.
  static Result<std::unique_ptr<DeviceExperts>> create(Parts parts, const Options& options);
  ~DeviceExperts();
  DeviceExperts(const DeviceExperts&) = delete;
  DeviceExperts& operator=(const DeviceExperts&) = delete;

  // Before the first forward: experts that are in RAM and that earlier runs called most, as many as
  // there are slots.
  void fill(const ExpertUsage& usage);

  void begin_forward(Phase phase);
  // The layer calls, for `normed` [n_rows][hidden]. Launches the device's share and returns the
  // rest, valid until the next take(). collect() must follow.
  std::span<const ExpertCall> take(LayerIndex layer, const Routing& routing, const float* normed,
                                   Phase phase);
  // The device's results to their places in expert_out [calls][hidden]. Returns what the caller
  // must compute after all: nothing, or all that was taken.
  std::span<const ExpertCall> collect(const Routing& routing, float* expert_out);
  // After the tier's event: of the experts that the CPU computed, `costs` and all, those that pay
  // begin to be copied.
  void promote(LayerIndex layer, const EventCosts& costs);

  bool is_resident(LayerIndex layer, ExpertId expert) const {
    return vram_->is_resident(layer, expert);
  }
  bool is_lost() const { return vram_->is_lost(); }
  uint64_t hits() const { return hits_; }  // calls that the device computed
  const VramTier& vram() const { return *vram_; }
  const DeviceFacts& facts() const { return parts_.device->facts(); }
  uint32_t layers_with_slots() const;

 private:
  // --promote always, for measurements and tests; and before the first token, when all time is the
  // copies'.
  static constexpr int64_t kPaysAlways = 1'000'000'000'000;
  struct Biases {
    const float *gate = nullptr, *up = nullptr, *down = nullptr;  // on the device
  };
  // Where a hand-over's parts begin; the same in pinned and in device memory.
  struct HandOver {
    uint64_t place_rows = 0, x = 0, bytes = 0;
  };

  DeviceExperts(Parts parts, const Options& options);
  Status open();
  Result<VramPlan> plan();
  Status take_working_memory();
  Result<const float*> upload(const float* values, uint64_t n);
  Status upload_biases();
  uint64_t working_bytes() const;
  const LayerWeights& weights_of(LayerIndex layer) const;
  bool has_kernels(LayerIndex layer) const;
  Status launch(LayerIndex layer, const Routing& routing, const float* normed);
  uint32_t hand_over(const Routing& routing, const float* normed);
  Status launch_expert(LayerIndex layer, uint32_t n_rows, uint32_t n_places);
  template <typename Args>
  Status put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel, const Args& args,
             uint64_t bytes, uint64_t host_bytes, LayerIndex layer);
  bool bring(LayerIndex layer, ExpertId expert, int64_t saved_ns);
  void take_arrivals();
  bool drain();
  void lose(const Error& error);

  Parts parts_;
  Options options_;
  std::unique_ptr<VramTier> vram_;
  PromotionValue value_;
  HandOver at_;
  uint32_t calls_max_ = 0;
  std::byte *handed_ = nullptr, *results_ = nullptr;  // pinned: what goes over, what comes back
  std::byte* input_ = nullptr;                        // on the device, from here on
  std::byte *forms_ = nullptr, *hidden_forms_ = nullptr;
  float *hidden_ = nullptr, *out_ = nullptr;
  std::vector<Biases> biases_;  // by layer

  // The event.
  bool in_flight_ = false;
  DeviceMark done_;
  int64_t launched_ns_ = 0;
  std::vector<ExpertCall> taken_, left_;
  std::vector<ExpertPlace> held_;  // in RAM, while they are copied
  int64_t forward_began_ns_ = 0;
  bool is_decode_ = false;
  uint64_t hits_ = 0;
};

}  // namespace offstage
