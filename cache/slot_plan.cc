#include "cache/slot_plan.h"

#include <algorithm>

#include "base/units.h"

namespace offstage {
namespace {
constexpr uint32_t kSlotsMin = 2;
}

uint64_t SlotPlan::bytes() const {
  uint64_t total = 0;
  for (const SlotClassPlan& c : classes) total += c.slot_bytes * c.n_slots;
  return total;
}

uint32_t SlotPlan::n_slots() const {
  uint32_t total = 0;
  for (const SlotClassPlan& c : classes) total += c.n_slots;
  return total;
}

uint64_t slot_floor_bytes(const ExpertLayout& layout) {
  uint64_t floor = 0;
  for (uint32_t c = 0; c < layout.n_classes(); ++c) floor += kSlotsMin * layout.class_bytes(c);
  return floor;
}

Result<SlotPlan> plan_slots(const ExpertLayout& layout, uint32_t n_used, uint64_t budget_bytes) {
  if (budget_bytes < slot_floor_bytes(layout))
    return make_error(ErrorCode::kBudget, "expert slots: {} left, at least {} needed",
                      format_bytes(budget_bytes), format_bytes(slot_floor_bytes(layout)));
  SlotPlan plan;
  uint64_t left = budget_bytes;
  for (uint32_t c = 0; c < layout.n_classes(); ++c) {
    plan.classes.push_back({layout.class_bytes(c), kSlotsMin, kSlotsMin});
    left -= kSlotsMin * layout.class_bytes(c);
  }
  // Staging up to one layer's calls (and one more, so that reading goes on while the last one
  // computes), but never more than a quarter of the budget.
  for (SlotClassPlan& c : plan.classes) {
    const uint64_t share = budget_bytes / 4 / plan.classes.size() / c.slot_bytes;
    const uint32_t wanted =
        std::min<uint32_t>(n_used + 1, static_cast<uint32_t>(std::min<uint64_t>(share, 1u << 20)));
    while (c.n_staging < wanted && left >= c.slot_bytes) {
      ++c.n_staging;
      ++c.n_slots;
      left -= c.slot_bytes;
    }
  }
  // Kept slots, one round over all layers at a time.
  plan.kept_per_layer.assign(layout.n_layers(), 0);
  bool grew = true;
  while (grew) {
    grew = false;
    for (uint32_t l = 0; l < layout.n_layers(); ++l) {
      SlotClassPlan& c = plan.classes[layout.slot_class(LayerIndex(l))];
      if (plan.kept_per_layer[l] == layout.n_experts() || left < c.slot_bytes) continue;
      ++plan.kept_per_layer[l];
      ++c.n_slots;
      left -= c.slot_bytes;
      grew = true;
    }
  }
  return plan;
}

}  // namespace offstage
