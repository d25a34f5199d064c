// How far off forecasts of past runs were, kept for whoever asks whether to believe one.
//
// `forecasts.jsonl` in the user's cache folder: a JSON object per run, oldest first, the last
// kForecastsKept of them:
//
//   {"schema": "offstage.forecast/1", "date": "2026-11-22T14:03:11Z", "command": "run",
//    "machine": "…", "profile_date": "…", "model": "…", "ram_bytes": 4294967296, "threads": 2,
//    "drives": 1, "pace_bytes_per_s": 0, "context": 1024, "cache_policy": "auto",
//    "guess_accuracy": 0.93, "routing": "router", "prompt_tokens": 5, "tokens": 128,
//    "forecast": {"prefill_tok_s": …, "decode_tok_s": …, "hit_rate": …,
//                 "token_ms": {"p50": …, "p95": …, "p99": …, "max": …}},
//    "measured": {likewise},
//    "error": {"prefill_tok_s": …, "decode_tok_s": …, "hit_rate": …, "p99": …},
//    "wait_ms": {the forecast's mean token, by cause}}
//
// Errors are forecast ÷ measured − 1, of the hit rate forecast − measured; null where nothing was
// measured. Written under a temporary name, then renamed: of two runs that end together one may be
// forgotten. Lines of another version stay and aren't read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "plan/past_run.h"

namespace offstage {

inline constexpr std::string_view kForecastSchema = "offstage.forecast/1";
inline constexpr size_t kForecastsKept = 256;

struct KeptForecast {
  std::string date, command, machine, profile_date, model, cache_policy, routing;
  uint64_t ram_bytes = 0, pace_bytes_per_s = 0;
  uint32_t threads = 0, drives = 0, context = 0;
  double guess_accuracy = 0;
  Hindsight hindsight;
};

// Forecast ÷ measured − 1; nothing where nothing was measured.
std::optional<double> relative_error(double forecast, double measured);

// One line, without its end.
std::string forecast_text(const KeptForecast& kept);
// kCorrupt with the key; kUnsupported: another version.
Result<KeptForecast> parse_forecast(std::string_view text);

// None without a home.
std::optional<std::string> forecasts_path();
// Those that can be read, oldest first; `unread` counts the other lines. No file: none. Errors:
// kPermission, kIo, kCorrupt (larger than it can have become).
struct KeptForecasts {
  std::vector<KeptForecast> forecasts;
  size_t unread = 0;
};
Result<KeptForecasts> read_forecasts(const std::string& path);
// Adds a line to the file, which is made if there is none. Errors: as above.
Status keep_forecast(const std::string& path, const KeptForecast& kept);

}  // namespace offstage
