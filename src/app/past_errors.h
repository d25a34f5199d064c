// How far off the forecasts of past runs on this machine were, as `plan` shows it.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "base/notices.h"
#include "plan/forecast_history.h"

namespace offstage {

// Oldest first; what can't be read is announced.
std::vector<KeptForecast> past_forecasts(Notices& notices);

// A table of the last ones, and the median over all; nothing without any.
void print_past_errors(std::span<const KeptForecast> past);
// `past_errors`: the lines as they are kept.
nlohmann::ordered_json past_errors_json(std::span<const KeptForecast> past);

}  // namespace offstage
