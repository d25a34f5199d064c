// Which resident expert leaves: a policy sees ids, router weights, use and time, never bytes.
//
// Judged per layer and event-atomically: an event is one forward's visit of one layer. All its
// calls are looked up and reported before a victim is asked for, and the called ones are candidates
// like any other: an expert may be used and not kept (bypass). A policy gives every expert a value;
// who has the least leaves. Nothing is allocated per event, and the same events give the same
// values. Owned and called by the decode thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace offstage {

struct ExpertCall {
  ExpertId expert;
  uint32_t uses = 1;  // rows that called it
  float weight = 0;   // its router weights, summed over those rows; 0 if not known
};

struct LayerEvent {
  LayerIndex layer;
  std::span<const ExpertCall> calls;  // distinct experts
  uint32_t n_rows = 1;                // 1 in single-sequence decode
  // The same calls row by row, [n_rows][n_used] in router order; empty if not known. Rows are
  // successive tokens of one conversation.
  std::span<const ExpertId> row_experts = {};
  // The router's probability of every expert, chosen or not, at the last row; empty if not known.
  std::span<const float> probabilities = {};
};

// What a policy must know of the tier it serves.
struct PolicyShape {
  uint32_t n_layers = 0, n_experts = 0, n_used = 0;
  std::vector<uint32_t> kept_per_layer;  // experts that stay after an event
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;
  // Events come forward by forward, each from the first layer to the last; layers may be missing.
  virtual void on_event(const LayerEvent& event) = 0;
  // The higher, the longer it should stay. Compared within a layer and between events only.
  virtual double value(LayerIndex layer, ExpertId expert) const = 0;
  // Before the first event: calls per token of the layer's experts (0 to 1), known from before.
  virtual void seed(LayerIndex /*layer*/, std::span<const float> /*shares*/) {}
  // The one of `candidates` (never empty) to evict: the least value, ties to the lower id.
  ExpertId victim(LayerIndex layer, std::span<const ExpertId> candidates) const;
};

// lru      least recently called
// lfu      least often called, calls forgotten by half every 16 tokens
// slru     segmented: those called twice within a window outlive those called once
// gate     as lfu, a call counting by its router weight too, and near misses a little
// recall   expected next use, learned online from the routing's own past (recall_policy.h)
// auto     the one of these that would have hit most lately (auto_policy.h)
std::vector<std::string_view> policy_names();
Result<std::unique_ptr<EvictionPolicy>> make_policy(std::string_view name,
                                                    const PolicyShape& shape);

std::unique_ptr<EvictionPolicy> make_lru_policy(uint32_t n_layers, uint32_t n_experts);

}  // namespace offstage
