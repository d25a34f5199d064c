#include "runtime/read_ahead.h"

namespace offstage {

void ReadAhead::look(uint32_t layer, const float* x, uint32_t n_rows, Phase phase) {
  const ModelSpec& spec = parts_.spec;
  if (layer >= spec.n_layers || spec.is_dense_layer(layer)) return;
  const LayerIndex moe_layer(layer - spec.n_dense_layers);
  const std::span<const LayerWeights> from_here = std::span(parts_.weights.layers).subspan(layer);
  if (phase == Phase::kPrefill) {
    look_at_chunk(moe_layer, from_here.front(), x, n_rows);
  } else {
    parts_.lookahead.look(moe_layer, from_here, x, n_rows);
  }
}

// A layer without a past is foretold from how many of the chunk's rows would call whom.
void ReadAhead::look_at_chunk(LayerIndex layer, const LayerWeights& weights, const float* x,
                              uint32_t n_rows) {
  if (!parts_.forecast.enabled()) return;
  std::span<const uint16_t> votes;
  if (!parts_.forecast.has_past(layer)) votes = parts_.lookahead.poll(weights, x, n_rows);
  const std::span<const ExpertId> likely = parts_.forecast.foretell(layer, n_rows, votes);
  to_read_.clear();
  for (const ExpertId expert : likely)
    if (parts_.device == nullptr || !parts_.device->computes_in_chunks(layer, expert))
      to_read_.push_back(expert);
  parts_.tier.read_ahead(layer, to_read_);
}

void ReadAhead::learn(LayerIndex layer, std::span<const ExpertCall> calls) {
  parts_.lookahead.learn(layer, calls);
  parts_.forecast.learn(layer, calls);
}

}  // namespace offstage
