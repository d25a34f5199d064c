#include "app/plan_forecast.h"

#include <fmt/ranges.h>

#include <filesystem>

#include "app/terminal.h"
#include "base/units.h"
#include "cache/route_npz.h"
#include "plan/routing_source.h"

namespace offstage {
namespace {

constexpr uint32_t kDrivesWished = 3;  // looked at beside the machine's own, for a wish

Result<HardwareProfile> read_profile_of(const std::string& path) {
  OFFSTAGE_TRY(const std::string text, read_text_file(path));
  return parse_profile(text, path);
}

// The one named, else the one that `offstage probe` kept; none: nothing is known of a machine.
Result<std::optional<HardwareProfile>> machine_of(const ForecastFlags& flags, Notices& notices) {
  if (!flags.profile.empty()) {
    OFFSTAGE_TRY(HardwareProfile profile, read_profile_of(flags.profile));
    return std::optional(std::move(profile));
  }
  const std::optional<std::string> kept = kept_profile_path();
  std::error_code ignored;
  if (kept && std::filesystem::exists(*kept, ignored)) {
    OFFSTAGE_TRY(HardwareProfile profile, read_profile_of(*kept));
    return std::optional(std::move(profile));
  }
  notices.add("profile",
              "no machine is known, so no speed is forecast: `offstage probe` measures this one, "
              "--profile names another's file");
  return std::optional<HardwareProfile>();
}

Result<std::vector<HardwareProfile>> machines_of(const ForecastFlags& flags,
                                                 const HardwareProfile& profile) {
  HardwareProfile first = profile;
  if (!flags.pace.empty()) {
    OFFSTAGE_TRY(const uint64_t pace, parse_bytes(flags.pace));
    if (pace == 0)
      return make_error(ErrorCode::kInvalidArgument, "--pace: expected at least 1 byte per second");
    first = with_drives_paced(profile, pace);
  }
  const uint32_t added_max =
      flags.has_wish() ? std::max(flags.add_drives, kDrivesWished) : flags.add_drives;
  std::vector<HardwareProfile> machines;
  for (uint32_t added = 0; added <= added_max; ++added)
    machines.push_back(with_drives_added(first, added));
  return machines;
}

// A recording of this very model; habits fitted to another one's, if they reproduce it; or those
// that are known.
Result<std::unique_ptr<RoutingSource>> routing_of(const ForecastFlags& flags,
                                                  const RouteShape& shape, Notices& notices) {
  if (!flags.routing.empty()) {
    OFFSTAGE_TRY(RouteLog log, read_routes(flags.routing, shape.n_experts));
    return recorded_routes(std::move(log), shape, flags.routing);
  }
  if (flags.fit_routing.empty()) {
    notices.add("routing",
                "drawn with gpt-oss-20b's habits, which may not be this model's; --routing takes a "
                "trace of its own");
    return generated_routes(shape, RouteHabits(), flags.seed);
  }
  OFFSTAGE_TRY(const RouteFit fit, fit_routing(flags));
  if (!fit.is_usable())
    return make_error(ErrorCode::kUnsupported,
                      "{}: routing drawn with its habits is {:.2f} points off, at most {} are "
                      "allowed",
                      flags.fit_routing, fit.worst_points, kPointsAllowed);
  return generated_routes(shape, fit.habits, flags.seed);
}

ForecastOptions options_of(const ForecastFlags& flags, const RuntimeOptions& runtime) {
  ForecastOptions options;
  options.runtime = runtime;
  options.tokens = flags.tokens;
  options.prompt_tokens = flags.prompt;
  // As `run` does, which knows its prompt before it shares out the RAM.
  options.runtime.chunk_rows_max = std::min(runtime.chunk_rows_max, std::max(flags.prompt, 1u));
  options.warm_tokens = flags.cold ? 0 : flags.warm;
  options.guess_accuracy = GuessAccuracy(flags.guess_accuracy);
  options.seed = flags.seed;
  return options;
}

Status answer_wish(const ForecastFlags& flags, const CellsQuestion& question,
                   ForecastReport& report, Notices& notices) {
  if (!flags.want.empty()) {
    OFFSTAGE_TRY(report.wish.tok_s, parse_tok_s(flags.want));
  }
  if (!flags.p99.empty()) {
    OFFSTAGE_TRY(report.wish.p99_ns, parse_duration_ns(flags.p99));
  }
  if (!flags.prices.empty()) {
    OFFSTAGE_TRY(const std::string text, read_text_file(flags.prices));
    const auto json = nlohmann::json::parse(text, nullptr, false);
    const auto price = [&](const char* key) {
      return json.is_object() && json.contains(key) && json[key].is_number()
                 ? json[key].get<double>()
                 : -1.0;
    };
    report.prices = {price("ram_per_gib"), price("drive"), ""};
    if (report.prices->ram_per_gib < 0 || report.prices->drive < 0)
      return make_error(ErrorCode::kCorrupt,
                        "{}: expected an object with numbers 'ram_per_gib' and 'drive', at least 0",
                        flags.prices);
    if (json.contains("currency") && json["currency"].is_string())
      report.prices->currency = json["currency"].get<std::string>();
  }
  OFFSTAGE_TRY(report.answers, smallest_machines(question, report.wish, notices));
  return {};
}

}  // namespace

void ForecastFlags::add_to(CLI::App& command) {
  command.add_option("--profile", profile,
                     "hardware profile to forecast on (default: what `offstage probe` kept)");
  command
      .add_option("--add-drive", add_drives,
                  "what if: also with 1 to so many more drives like the profile's first")
      ->check(CLI::Range(0u, 8u));
  command.add_option("--pace", pace, "what if: drives of at most so many bytes per second");
  command.add_option("--routing", routing, "routing trace of this model: the calls to forecast");
  command.add_option("--fit-routing", fit_routing,
                     "routing trace of another model: calls drawn with its habits; without a "
                     "model: show them and how well they reproduce it");
  command
      .add_option("--guess-accuracy", guess_accuracy,
                  "share of the gate's guesses that are called, from one layer before, two, … "
                  "(prefetch.by_distance of a run); one number: its powers; 0: no look-ahead")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("-n,--predict", tokens, "tokens to forecast")
      ->check(CLI::Range(1u, 1000000u))
      ->capture_default_str();
  command.add_option("-p,--n-prompt", prompt, "tokens of the prompt in front of them")
      ->check(CLI::Range(1u, 1000000u))
      ->capture_default_str();
  command.add_flag("--cold", cold, "a first run: nothing has filled the cache before the prompt");
  command.add_option("-s,--seed", seed, "of drives' jitter and drawn routing")
      ->capture_default_str();
  command.add_option("--want", want, "the question turned around: least RAM for so many tok/s");
  command.add_option("--p99", p99, "least RAM for a token's p99 of at most so long (250ms)");
  command.add_option("--prices", prices,
                     "JSON {\"ram_per_gib\": …, \"drive\": …, \"currency\": …}: what answers cost");
}

Result<ForecastReport> make_forecast(const ForecastFlags& flags, const PlannedModel& model,
                                     const RuntimeOptions& runtime,
                                     std::span<const uint64_t> ram_bytes, Notices& notices) {
  ForecastReport report;
  ForecastOptions options = options_of(flags, runtime);
  // A run with --pace doesn't look for it, and another machine's run wouldn't find it.
  if (flags.profile.empty() && flags.pace.empty()) options.drive = model.drive;
  OFFSTAGE_TRY(const auto profile, machine_of(flags, notices));
  if (!profile && flags.has_wish())
    return make_error(ErrorCode::kNotFound,
                      "--want and --p99 need a machine: run `offstage probe`, or give --profile");
  RouteLog log;
  const RouteShape shape = route_shape_of(model.spec);
  if (profile && shape.n_layers == 0) report.routing = "none needed";
  if ((profile || flags.wants_curves) && shape.n_layers != 0) {
    OFFSTAGE_TRY(const auto source, routing_of(flags, shape, notices));
    log = source->draw(options.log_tokens());
    report.routing = source->name();
  }
  std::vector<HardwareProfile> machines;
  if (profile) {
    report.machine = profile->machine;
    OFFSTAGE_TRY(machines, machines_of(flags, *profile));
    notices.add("vram", "experts in VRAM aren't forecast: forecasts are of CPU, RAM and drives");
  }
  const CellsQuestion question = {model, ram_bytes, machines, log, options};
  if (flags.has_wish()) OFFSTAGE_TRY_VOID(answer_wish(flags, question, report, notices));
  if (!flags.has_wish() || flags.wants_curves) {
    OFFSTAGE_TRY(report.cells, forecast_cells(question, notices));
  }
  if (flags.wants_curves) report.log = std::move(log);
  return report;
}

Result<RouteFit> fit_routing(const ForecastFlags& flags) {
  OFFSTAGE_TRY(const RouteLog log, read_routes(flags.fit_routing));
  FitOptions options;
  options.seed = flags.seed;
  return fit_habits(log, options);
}

}  // namespace offstage
