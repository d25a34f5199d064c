// What is read before it is called, so that it flies while the layers before it compute.
//
// A step's few calls are guessed by the coming layers' own gates (lookahead.h). A prompt's chunk
// calls nearly all of a layer's experts, and which are left out is foretold from their past
// (chunk_forecast.h). Decode thread only; never changes a bit of a result.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/ram_tier.h"
#include "model/spec.h"
#include "runtime/chunk_forecast.h"
#include "runtime/device_experts.h"
#include "runtime/lookahead.h"
#include "runtime/weights.h"

namespace offstage {

class ReadAhead {
 public:
  // All outlive it.
  struct Parts {
    const ModelSpec& spec;
    const DenseWeights& weights;
    RamTier& tier;
    Lookahead& lookahead;
    ChunkForecast& forecast;
    const DeviceExperts* device = nullptr;  // computes experts of chunks that it has
  };
  explicit ReadAhead(const Parts& parts) : parts_(parts) {}

  // Starts reads for `layer` (of all the model's), the next to be reached, from the stream as it is
  // now, x [n_rows][hidden]. Nothing to do past the last layer and for one without experts.
  void look(uint32_t layer, const float* x, uint32_t n_rows, Phase phase);
  // What a layer called in the end; after RamTier::begin() with the same calls.
  void learn(LayerIndex layer, std::span<const ExpertCall> calls);

 private:
  void look_at_chunk(LayerIndex layer, const LayerWeights& weights, const float* x,
                     uint32_t n_rows);

  Parts parts_;
  std::vector<ExpertId> to_read_;  // scratch of look_at_chunk()
};

}  // namespace offstage
