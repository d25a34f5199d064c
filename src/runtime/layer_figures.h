// Which layers found their experts in RAM, out of the record of layers.
#pragma once

#include <cstdint>
#include <vector>

#include "base/trace.h"

namespace offstage {

struct LayerFigures {
  uint32_t layer = 0;   // block of the model
  uint64_t visits = 0;  // by tokens; a prompt's aren't counted
  uint64_t calls = 0;   // of experts
  uint64_t misses = 0;  // called and not resident
  int64_t wall_ns = 0;  // of all visits
  int64_t wait_ns = 0;  // of it, asleep until a read came
};

// Of what the ring still holds, by layer; none without --record layer. A layer from
// `first_moe_layer` on calls `n_used` experts a visit, one before it none.
std::vector<LayerFigures> layer_figures(const Ring<LayerSample>& layers, uint32_t first_moe_layer,
                                        uint32_t n_used);

}  // namespace offstage
