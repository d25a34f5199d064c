#include "plan/route_fit.h"

#include <algorithm>
#include <cmath>

#include "cache/replay.h"
#include "cache/route_stats.h"

namespace offstage {
namespace {

constexpr uint64_t kTokensMin = 512;
constexpr double kLeastStep = 1.01;  // a smaller one is lost in the noise of what is drawn

// What the search makes small: fourth powers, since the worst figure decides.
double unlikeness(const RouteFigures& a, const RouteFigures& b) {
  double sum = 0;
  const auto add = [&sum](const auto& x, const auto& y) {
    for (size_t i = 0; i < x.size(); ++i)
      if (!std::isnan(x[i]) && !std::isnan(y[i])) sum += std::pow(x[i] - y[i], 4);
  };
  add(a.lru, b.lru);
  add(a.belady, b.belady);
  add(a.reuse, b.reuse);
  return sum;
}

struct Dial {
  double RouteHabits::*habit;
  double least, most;
};
constexpr Dial kDials[] = {
    {&RouteHabits::popularity, .02, 8},   {&RouteHabits::word, .02, 8},
    {&RouteHabits::topic, .02, 8},        {&RouteHabits::mood, .02, 8},
    {&RouteHabits::whim, .02, 8},         {&RouteHabits::mood_half_life, .25, 64},
    {&RouteHabits::word_exponent, .1, 3},
};

}  // namespace

RouteFigures route_figures(const RouteLog& log) {
  const RouteShape& shape = log.shape;
  RouteFigures figures;
  for (size_t i = 0; i < kLikenessShares.size(); ++i) {
    const auto share = static_cast<uint32_t>(std::lround(kLikenessShares[i] * shape.n_experts));
    const uint32_t kept = std::max(share, shape.n_used);
    figures.lru[i] =
        replay(log, kept, *make_lru_policy(shape.n_layers, shape.n_experts)).total().hit_rate();
    figures.belady[i] = replay(log, kept, *make_belady_policy(log)).total().hit_rate();
  }
  const RouteStats stats = route_stats(log);
  for (size_t i = 0; i < std::min(figures.reuse.size(), stats.reuse_at_lag.size()); ++i)
    figures.reuse[i] = stats.reuse_at_lag[i].value;
  return figures;
}

double points_apart(const RouteFigures& a, const RouteFigures& b) {
  double worst = 0;
  const auto look = [&worst](const auto& x, const auto& y) {
    for (size_t i = 0; i < x.size(); ++i)
      if (!std::isnan(x[i]) && !std::isnan(y[i]))
        worst = std::max(worst, 100 * std::abs(x[i] - y[i]));
  };
  look(a.lru, b.lru);
  look(a.belady, b.belady);
  look(a.reuse, b.reuse);
  return worst;
}

Result<RouteFit> fit_habits(const RouteLog& log, const FitOptions& options) {
  if (log.n_tokens() < kTokensMin)
    return make_error(ErrorCode::kInvalidArgument,
                      "a trace to fit habits to: expected at least {} tokens, found {}", kTokensMin,
                      log.n_tokens());
  const RouteFigures wanted = route_figures(log);
  const auto figures_of = [&](const RouteHabits& habits, uint64_t seed) {
    return route_figures(RouteGenerator(log.shape, habits, seed).draw(options.tokens));
  };
  RouteFit fit;
  const size_t conversations = std::max<size_t>(1, log.starts.size());
  fit.habits.conversation_tokens = std::max<uint64_t>(1, log.n_tokens() / conversations);
  double best = unlikeness(wanted, figures_of(fit.habits, options.seed));
  double factor = 2;
  for (uint32_t round = 0; round < options.rounds_max; ++round) {
    bool helped = false;
    for (const Dial& dial : kDials)
      for (const double step : {factor, 1 / factor}) {
        RouteHabits tried = fit.habits;
        tried.*dial.habit = std::clamp(tried.*dial.habit * step, dial.least, dial.most);
        const double found = unlikeness(wanted, figures_of(tried, options.seed));
        if (found >= best) continue;
        best = found;
        fit.habits = tried;
        helped = true;
        break;
      }
    if (!helped) factor = std::sqrt(factor);
    if (factor < kLeastStep) break;
  }
  fit.recorded = wanted;
  fit.drawn = figures_of(fit.habits, options.seed + 1);
  fit.worst_points = points_apart(fit.recorded, fit.drawn);
  return fit;
}

}  // namespace offstage
