#include "runtime/rotary.h"

#include <cmath>

#include "base/checked_math.h"

namespace offstage {

uint64_t RotaryTable::bytes_needed(const RotarySpec& spec, uint32_t context) {
  return round_up(uint64_t{context} * spec.n_rot * sizeof(float), 64);
}

RotaryTable::RotaryTable(const RotarySpec& spec, uint32_t context, const float* factors,
                         HostArena& arena)
    : table_(reinterpret_cast<float*>(arena.take(bytes_needed(spec, context), 64))),
      n_rot_(spec.n_rot),
      context_(context) {
  for (uint32_t i = 0; i < spec.n_rot / 2; ++i) {
    double theta = std::pow(static_cast<double>(spec.freq_base), -2.0 * i / spec.n_rot) *
                   static_cast<double>(spec.position_scale);
    if (factors != nullptr) theta /= static_cast<double>(factors[i]);
    for (uint32_t position = 0; position < context; ++position) {
      float* pair = table_ + uint64_t{position} * spec.n_rot + 2 * i;
      pair[0] = static_cast<float>(std::cos(position * theta));
      pair[1] = static_cast<float>(std::sin(position * theta));
    }
  }
}

}  // namespace offstage
