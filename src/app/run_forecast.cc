#include "app/run_forecast.h"

#include <fmt/format.h>

#include <cmath>
#include <ctime>
#include <filesystem>

#include "app/terminal.h"
#include "io/drive_profile.h"

namespace offstage {
namespace {

constexpr int64_t kCpuNsMax = 1'000'000'000;

int64_t thread_cpu_ns() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// Of the experts that the gate named, the share that was called, by distance.
GuessAccuracy guess_accuracy(const Runtime& runtime) {
  const RuntimeOptions& options = runtime.options();
  if (options.prefetch == Prefetch::kOff) return 0;
  if (options.oracle_prefetch) return *options.oracle_prefetch;
  std::vector<double> by_distance;
  for (uint32_t ahead = 1; ahead <= Lookahead::kHorizonMax; ++ahead) {
    uint64_t guesses = 0, hits = 0;
    for (const LayerForesight& layer : runtime.lookahead().layers(ahead)) {
      guesses += layer.guesses;
      hits += layer.guessed_hits;
    }
    if (guesses == 0) break;
    by_distance.push_back(static_cast<double>(hits) / static_cast<double>(guesses));
  }
  return by_distance.empty() ? GuessAccuracy() : GuessAccuracy(by_distance);
}

PastRun past_of(Runtime& runtime, const ExpertUsage& usage,
                const std::vector<PastGeneration>& generations) {
  PastRun run;
  run.file = runtime.shared_file();
  run.options = runtime.options();
  run.plan = runtime.plan();
  run.drive = runtime.drive();
  run.drive_names = runtime.drive_names();
  run.drive_of_file = runtime.drives().drive_of_file;
  run.threads = runtime.threads();
  run.guess_accuracy = guess_accuracy(runtime);
  run.usage = usage;
  run.routes = runtime.first_routes()->log();
  run.generations = generations;
  return run;
}

KeptForecast describe(const PastRun& run, const HardwareProfile& profile,
                      const std::string& command) {
  KeptForecast kept;
  kept.date = utc_date();
  kept.command = command;
  kept.machine = profile.machine;
  kept.profile_date = profile.date;
  kept.model = run.file->spec.name;
  kept.cache_policy = run.options.cache_policy;
  kept.routing = run.options.replay_routing.empty() ? "router" : run.options.replay_routing;
  kept.ram_bytes = run.plan.budget_bytes;
  kept.pace_bytes_per_s = run.options.pace_bytes_per_s;
  kept.threads = run.threads;
  kept.drives = static_cast<uint32_t>(run.drive_names.size());
  kept.context = run.options.context;
  kept.guess_accuracy = run.guess_accuracy.at(1);
  return kept;
}

}  // namespace

RunForecast::RunForecast(bool is_wanted) : is_wanted_(is_wanted) {
  const std::optional<std::string> path = kept_profile_path();
  std::error_code ignored;
  if (!is_wanted || !path || !std::filesystem::exists(*path, ignored)) return;
  const Result<std::string> text = read_text_file(*path);
  Result<HardwareProfile> profile =
      text ? parse_profile(*text, *path) : tl::unexpected(text.error());
  if (profile)
    profile_ = std::move(*profile);
  else
    unreadable_ = profile.error();
}

void RunForecast::begin(Runtime& runtime) {
  generations_.clear();
  if (!is_on()) return;
  runtime.first_routes()->restart();
  usage_ = runtime.usage();
}

void RunForecast::add(const GenerationRecord& record, uint32_t position, bool counts) {
  if (!is_on()) return;
  PastGeneration& generation = generations_.emplace_back();
  generation.position = position;
  generation.prompt_tokens = record.prompt_tokens;
  generation.prefill_ns = record.prefill.wall_ns;
  generation.counts = counts;
  for (const TokenRecord& token : record.tokens)
    generation.tokens.push_back({token.wall_ns, token.ram_hits, token.drive_reads});
}

std::optional<KeptForecast> RunForecast::make(Runtime& runtime, const std::string& command,
                                              Notices& notices) {
  if (unreadable_) notices.add("forecast", unreadable_->message + "; no run is forecast");
  if (!is_on() || generations_.empty()) return std::nullopt;
  if (runtime.device() != nullptr) {
    notices.add("forecast", "none of this run: what a GPU computes isn't forecast");
    return std::nullopt;
  }
  PastRun run = past_of(runtime, usage_, generations_);
  run.samples = !command.starts_with("bench");
  KeptForecast kept = describe(run, *profile_, command);
  const int64_t until_ns = thread_cpu_ns() + kCpuNsMax;
  const auto go_on = [until_ns] { return thread_cpu_ns() < until_ns; };
  const Result<Hindsight> hindsight = look_back(run, *profile_, go_on, notices);
  if (!hindsight) {
    notices.add("forecast", "none of this run: " + hindsight.error().message);
    return std::nullopt;
  }
  kept.hindsight = *hindsight;
  const std::optional<std::string> path = forecasts_path();
  if (!path) return kept;
  if (const Status status = keep_forecast(*path, kept); !status)
    notices.add("forecast", status.error().message + "; the error of this one isn't kept");
  return kept;
}

std::string RunForecast::line(const std::optional<KeptForecast>& kept) const {
  if (!kept) {
    if (is_on() || unreadable_ || !is_wanted_) return "";
    return "forecast none: `offstage probe` measures this machine, then every run is held against "
           "its forecast\n";
  }
  const Hindsight& hindsight = kept->hindsight;
  const RunFigures &forecast = hindsight.forecast, &measured = hindsight.measured;
  if (hindsight.tokens == 0) {
    const auto error = relative_error(forecast.prefill_tok_s, measured.prefill_tok_s);
    return fmt::format("forecast {:.2f} tok/s of prompt, measured {:.2f}: {}\n",
                       forecast.prefill_tok_s, measured.prefill_tok_s,
                       error_text(error.value_or(0)));
  }
  size_t n_tokens = 0;
  for (const PastGeneration& generation : generations_)
    if (generation.counts) n_tokens += generation.tokens.size();
  const double p99_ms = static_cast<double>(forecast.p99_ns) / 1e6;
  const auto speed = relative_error(forecast.decode_tok_s, measured.decode_tok_s);
  const auto p99 = relative_error(p99_ms, static_cast<double>(measured.p99_ns) / 1e6);
  return fmt::format(
      "forecast {:.2f} tok/s, measured {:.2f} over {}{} tokens: {}; hits {:.1f} % ({:+.1f} "
      "points); p99 {:.1f} ms ({})\n",
      forecast.decode_tok_s, measured.decode_tok_s, hindsight.tokens < n_tokens ? "the first " : "",
      hindsight.tokens, error_text(speed.value_or(0)), 100 * forecast.ram_hit_rate,
      100 * (forecast.ram_hit_rate - measured.ram_hit_rate), p99_ms, error_text(p99.value_or(0)));
}

std::string error_text(double error) {
  return fmt::format("{:.1f} % too {}", std::abs(100 * error), error < 0 ? "low" : "high");
}

nlohmann::ordered_json forecast_json(const KeptForecast& kept) {
  // The line that is kept is the format; here it stands beside the settings of its run.
  const auto line = nlohmann::ordered_json::parse(forecast_text(kept));
  nlohmann::ordered_json json;
  for (const char* key :
       {"machine", "profile_date", "guess_accuracy", "routing", "prompt_tokens", "tokens"})
    json[key] = line[key];
  json.update(line["forecast"]);
  for (const char* key : {"wait_ms", "measured", "error"}) json[key] = line[key];
  return json;
}

}  // namespace offstage
