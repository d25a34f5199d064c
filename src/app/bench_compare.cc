#include "app/bench_compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "app/bench_report.h"
#include "app/terminal.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

// Student's t: 97.5 % quantile by degrees of freedom, 1 to 30; beyond, the normal distribution's.
constexpr std::array kStudentT = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306,
                                  2.262,  2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
                                  2.110,  2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
                                  2.060,  2.056, 2.052, 2.048, 2.045, 2.042};
constexpr double kNormal = 1.960;

double student_t(size_t degrees) {
  return degrees <= kStudentT.size() ? kStudentT[degrees - 1] : kNormal;
}

bool is_vram(const Json& vram) {
  return vram.is_object() && vram.contains("budget_bytes") &&
         vram["budget_bytes"].is_number_unsigned() && vram.contains("state") &&
         vram["state"].is_string();
}

// Results from before --vram lack it.
bool is_row(const Json& row) {
  if (!row.is_object()) return false;
  for (const char* name : {"schema", "test", "model_type", "cache", "ram"})
    if (!row.contains(name) || !row[name].is_string()) return false;
  if (row["schema"] != kBenchSchema || !row.contains("samples_ts") ||
      !row["samples_ts"].is_array() || !row.contains("itl_ms") || !row["itl_ms"].is_object())
    return false;
  if (!row.contains("n_threads") || !row["n_threads"].is_number()) return false;
  if (row.contains("vram") && !is_vram(row["vram"])) return false;
  const auto is_speed = [](const Json& v) { return v.is_number() && v.get<double>() > 0; };
  return std::all_of(row["samples_ts"].begin(), row["samples_ts"].end(), is_speed);
}

Result<std::vector<Json>> read_rows(const std::string& path) {
  OFFSTAGE_TRY(const std::string text, read_text_file(path));
  std::vector<Json> rows;
  const Json whole = Json::parse(text, nullptr, false);
  if (whole.is_array()) {
    rows.assign(whole.begin(), whole.end());
  } else if (whole.is_object() && whole.contains("results") && whole["results"].is_array()) {
    rows.assign(whole["results"].begin(), whole["results"].end());
  } else {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
      if (!line.empty()) rows.push_back(Json::parse(line, nullptr, false));
  }
  for (size_t i = 0; i < rows.size(); ++i)
    if (!is_row(rows[i]))
      return make_error(ErrorCode::kCorrupt, "{}: result {} isn't of {}", path, i + 1,
                        kBenchSchema);
  if (rows.empty()) return make_error(ErrorCode::kCorrupt, "{}: no result", path);
  return rows;
}

std::string key_of(const Json& row) {
  return fmt::format("{} {} {} {} {} {}", row["test"].dump(), row["model_type"].dump(),
                     row["ram"].dump(),
                     row.contains("vram") ? row["vram"]["budget_bytes"].dump() : "0",
                     row["n_threads"].dump(), row["cache"].dump());
}

struct Difference {
  size_t pairs = 0;
  double ratio = 1, low = 1, high = 1;  // b ÷ a, and its 95 % interval
  bool known = false;                   // two pairs at least
};

Difference paired_difference(const Json& a, const Json& b) {
  Difference difference;
  difference.pairs = std::min(a.size(), b.size());
  std::vector<double> logs;
  for (size_t i = 0; i < difference.pairs; ++i)
    logs.push_back(std::log(b[i].get<double>() / a[i].get<double>()));
  const double mean = mean_of(logs);
  difference.ratio = std::exp(mean);
  difference.known = logs.size() >= 2;
  if (!difference.known) return difference;
  const double half =
      student_t(logs.size() - 1) * stddev_of(logs) / std::sqrt(static_cast<double>(logs.size()));
  difference.low = std::exp(mean - half);
  difference.high = std::exp(mean + half);
  return difference;
}

std::string verdict(const Difference& d) {
  if (!d.known) return "one pair: no verdict, repeat with -r";
  const double percent = 100 * (d.ratio - 1);
  if (d.low > 1) return fmt::format("b is faster by {:.1f} %", percent);
  if (d.high < 1) return fmt::format("b is slower by {:.1f} %", -percent);
  return fmt::format("no difference beyond the noise of -{:.1f} … +{:.1f} %", 100 * (1 - d.low),
                     100 * (d.high - 1));
}

double itl(const Json& row, const char* name) {
  return row["itl_ms"].contains(name) && row["itl_ms"][name].is_number()
             ? row["itl_ms"][name].get<double>()
             : 0;
}

}  // namespace

Result<std::string> compare_benches(const std::string& path_a, const std::string& path_b) {
  OFFSTAGE_TRY(const std::vector<Json> a, read_rows(path_a));
  OFFSTAGE_TRY(const std::vector<Json> b, read_rows(path_b));
  std::string text = fmt::format(
      "a: {}\nb: {}\n\n| test | ram | vram | threads | a t/s | b t/s | b ÷ a, 95 % | ITL p50 / "
      "p99 ms a | b | verdict |\n|---|---:|---:|---:|---:|---:|---|---|---|---|\n",
      path_a, path_b);
  size_t n_compared = 0;
  for (const Json& row : a) {
    const auto same = [&](const Json& other) { return key_of(other) == key_of(row); };
    const auto other = std::find_if(b.begin(), b.end(), same);
    if (other == b.end()) continue;
    ++n_compared;
    const Difference d = paired_difference(row["samples_ts"], (*other)["samples_ts"]);
    const std::vector<double> speeds_a = row["samples_ts"], speeds_b = (*other)["samples_ts"];
    text += fmt::format(
        "| {} | {} | {} | {} | {:.2f} | {:.2f} | {:.3f} [{:.3f}, {:.3f}], {} pairs | {:.1f} / "
        "{:.1f} | {:.1f} / {:.1f} | {} |\n",
        row["test"].get<std::string>(), row["ram"].get<std::string>(), vram_text(row),
        row["n_threads"].dump(), mean_of(speeds_a), mean_of(speeds_b), d.ratio, d.low, d.high,
        d.pairs, itl(row, "p50"), itl(row, "p99"), itl(*other, "p50"), itl(*other, "p99"),
        verdict(d));
  }
  if (n_compared == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "{} and {} have no result of the same test, model, memory, threads and cache",
                      path_a, path_b);
  return text +
         "\nRepetition i of a is held against repetition i of b. Drift of the machine between the "
         "two runs isn't\nnoise that repetitions show: where it matters, run a and b in turns.\n";
}

}  // namespace offstage
