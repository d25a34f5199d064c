#include "plan/forecast_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "io/index_file.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kFileBytesMax = 16ull << 20;  // 256 lines of under a KiB, with much room

Json number_or_null(std::optional<double> value) { return value ? Json(*value) : Json(); }

Json figures_json(const RunFigures& figures) {
  return {{"prefill_tok_s", figures.prefill_tok_s},
          {"decode_tok_s", figures.decode_tok_s},
          {"hit_rate", figures.ram_hit_rate},
          {"token_ms",
           {{"p50", ms(figures.p50_ns)},
            {"p95", ms(figures.p95_ns)},
            {"p99", ms(figures.p99_ns)},
            {"max", ms(figures.max_ns)}}}};
}

Json error_json(const Hindsight& hindsight) {
  const RunFigures &forecast = hindsight.forecast, &measured = hindsight.measured;
  Json json = {{"prefill_tok_s",
                number_or_null(relative_error(forecast.prefill_tok_s, measured.prefill_tok_s))},
               {"decode_tok_s",
                number_or_null(relative_error(forecast.decode_tok_s, measured.decode_tok_s))},
               {"hit_rate", nullptr},
               {"p99", number_or_null(relative_error(ms(forecast.p99_ns), ms(measured.p99_ns)))}};
  if (hindsight.tokens != 0) json["hit_rate"] = forecast.ram_hit_rate - measured.ram_hit_rate;
  return json;
}

// The values of one line by key; the first that isn't as it should be is remembered.
class LineReader {
 public:
  explicit LineReader(const Json& json) : json_(json) {}

  template <typename T>
  void number(const char* key, T& out) {
    const Json* value = find(key);
    if (value == nullptr) return;
    const double found = value->is_number() ? value->get<double>() : std::nan("");
    if (found >= 0 && found <= std::min(1e18, static_cast<double>(std::numeric_limits<T>::max())))
      out = static_cast<T>(found);
    else
      fail(key, "a number from 0");
  }
  void time(const char* key, int64_t& ns) {
    double found = 0;
    number(key, found);
    ns = found < 1e9 ? std::llround(found * 1e6) : 0;
  }
  void text(const char* key, std::string& out) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (value->is_string())
      out = value->get<std::string>();
    else
      fail(key, "text");
  }
  Json object(const char* key) {
    const Json* value = find(key);
    if (value != nullptr && !value->is_object()) fail(key, "an object");
    return value != nullptr && value->is_object() ? *value : Json::object();
  }
  const std::string& problem() const { return problem_; }
  void take(const LineReader& inner) {
    if (problem_.empty()) problem_ = inner.problem_;
  }

 private:
  const Json* find(const char* key) {
    const auto found = json_.find(key);
    if (found != json_.end()) return &*found;
    fail(key, "a value");
    return nullptr;
  }
  void fail(const char* key, std::string_view expected) {
    if (problem_.empty()) problem_ = fmt::format("key '{}': expected {}", key, expected);
  }
  const Json& json_;
  std::string problem_;
};

void read_figures(LineReader& line, const char* key, RunFigures& figures) {
  const Json object = line.object(key);
  LineReader reader(object);
  reader.number("prefill_tok_s", figures.prefill_tok_s);
  reader.number("decode_tok_s", figures.decode_tok_s);
  reader.number("hit_rate", figures.ram_hit_rate);
  const Json times = reader.object("token_ms");
  LineReader token(times);
  token.time("p50", figures.p50_ns);
  token.time("p95", figures.p95_ns);
  token.time("p99", figures.p99_ns);
  token.time("max", figures.max_ns);
  reader.take(token);
  line.take(reader);
}

Result<std::vector<std::string>> read_lines(const std::string& path) {
  std::vector<std::string> lines;
  std::error_code failed;
  const uintmax_t bytes = std::filesystem::file_size(path, failed);
  if (failed == std::errc::no_such_file_or_directory) return lines;
  if (!failed && bytes > kFileBytesMax)
    return make_error(ErrorCode::kCorrupt, "{}: expected at most {} bytes, found {}", path,
                      kFileBytesMax, bytes);
  std::ifstream file(path, std::ios::binary);
  if (!file) return tl::unexpected(errno_error(path, "can't be opened"));
  for (std::string line; std::getline(file, line);)
    if (!line.empty()) lines.push_back(std::move(line));
  if (file.bad()) return tl::unexpected(errno_error(path, "can't be read"));
  return lines;
}

}  // namespace

std::optional<double> relative_error(double forecast, double measured) {
  if (measured <= 0) return std::nullopt;
  return forecast / measured - 1;
}

std::string forecast_text(const KeptForecast& kept) {
  Json json = {{"schema", kForecastSchema},
               {"date", kept.date},
               {"command", kept.command},
               {"machine", kept.machine},
               {"profile_date", kept.profile_date},
               {"model", kept.model},
               {"ram_bytes", kept.ram_bytes},
               {"threads", kept.threads},
               {"drives", kept.drives},
               {"pace_bytes_per_s", kept.pace_bytes_per_s},
               {"context", kept.context},
               {"cache_policy", kept.cache_policy},
               {"guess_accuracy", kept.guess_accuracy},
               {"routing", kept.routing},
               {"prompt_tokens", kept.hindsight.prompt_tokens},
               {"tokens", kept.hindsight.tokens},
               {"forecast", figures_json(kept.hindsight.forecast)},
               {"measured", figures_json(kept.hindsight.measured)},
               {"error", error_json(kept.hindsight)},
               {"wait_ms", Json::object()}};
  for (size_t c = 0; c < kCauseCount; ++c)
    json["wait_ms"][std::string(cause_name(static_cast<Cause>(c)))] =
        ms(kept.hindsight.token.ns[c]);
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<KeptForecast> parse_forecast(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return make_error(ErrorCode::kCorrupt, "expected a JSON object");
  LineReader line(json);
  std::string schema;
  line.text("schema", schema);
  if (line.problem().empty() && schema != kForecastSchema)
    return make_error(ErrorCode::kUnsupported, "expected '{}', found '{}'", kForecastSchema,
                      schema.substr(0, 60));
  KeptForecast kept;
  line.text("date", kept.date);
  line.text("command", kept.command);
  line.text("machine", kept.machine);
  line.text("profile_date", kept.profile_date);
  line.text("model", kept.model);
  line.number("ram_bytes", kept.ram_bytes);
  line.number("threads", kept.threads);
  line.number("drives", kept.drives);
  line.number("pace_bytes_per_s", kept.pace_bytes_per_s);
  line.number("context", kept.context);
  line.text("cache_policy", kept.cache_policy);
  line.number("guess_accuracy", kept.guess_accuracy);
  line.text("routing", kept.routing);
  line.number("prompt_tokens", kept.hindsight.prompt_tokens);
  line.number("tokens", kept.hindsight.tokens);
  read_figures(line, "forecast", kept.hindsight.forecast);
  read_figures(line, "measured", kept.hindsight.measured);
  const Json causes = line.object("wait_ms");
  LineReader token(causes);
  for (size_t c = 0; c < kCauseCount; ++c) {
    const std::string name(cause_name(static_cast<Cause>(c)));
    if (causes.contains(name)) token.time(name.c_str(), kept.hindsight.token.ns[c]);
  }
  line.take(token);
  if (!line.problem().empty()) return make_error(ErrorCode::kCorrupt, "{}", line.problem());
  return kept;
}

std::optional<std::string> forecasts_path() {
  const std::optional<std::string> folder = cache_folder();
  return folder ? std::optional(*folder + "/forecasts.jsonl") : std::nullopt;
}

Result<KeptForecasts> read_forecasts(const std::string& path) {
  OFFSTAGE_TRY(const std::vector<std::string> lines, read_lines(path));
  KeptForecasts kept;
  for (const std::string& line : lines) {
    auto forecast = parse_forecast(line);
    if (forecast)
      kept.forecasts.push_back(std::move(*forecast));
    else
      ++kept.unread;
  }
  return kept;
}

Status keep_forecast(const std::string& path, const KeptForecast& kept) {
  OFFSTAGE_TRY(std::vector<std::string> lines, read_lines(path));
  lines.push_back(forecast_text(kept));
  if (lines.size() > kForecastsKept)
    lines.erase(lines.begin(), lines.end() - static_cast<ptrdiff_t>(kForecastsKept));
  std::string text;
  for (const std::string& line : lines) text += line + '\n';
  return replace_file(path, text);
}

}  // namespace offstage
