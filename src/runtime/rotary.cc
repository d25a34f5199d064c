#include "runtime/rotary.h"

#include <algorithm>
#include <cmath>

#include "base/checked_math.h"

namespace offstage {

namespace {

// YaRN: how much of frequency i stays unscaled. Frequencies that turn more than beta_fast times
// within the original context are kept, those that turn less than beta_slow times are scaled, and
// between the two the share falls linearly with i. The bounds are whole numbers, as in llama.cpp.
double kept_share(const RotarySpec& spec, uint32_t i) {
  if (spec.scaling != RotaryScaling::kYarn) return 0;
  const auto index_of_turns = [&](float turns) {
    const double wavelength = spec.context_original / (static_cast<double>(turns) * 2 * M_PI);
    return spec.n_rot * std::log(wavelength) / (2 * std::log(static_cast<double>(spec.freq_base)));
  };
  const double low = std::max(0.0, std::floor(index_of_turns(spec.beta_fast)));
  const double high = std::min(spec.n_rot - 1.0, std::ceil(index_of_turns(spec.beta_slow)));
  return 1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
}

}  // namespace

uint64_t RotaryTable::bytes_needed(const RotarySpec& spec, uint32_t context) {
  return round_up(uint64_t{context} * spec.n_rot * sizeof(float), 64);
}

RotaryTable::RotaryTable(const RotarySpec& spec, uint32_t context, const float* factors,
                         HostArena& arena)
    : table_(reinterpret_cast<float*>(arena.take(bytes_needed(spec, context), 64))),
      n_rot_(spec.n_rot),
      context_(context) {
  const auto magnitude = static_cast<double>(spec.magnitude);
  for (uint32_t i = 0; i < spec.n_rot / 2; ++i) {
    double theta = std::pow(static_cast<double>(spec.freq_base), -2.0 * i / spec.n_rot);
    if (factors != nullptr) theta /= static_cast<double>(factors[i]);
    theta = theta * (1 - kept_share(spec, i)) * static_cast<double>(spec.position_scale) +
            theta * kept_share(spec, i);
    for (uint32_t position = 0; position < context; ++position) {
      float* pair = table_ + uint64_t{position} * spec.n_rot + 2 * i;
      pair[0] = static_cast<float>(std::cos(position * theta) * magnitude);
      pair[1] = static_cast<float>(std::sin(position * theta) * magnitude);
    }
  }
}

}  // namespace offstage
