// What caches of other sizes would have hit on the same calls: the curve that says whether more RAM
// would help.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cache/route_log.h"

namespace offstage {

struct SizeCurve {
  struct Point {
    uint32_t kept = 0;   // experts of every layer
    double policy = 0;   // share of the calls that hit
    double optimum = 0;  // likewise, of Belady's rule: no policy hits more
  };
  std::vector<Point> points;  // by size, from the experts of one token's call to all
  double at_run_size = 0;     // the policy with the run's own numbers kept
  double optimum_at_run_size = 0;
  uint64_t tokens = 0, skipped = 0;  // that were replayed; of them, that only filled the cache
};

inline constexpr uint32_t kSizeCurvePoints = 9;

// The first quarter of the log fills the cache and doesn't count: a run begins with its cache warm
// or preloaded, a replay with nothing. An empty curve for a log without tokens. kInvalidArgument
// for a policy that isn't one, or `kept_per_layer` of another number of layers.
Result<SizeCurve> size_curve(const RouteLog& log, std::string_view policy,
                             std::span<const uint32_t> kept_per_layer);

}  // namespace offstage
