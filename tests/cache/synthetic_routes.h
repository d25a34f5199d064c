// Routing traces made up for tests: seeded, small, of any shape.
#pragma once

#include <algorithm>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "cache/eviction.h"
#include "cache/route_log.h"
#include "cpu/float16.h"

namespace offstage::testing {

// `rows[t]`: the experts that token t calls, in every layer the same.
inline RouteLog routes_of(const RouteShape& shape, const std::vector<std::vector<uint16_t>>& rows) {
  RouteLog log;
  log.shape = shape;
  for (const auto& row : rows)
    for (uint32_t l = 0; l < shape.n_layers; ++l)
      log.experts.insert(log.experts.end(), row.begin(), row.end());
  if (shape.has_probs) log.probs.assign(log.experts.size(), f16_of_float(0.25f));
  log.tokens.assign(rows.size(), -1);
  log.prefill.assign(rows.size(), 0);
  if (!rows.empty()) log.starts = {0};
  return log;
}

// Distinct experts drawn evenly, weights that descend.
inline RouteLog random_routes(const RouteShape& shape, uint64_t n_tokens, uint64_t seed) {
  Rng rng(seed);
  RouteLog log = routes_of(shape, {});
  std::vector<uint16_t> deck(shape.n_experts);
  for (uint64_t t = 0; t < n_tokens; ++t) {
    for (uint32_t l = 0; l < shape.n_layers; ++l) {
      for (uint32_t e = 0; e < shape.n_experts; ++e) deck[e] = static_cast<uint16_t>(e);
      for (uint32_t j = 0; j < shape.n_used; ++j) {
        std::swap(deck[j], deck[j + rng.below(shape.n_experts - j)]);
        log.experts.push_back(deck[j]);
        if (shape.has_probs) log.probs.push_back(f16_of_float(1.0f / static_cast<float>(j + 2)));
      }
    }
    log.tokens.push_back(shape.has_tokens ? static_cast<int32_t>(rng.below(1000)) : -1);
    log.prefill.push_back(t % 7 == 0);
    if (t % 50 == 0) log.starts.push_back(t);
  }
  return log;
}

// A file's bytes, replaced: without the fsync of a new TempFile for every damage that is tried.
inline void rewrite(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

// Every event of `log`, as a single-sequence decode.
inline void feed(const RouteLog& log, EvictionPolicy& policy) {
  for (uint64_t t = 0; t < log.n_tokens(); ++t)
    for (uint32_t l = 0; l < log.shape.n_layers; ++l) {
      std::vector<ExpertCall> calls;
      std::vector<ExpertId> row;
      for (uint32_t j = 0; j < log.shape.n_used; ++j) {
        row.push_back(ExpertId(log.calls(t, l)[j]));
        calls.push_back({row.back(), 1, log.weight(t, l, j)});
      }
      policy.on_event({LayerIndex(l), calls, 1, row});
    }
}

}  // namespace offstage::testing
