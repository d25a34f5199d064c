// Which resident expert leaves: a policy sees ids, use and time, never bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace offstage {

// Judged per layer and event-atomically: an event is one forward's visit of one layer, and all its
// calls are reported before a victim is asked for. Owned and called by the decode thread.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;
  // `uses`: how many rows of the event called the expert (1 in single-sequence decode).
  virtual void on_call(LayerIndex layer, ExpertId expert, uint32_t uses, uint64_t event) = 0;
  // The one of `candidates` (never empty) to evict. Ties go to the lower id.
  virtual ExpertId victim(LayerIndex layer, std::span<const ExpertId> candidates) const = 0;
};

// Least recently called within its layer.
std::unique_ptr<EvictionPolicy> make_lru_policy(uint32_t n_layers, uint32_t n_experts);

}  // namespace offstage
