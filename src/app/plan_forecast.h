// The part of `offstage plan` that is about speed: which machine, which routing, which cells.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "plan/cells.h"
#include "plan/route_fit.h"
#include "plan/wish.h"

namespace offstage {

struct ForecastFlags {
  std::string profile, routing, fit_routing, pace, want, p99, prices;
  uint32_t add_drives = 0, tokens = 256, prompt = 512, warm = 64;
  uint64_t seed = 1;
  std::vector<double> guess_accuracy = {0};
  bool cold = false;
  bool wants_curves = false;  // the command's: the routing is kept, and a wish has its cells too

  void add_to(CLI::App& command);
  bool has_wish() const { return !want.empty() || !p99.empty(); }
};

// What a machine costs, in whatever currency.
struct Prices {
  double ram_per_gib = 0, drive = 0;
  std::string currency;
};

struct ForecastReport {
  std::string machine;  // the profile's; empty: none
  std::string routing;  // where the calls come from; empty: nothing was forecast
  RouteLog log;         // they themselves, if curves are wanted
  std::vector<Cell> cells;
  std::vector<Answer> answers;  // to a wish
  Wish wish;
  std::optional<Prices> prices;
};

// `ram_bytes`: as asked for. Without a profile the cells say what fits, announced.
Result<ForecastReport> make_forecast(const ForecastFlags& flags, const PlannedModel& model,
                                     const RuntimeOptions& runtime,
                                     std::span<const uint64_t> ram_bytes, Notices& notices);

void print_forecast(const ForecastReport& report, const PlannedModel& model);
// Adds `machine`, `routing`, `cells` and, of a wish, `answers`.
void add_forecast_json(const ForecastReport& report, nlohmann::ordered_json& json);

// --fit-routing without a model.
Result<RouteFit> fit_routing(const ForecastFlags& flags);
void print_fit(const RouteFit& fit);
nlohmann::ordered_json fit_json(const RouteFit& fit);

}  // namespace offstage
