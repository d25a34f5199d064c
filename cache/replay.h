// A recorded routing trace against an eviction policy: what a tier of a given size would have hit.
//
// Event-atomic like the RAM tier: an event's calls are all looked up before any is inserted, and
// `kept` counts the experts that stay after it. Bypass is allowed: a called expert needn't stay.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cache/eviction.h"
#include "cache/expert_layout.h"
#include "cache/route_log.h"

namespace offstage {

struct LayerHits {
  uint64_t lookups = 0, hits = 0;
  double hit_rate() const {
    return lookups == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(lookups);
  }
};

struct ReplayOptions {
  std::vector<uint32_t> kept_per_layer;  // at least 1 each
  uint64_t tokens = UINT64_MAX;          // so many from the beginning of the trace
  uint64_t skipped = 0;                  // the first of them: they fill the cache, nothing counts
};

struct ReplayResult {
  std::vector<LayerHits> layers;
  std::vector<uint64_t> misses;  // [layer][expert]
  LayerHits total() const;
};

ReplayResult replay(const RouteLog& log, const ReplayOptions& options, EvictionPolicy& policy);
// The same number kept in every layer.
ReplayResult replay(const RouteLog& log, uint32_t kept, EvictionPolicy& policy);

// What the drives deliver for the misses of a model of this layout: matrices rounded to sectors, as
// far as their file goes (`file_bytes` by Extent::file).
uint64_t bytes_missed(const ReplayResult& result, const ExpertLayout& layout,
                      std::span<const uint64_t> file_bytes);

// As parse_capacity() for every layer, or a list with one count for each: "22,22,21".
Result<std::vector<uint32_t>> parse_capacities(std::string_view text, const RouteShape& shape);
// "25%" or "32": experts kept per layer. A share is rounded to the nearest count and raised to k,
// because a tier that reads at all has room for one token's calls. kInvalidArgument.
Result<uint32_t> parse_capacity(std::string_view text, const RouteShape& shape);

// Belady's rule: who is called again last leaves. The offline optimum under bypass; needs the
// future, so it exists only here. `log` must outlive it, and replay() must run on that log.
std::unique_ptr<EvictionPolicy> make_belady_policy(const RouteLog& log);

}  // namespace offstage
