// How local a routing trace is: the figures that a cache lives on.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/route_log.h"

namespace offstage {

struct RouteStats {
  struct Point {
    uint32_t n = 0;  // lag, or tokens in a row
    double value = 0;
  };
  // Share of calls whose expert was called as well `n` tokens later in the same sequence; calls
  // without such a token don't count. NaN where there are none.
  std::vector<Point> reuse_at_lag;  // 1, 2, 4 … 64
  // Mean distinct experts of a layer over n consecutive tokens of a sequence. NaN as above.
  std::vector<Point> distinct_over;  // 1, 2, 4 … 64
  double first_touch_share = 0;      // calls of an expert that its layer never called before
};

RouteStats route_stats(const RouteLog& log);

}  // namespace offstage
