// How a budget in bytes becomes slots: per size class, staging beside the slots that are kept.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "cache/expert_layout.h"

namespace offstage {

struct SlotClassPlan {
  uint64_t slot_bytes = 0;
  uint32_t n_slots = 0;  // kept + staging
  // Always free between layers: what a layer's misses are read into. 0 when every expert of the
  // class has a slot.
  uint32_t n_staging = 0;
};

struct SlotPlan {
  std::vector<SlotClassPlan> classes;
  std::vector<uint32_t> kept_per_layer;  // experts that stay resident after a layer was computed
  // Of those, how many a layer gives up while a prompt is read: a prompt reads nearly all experts,
  // and with little staging the drive would stand still during attention. Empty: none.
  std::vector<uint32_t> lent_per_layer;

  uint32_t lent_in_prefill(LayerIndex layer) const {
    return lent_per_layer.empty() ? 0 : lent_per_layer[layer.value];
  }
  // What a prompt's experts of this layer stream through.
  uint32_t streaming_slots(const ExpertLayout& layout, LayerIndex layer) const;
  uint64_t bytes() const;
  uint32_t n_slots() const;
};

// The least that can run: two slots a class, so that one is read while the other computes; one
// where the class has a single expert.
uint64_t slot_floor_bytes(const ExpertLayout& layout);

// Spends at most `budget_bytes`: staging first (what one token's layer calls, n_used, or less when
// the budget is small), then the same number of kept experts for every layer, because layers are
// visited in a cycle and a pool without such floors would serve none of them. Whatever is left goes
// to the first layers, one more each. A class never gets more slots than it has experts: with as
// many, all are kept and staging is 0. kBudget if below the floor.
Result<SlotPlan> plan_slots(const ExpertLayout& layout, uint32_t n_used, uint64_t budget_bytes);

}  // namespace offstage
