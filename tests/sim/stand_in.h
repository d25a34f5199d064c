// The stand-in for arithmetic: a row of the residual stream is 64 bits, an expert's output is a
// hash of the bytes that were used for it. What a row becomes in a layer depends on its experts'
// bytes in router order, and decides whom the next layer calls: one stale byte, or an order that
// depends on arrival, changes the tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/rng.h"
#include "cache/eviction.h"
#include "io/hash_index.h"

namespace offstage::sim {

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t z = a ^ (b + 0x9e3779b97f4a7c15 + (a << 6) + (a >> 2));
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

inline uint64_t output_of(std::span<const std::byte> gate, std::span<const std::byte> up,
                          std::span<const std::byte> down) {
  return mix(mix(hash_piece(gate), hash_piece(up)), hash_piece(down));
}

// The experts that a row calls, best first. Some are more popular than others, differently in each
// layer, so that caches have something to learn.
inline void route(uint64_t row, uint32_t layer, uint32_t n_experts, std::span<ExpertId> out) {
  Rng rng(mix(row, layer));
  for (size_t i = 0; i < out.size();) {
    const double u = rng.uniform();
    const auto rank = static_cast<uint32_t>(u * u * n_experts);
    const ExpertId expert((rank + layer * 5) % n_experts);
    const auto called = out.first(i);
    if (std::find(called.begin(), called.end(), expert) == called.end()) out[i++] = expert;
  }
}

}  // namespace offstage::sim
