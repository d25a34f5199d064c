#include "app/past_errors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/units.h"

namespace offstage {
namespace {

constexpr size_t kShown = 12;

// Of prompts where no token was decoded.
std::optional<double> speed_error(const Hindsight& hindsight) {
  const RunFigures &forecast = hindsight.forecast, &measured = hindsight.measured;
  return hindsight.tokens != 0 ? relative_error(forecast.decode_tok_s, measured.decode_tok_s)
                               : relative_error(forecast.prefill_tok_s, measured.prefill_tok_s);
}

std::string percent(std::optional<double> error) {
  return error ? fmt::format("{:+.1f} %", 100 * *error) : "-";
}

void print_row(const KeptForecast& kept) {
  const Hindsight& h = kept.hindsight;
  const bool decodes = h.tokens != 0;
  const auto speed = [&](const RunFigures& figures) {
    return decodes ? figures.decode_tok_s : figures.prefill_tok_s;
  };
  const std::string hits =
      decodes ? fmt::format("{:+.1f}", 100 * (h.forecast.ram_hit_rate - h.measured.ram_hit_rate))
              : "-";
  const auto p99 =
      decodes ? relative_error(ms(h.forecast.p99_ns), ms(h.measured.p99_ns)) : std::nullopt;
  fmt::print(
      "  {:<20} {:<12} {:<24} {:>9} {:>6} {:>10} {:>3} {:>6} {:>9.2f} {:>9.2f} {:>8} {:>6} "
      "{:>8}\n",
      kept.date, kept.command, kept.model.substr(0, 24), format_bytes(kept.ram_bytes), kept.drives,
      kept.pace_bytes_per_s == 0 ? "-" : format_bytes(kept.pace_bytes_per_s) + "/s", kept.threads,
      decodes ? h.tokens : h.prompt_tokens, speed(h.forecast), speed(h.measured),
      percent(speed_error(h)), hits, percent(p99));
}

}  // namespace

std::vector<KeptForecast> past_forecasts(Notices& notices) {
  const std::optional<std::string> path = forecasts_path();
  if (!path) return {};
  Result<KeptForecasts> kept = read_forecasts(*path);
  if (!kept) {
    notices.add("past_errors", kept.error().message);
    return {};
  }
  if (kept->unread != 0)
    notices.add("past_errors",
                fmt::format("{}: {} lines are of another version or damaged, and aren't shown",
                            *path, kept->unread));
  return std::move(kept->forecasts);
}

void print_past_errors(std::span<const KeptForecast> past) {
  if (past.empty()) return;
  std::vector<double> errors;
  for (const KeptForecast& kept : past)
    if (const auto error = speed_error(kept.hindsight)) errors.push_back(std::abs(*error));
  fmt::print(
      "\n  forecasts of past runs on this machine, with the runs' own routing\n"
      "  {:<20} {:<12} {:<24} {:>9} {:>6} {:>10} {:>3} {:>6} {:>9} {:>9} {:>8} {:>6} {:>8}\n",
      "when", "command", "model", "RAM", "drives", "pace", "thr", "tokens", "forecast", "measured",
      "error", "hits", "p99");
  for (const KeptForecast& kept : past.last(std::min(past.size(), kShown))) print_row(kept);
  if (errors.empty()) return;
  const auto middle = errors.begin() + static_cast<ptrdiff_t>(errors.size() / 2);
  std::nth_element(errors.begin(), middle, errors.end());
  fmt::print("  median error of {} runs: {:.1f} % of tok/s\n", errors.size(), 100 * *middle);
}

nlohmann::ordered_json past_errors_json(std::span<const KeptForecast> past) {
  auto json = nlohmann::ordered_json::array();
  for (const KeptForecast& kept : past)
    json.push_back(nlohmann::ordered_json::parse(forecast_text(kept)));
  return json;
}

}  // namespace offstage
