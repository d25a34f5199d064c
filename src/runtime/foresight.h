// Who says which experts a layer will call, if not the gate (lookahead.h).
#pragma once

#include <cstdint>
#include <optional>

#include "base/types.h"

namespace offstage {

class Foresight {
 public:
  virtual ~Foresight() = default;
  // The expert named in the rank-th place for a row of this forward, so many layers before;
  // nothing: no word on that place.
  virtual std::optional<ExpertId> foretold(LayerIndex layer, uint32_t row, uint32_t rank,
                                           uint32_t ahead) const = 0;
};

}  // namespace offstage
