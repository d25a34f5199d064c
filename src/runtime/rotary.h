// Rotary angles, made once on the host: no kernel ever calls sin or cos (promise 1).
#pragma once

#include <cstdint>

#include "base/arena.h"
#include "model/spec.h"

namespace offstage {

class RotaryTable {
 public:
  static uint64_t bytes_needed(const RotarySpec& spec, uint32_t context);

  // `factors` [n_rot/2] divide θ_i; nullptr: none.
  RotaryTable(const RotarySpec& spec, uint32_t context, const float* factors, HostArena& arena);

  // [n_rot/2][2]: cos, sin of position · θ_i, times the magnitude
  const float* row(uint32_t position) const { return table_ + uint64_t{position} * n_rot_; }
  uint32_t context() const { return context_; }

 private:
  float* table_;  // [context][n_rot/2][2]
  uint32_t n_rot_;
  uint32_t context_;
};

}  // namespace offstage
