// What a layer takes beside going through its weights, timed on the runtime itself.
//
// In: a small model with experts, whose weights are a minor part of a layer's time, and the speeds
// that its kernels reach. Its tokens are decoded with every expert in RAM and the caches swept
// before each; of the time by cause (base/cause_timer.h) that of the weights and the attended KV
// (plan/token_cost.h) is taken away, and what stays is norms, hand-outs, beginnings of products,
// rotation, top-k, sums: all that no number per byte tells. That it is the same for a layer of any
// width is an assumption.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "plan/hardware_profile.h"

namespace offstage {

struct LayerTrialParts {
  std::string model;  // GGUF file; only read
  uint32_t threads = 0;
  std::string isa;
  const HardwareProfile& profile;  // speeds of its kernels and of RAM
  size_t swept_bytes = 0;          // before each token; 0: more than the last cache has
};

// Of one layer, the median token's; ≥ 1, so that it is told from a profile that doesn't know.
struct LayerTrial {
  int64_t attention_ns = 0, router_ns = 0, experts_ns = 0;
};

// Errors: those of opening the model; kUnsupported for one without experts; kBudget where RAM can't
// hold all of them.
Result<LayerTrial> try_layers(const LayerTrialParts& parts);

}  // namespace offstage
