// The Mixture-of-Experts block: route, take experts as the tier brings them on, add in router
// order.
#pragma once

#include <cstdint>
#include <span>

#include "base/cause_timer.h"
#include "base/result.h"
#include "cache/ram_tier.h"
#include "model/spec.h"
#include "runtime/compute.h"
#include "runtime/device_dense.h"
#include "runtime/device_experts.h"
#include "runtime/ffn_block.h"
#include "runtime/route_replay.h"
#include "runtime/router.h"
#include "runtime/scratch.h"
#include "runtime/weights.h"

namespace offstage {

class MoeBlock {
 public:
  // All outlive it.
  struct Parts {
    const ModelSpec& spec;
    const Compute& compute;
    RamTier& tier;
    CauseTimer& timer;
    MoeScratch scratch;
    uint32_t rows_max;
    RouteReplay* replay = nullptr;    // chooses the experts in the router's place
    DeviceExperts* device = nullptr;  // computes those that lie in VRAM
    DeviceDense* dense = nullptr;     // routes and computes the shared expert, of what it ran
  };
  explicit MoeBlock(const Parts& parts);

  // A forward: its rows, every layer with experts in order, its end.
  void begin_forward(uint32_t n_rows, Phase phase);
  // Routes normed [n_rows][hidden] and starts reading the called experts that aren't resident.
  // `layer` counts the layers with experts. compute() must follow.
  const Routing& call(LayerIndex layer, const LayerWeights& weights, const float* normed,
                      uint32_t n_rows, Phase phase);
  // x [n_rows][hidden] += the called experts(normed) + shared expert.
  // Errors: those of the tier (a read that failed for good, a hash that doesn't fit).
  Status compute(const LayerWeights& weights, const float* normed, uint32_t n_rows, float* x);
  // Not after an error.
  void end_forward();

 private:
  // One expert called by some rows.
  struct Job {
    ReadyExpert expert;
    uint32_t first_call = 0, n_calls = 0;  // places in Routing's order
  };

  const Routing& route(LayerIndex layer, const LayerWeights& weights, uint32_t n_rows);
  const Routing& routed_by(const DeviceDense::Choice& choice, uint32_t n_rows);
  std::span<const float> last_probabilities(uint32_t n_rows) const;
  Status run_called(const LayerWeights& weights, const float* normed, EventCosts& costs);
  Status run_all(const LayerWeights& weights, const float* normed, EventCosts& costs);
  void run_experts(const LayerWeights& weights, std::span<const ReadyExpert> experts,
                   const Routing& routing);
  void gate_and_up(const LayerWeights& weights, const Routing& routing);
  void down(const LayerWeights& weights);
  void add_in_router_order(const Routing& routing, const float* normed, const LayerWeights& weights,
                           float* x);

  const ModelSpec& spec_;
  const Compute& compute_;
  RamTier& tier_;
  CauseTimer& timer_;
  MoeScratch scratch_;
  Router router_;
  ActivationCache input_;  // forms of `normed`
  FfnBlock shared_;
  RouteReplay* const replay_;
  DeviceExperts* const device_;
  DeviceDense* const dense_;
  std::vector<Job> jobs_;
  LayerIndex layer_;
  bool shared_on_device_ = false;
  const Routing* routing_ = nullptr;  // from call() to compute()
};

}  // namespace offstage
