#include "cache/slot_plan.h"

#include <algorithm>

#include "base/units.h"

namespace offstage {
namespace {

constexpr uint64_t kSlotsMin = 2;
constexpr uint32_t kLentShare = 8;
constexpr uint64_t kLentBytesMax = 256ull << 20;

uint64_t experts_of(const ExpertLayout& layout, uint32_t slot_class) {
  return uint64_t{layout.n_experts()} * layout.class_layers(slot_class);
}

// Two, or one where the class has a single expert.
uint32_t slots_min(const ExpertLayout& layout, uint32_t slot_class) {
  return static_cast<uint32_t>(std::min(kSlotsMin, experts_of(layout, slot_class)));
}

// A slot for every expert of a class: all are kept, and what isn't resident yet finds its slot
// empty, so that no staging is needed beside them.
void keep_all_if_full(const ExpertLayout& layout, uint32_t slot_class, SlotPlan& plan) {
  SlotClassPlan& c = plan.classes[slot_class];
  if (c.n_slots < experts_of(layout, slot_class)) return;
  c.n_staging = 0;
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    if (layout.slot_class(LayerIndex(l)) == slot_class) plan.kept_per_layer[l] = layout.n_experts();
}

// Up to a whole layer's experts in flight, for as much as an eighth of what the layers keep. More
// than kLentBytesMax is more than a drive reads during one layer's attention.
void plan_lending(const ExpertLayout& layout, SlotPlan& plan) {
  plan.lent_per_layer.assign(layout.n_layers(), 0);
  for (uint32_t l = 0; l < layout.n_layers(); ++l) {
    const uint32_t c = layout.slot_class(LayerIndex(l));
    const uint32_t layers = layout.class_layers(c);
    const SlotClassPlan& slots = plan.classes[c];
    if (slots.n_staging == 0) continue;  // every expert has its slot
    const uint32_t wanted =
        layout.n_experts() - std::min(layout.n_experts(), slots.n_staging) + layers - 1;
    plan.lent_per_layer[l] = static_cast<uint32_t>(
        std::min({uint64_t{plan.kept_per_layer[l] / kLentShare}, uint64_t{wanted / layers},
                  kLentBytesMax / slots.slot_bytes / layers}));
  }
}

}  // namespace

uint32_t SlotPlan::streaming_slots(const ExpertLayout& layout, LayerIndex layer) const {
  const uint32_t slot_class = layout.slot_class(layer);
  uint32_t total = classes[slot_class].n_staging;
  for (uint32_t l = 0; l < lent_per_layer.size(); ++l)
    if (layout.slot_class(LayerIndex(l)) == slot_class) total += lent_per_layer[l];
  return total;
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
  for (uint32_t c = 0; c < layout.n_classes(); ++c)
    floor += slots_min(layout, c) * layout.class_bytes(c);
  return floor;
}

Result<SlotPlan> plan_slots(const ExpertLayout& layout, uint32_t n_used, uint64_t budget_bytes) {
  if (budget_bytes < slot_floor_bytes(layout))
    return make_error(ErrorCode::kBudget, "expert slots: {} left, at least {} needed",
                      format_bytes(budget_bytes), format_bytes(slot_floor_bytes(layout)));
  SlotPlan plan;
  plan.kept_per_layer.assign(layout.n_layers(), 0);
  uint64_t left = budget_bytes;
  for (uint32_t c = 0; c < layout.n_classes(); ++c) {
    const uint32_t least = slots_min(layout, c);
    plan.classes.push_back({layout.class_bytes(c), least, least});
    left -= least * layout.class_bytes(c);
  }
  const auto add_slot = [&](uint32_t slot_class) {
    ++plan.classes[slot_class].n_slots;
    left -= layout.class_bytes(slot_class);
    keep_all_if_full(layout, slot_class, plan);
  };
  // Staging up to one layer's calls (and one more, so that reading goes on while the last one
  // computes), but never more than a quarter of the budget.
  for (uint32_t c = 0; c < layout.n_classes(); ++c) {
    SlotClassPlan& slots = plan.classes[c];
    const uint64_t share = budget_bytes / 4 / plan.classes.size() / slots.slot_bytes;
    const uint64_t wanted = std::min({uint64_t{n_used} + 1, share, experts_of(layout, c)});
    while (slots.n_slots < wanted && left >= slots.slot_bytes) {
      ++slots.n_staging;
      add_slot(c);
    }
    keep_all_if_full(layout, c, plan);
  }
  // Kept slots, one round over all layers at a time.
  for (bool grew = true; grew;) {
    grew = false;
    for (uint32_t l = 0; l < layout.n_layers(); ++l) {
      const uint32_t c = layout.slot_class(LayerIndex(l));
      if (plan.kept_per_layer[l] == layout.n_experts() || left < layout.class_bytes(c)) continue;
      ++plan.kept_per_layer[l];
      add_slot(c);
      grew = true;
    }
  }
  plan_lending(layout, plan);
  return plan;
}

}  // namespace offstage
