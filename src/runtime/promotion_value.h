// What it is worth to have an expert in VRAM: how often it will be called while it stays there, and
// what a call saves. Measured while the run goes; no clock and no device here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/types.h"
#include "cache/eviction.h"
#include "cache/usage.h"

namespace offstage {

// One layer's visit by one forward.
struct EventCosts {
  uint32_t calls = 0;   // that the CPU computed
  int64_t cpu_ns = 0;   // computing them
  int64_t wait_ns = 0;  // for the drive, meanwhile
};

class PromotionValue {
 public:
  PromotionValue(uint32_t n_layers, uint32_t n_experts);

  // Calls expected of an expert that comes now: so many tokens ahead, as in as many before.
  static constexpr double kHorizonTokens = 128;
  void seed(const ExpertUsage& usage);
  void add_calls(LayerIndex layer, std::span<const ExpertCall> calls);
  std::span<const double> calls_expected(LayerIndex layer) const;

  void add_costs(const EventCosts& costs);
  // The device computed `calls` in that time; `exact`: it was waited for, so that no less would do.
  void add_device(uint32_t calls, int64_t ns, bool exact);
  // By a call that the device computes instead of the CPU. The expert's slot in RAM goes to
  // another, which would otherwise have been read as often as calls are on average: that is saved
  // too.
  int64_t saved_ns_per_call() const;

 private:
  uint32_t n_experts_;
  std::vector<double> expected_;                     // [layer][expert]
  double cpu_ns_ = 0, device_ns_ = 0, wait_ns_ = 0;  // per call; 0: not measured
};

}  // namespace offstage
