#include "runtime/routing_watchers.h"

namespace offstage {

void RoutingWatchers::begin_forward(std::span<const Row> rows, Phase phase) {
  const bool is_prefill = phase == Phase::kPrefill;
  if (recorder != nullptr) recorder->begin_forward(rows, is_prefill);
  if (last_routes != nullptr) last_routes->begin_forward(rows, is_prefill);
  if (first_routes != nullptr) first_routes->begin_forward(static_cast<uint32_t>(rows.size()));
}

void RoutingWatchers::at_layer(LayerIndex layer, const Routing& routing, const float* x) {
  if (recorder != nullptr) recorder->add_layer(layer, routing);
  if (last_routes != nullptr) last_routes->add_layer(layer, routing);
  if (first_routes != nullptr) first_routes->add_layer(layer, routing);
  if (gate_accuracy != nullptr) gate_accuracy->at_layer(layer, routing, x);
}

Status RoutingWatchers::end_forward() {
  if (recorder != nullptr) OFFSTAGE_TRY_VOID(recorder->end_forward());
  if (last_routes != nullptr) last_routes->end_forward();
  if (first_routes != nullptr) first_routes->end_forward();
  return {};
}

}  // namespace offstage
