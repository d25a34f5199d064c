// How like a recording drawn routing is, and the habits that make it most so.
//
// Likeness is measured in the figures a cache lives on: hit rates of LRU and of Belady's optimum at
// 10, 25, 50 and 75 % of the experts, and reuse after 1, 2, 4 … 64 tokens, in points of a per cent.
// A generator whose worst figure is further off than kPointsAllowed isn't used for a forecast.
#pragma once

#include <array>
#include <cstdint>

#include "base/result.h"
#include "cache/route_log.h"
#include "plan/route_generator.h"

namespace offstage {

inline constexpr double kPointsAllowed = 1.5;
inline constexpr std::array<double, 4> kLikenessShares = {.10, .25, .50, .75};

struct RouteFigures {
  std::array<double, kLikenessShares.size()> lru = {}, belady = {};  // hit rates, 0 to 1
  std::array<double, 7> reuse = {};                                  // at lag 1, 2, 4 … 64
};
RouteFigures route_figures(const RouteLog& log);
// The largest difference of any figure, in points. Reuse that a short log can't tell (NaN) is left
// out.
double points_apart(const RouteFigures& a, const RouteFigures& b);

struct RouteFit {
  RouteHabits habits;
  RouteFigures recorded, drawn;  // the latter with another seed than the search's
  double worst_points = 0;       // between the two
  bool is_usable() const { return worst_points <= kPointsAllowed; }
};

struct FitOptions {
  uint64_t tokens = 8192;    // drawn each time
  uint32_t rounds_max = 40;  // over all habits, each tried up and down
  uint64_t seed = 1;
};
// Pattern search: every habit in turn a step up or down, the step halved when none helps.
// kInvalidArgument for a log with too few tokens to say anything (under 512).
Result<RouteFit> fit_habits(const RouteLog& log, const FitOptions& options);

}  // namespace offstage
