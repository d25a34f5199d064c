// offstage trace: routing traces; what they hold, and what a cache would have hit.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>

#include "app/command.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "base/units.h"
#include "cache/replay.h"
#include "cache/route_npz.h"
#include "cache/route_stats.h"
#include "runtime/runtime.h"

namespace offstage {
namespace {

struct TraceFlags {
  std::string file, out, policy = "auto", capacity = "25%", model;
  uint32_t n_experts = 0;
  uint64_t tokens = UINT64_MAX, skipped = 0;
  bool json = false;

  Result<RouteLog> read() const {
    return read_routes(file, n_experts == 0 ? std::nullopt : std::optional(n_experts));
  }
};

void add_file_flags(CLI::App& command, TraceFlags& flags) {
  command.add_option("FILE", flags.file, "routing trace: ours, or a .npz archive")->required();
  command.add_option("--experts", flags.n_experts,
                     "experts per layer, for an archive (default: the highest id + 1)");
}

nlohmann::ordered_json shape_json(const char* schema, const TraceFlags& flags,
                                  const RouteLog& log) {
  nlohmann::ordered_json json;
  json["schema"] = schema;
  json["trace"] = flags.file;
  json["tokens"] = log.n_tokens();
  json["sequences"] = log.starts.size();
  json["layers"] = log.shape.n_layers;
  json["experts_per_layer"] = log.shape.n_experts;
  json["experts_used"] = log.shape.n_used;
  return json;
}

std::string shape_line(const RouteLog& log) {
  return fmt::format("{} tokens in {} sequences, {} layers, top-{} of {} experts", log.n_tokens(),
                     log.starts.size(), log.shape.n_layers, log.shape.n_used, log.shape.n_experts);
}

Result<int> trace_import(const TraceFlags& flags) {
  OFFSTAGE_TRY(const RouteLog log, flags.read());
  OFFSTAGE_TRY_VOID(write_route_log(flags.out, log));
  fmt::print(stderr, "{}: {}{}\n", flags.out, shape_line(log),
             log.shape.has_probs ? "" : ", no router weights");
  return kExitOk;
}

// What the misses would have cost a model of the trace's shape.
Result<uint64_t> bytes_missed_of(const std::string& path, const RouteShape& shape,
                                 const ReplayResult& result) {
  OFFSTAGE_TRY(const auto model, ModelFile::open(path));
  const ModelSpec& spec = model->spec;
  if (spec.n_moe_layers() != shape.n_layers || spec.router.n_experts != shape.n_experts)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: {} experts x {} layers; the trace has {} x {}", path,
                      spec.router.n_experts, spec.n_moe_layers(), shape.n_experts, shape.n_layers);
  return bytes_missed(result, model->expert_layout(), model->file_bytes());
}

// A number, or a list where layers differ.
nlohmann::ordered_json kept_json(const std::vector<uint32_t>& kept) {
  if (std::adjacent_find(kept.begin(), kept.end(), std::not_equal_to<>()) == kept.end())
    return kept.front();
  return kept;
}

Result<int> trace_replay(const TraceFlags& flags) {
  OFFSTAGE_TRY(const RouteLog log, flags.read());
  OFFSTAGE_TRY(const auto kept, parse_capacities(flags.capacity, log.shape));
  std::unique_ptr<EvictionPolicy> policy;
  if (flags.policy == "belady") {
    policy = make_belady_policy(log);
  } else {
    const PolicyShape shape = {log.shape.n_layers, log.shape.n_experts, log.shape.n_used, kept};
    OFFSTAGE_TRY(policy, make_policy(flags.policy, shape));
  }
  const ReplayResult result = replay(log, {kept, flags.tokens, flags.skipped}, *policy);
  const LayerHits total = result.total();
  std::optional<uint64_t> bytes;
  if (!flags.model.empty()) {
    OFFSTAGE_TRY(bytes, bytes_missed_of(flags.model, log.shape, result));
  }
  if (!flags.json) {
    fmt::print("{}\n{} with {} of {} experts kept per layer: {} of {} calls hit, {:.2f} %\n",
               shape_line(log), policy->name(), kept_json(kept).dump(), log.shape.n_experts,
               total.hits, total.lookups, 100 * total.hit_rate());
    if (bytes)
      fmt::print("{} bytes missed ({}), in sectors of the drive\n", *bytes, format_bytes(*bytes));
    return kExitOk;
  }
  auto json = shape_json("offstage.trace_replay/1", flags, log);
  json["policy"] = policy->name();
  json["kept_per_layer"] = kept_json(kept);
  json["lookups"] = total.lookups;
  json["hits"] = total.hits;
  json["hit_rate"] = total.hit_rate();
  if (bytes) json["bytes_missed"] = *bytes;
  auto layers = nlohmann::ordered_json::array();
  for (size_t l = 0; l < result.layers.size(); ++l)
    layers.push_back({{"layer", l},
                      {"lookups", result.layers[l].lookups},
                      {"hits", result.layers[l].hits},
                      {"hit_rate", result.layers[l].hit_rate()}});
  json["per_layer"] = std::move(layers);
  print_json(json);
  return kExitOk;
}

Result<int> trace_stats(const TraceFlags& flags) {
  OFFSTAGE_TRY(const RouteLog log, flags.read());
  const RouteStats stats = route_stats(log);
  if (flags.json) {
    auto json = shape_json("offstage.trace_stats/1", flags, log);
    const auto points = [](const std::vector<RouteStats::Point>& values, const char* n) {
      auto list = nlohmann::ordered_json::array();
      for (const auto& point : values) {
        nlohmann::ordered_json entry = {{n, point.n}};
        entry["value"] = std::isnan(point.value) ? nlohmann::ordered_json()
                                                 : nlohmann::ordered_json(point.value);
        list.push_back(std::move(entry));
      }
      return list;
    };
    json["reuse_at_lag"] = points(stats.reuse_at_lag, "lag");
    json["distinct_over"] = points(stats.distinct_over, "tokens");
    json["first_touch_share"] = stats.first_touch_share;
    print_json(json);
    return kExitOk;
  }
  fmt::print("{}\nfirst touches {:.2f} % of the calls\n", shape_line(log),
             100 * stats.first_touch_share);
  fmt::print("{:>6} {:>22} {:>30}\n", "n", "called again n later", "distinct experts over n");
  for (size_t i = 0; i < stats.reuse_at_lag.size(); ++i)
    fmt::print("{:>6} {:>20.1f} % {:>30.2f}\n", stats.reuse_at_lag[i].n,
               100 * stats.reuse_at_lag[i].value, stats.distinct_over[i].value);
  return kExitOk;
}

void add_part(CLI::App& trace, const char* name, const char* what, Command& chosen,
              Result<int> (*job)(const TraceFlags&),
              const std::function<void(CLI::App&, TraceFlags&)>& add_flags) {
  auto flags = std::make_shared<TraceFlags>();
  CLI::App* part = trace.add_subcommand(name, what);
  add_file_flags(*part, *flags);
  add_flags(*part, *flags);
  part->callback([flags, job, &chosen] { chosen = [flags, job] { return job(*flags); }; });
}

void add_json_flag(CLI::App& command, TraceFlags& flags) {
  command.add_flag("--json", flags.json, "one JSON object on stdout");
}

}  // namespace

void add_trace_command(CLI::App& app, Command& chosen) {
  CLI::App* trace = app.add_subcommand("trace", "routing traces: record, import, stats, replay");
  trace->require_subcommand(1);
  add_trace_record_command(*trace, chosen);
  add_part(*trace, "import", "a .npz archive as a trace of ours", chosen, trace_import,
           [](CLI::App& command, TraceFlags& flags) {
             command.add_option("-o,--output", flags.out, "file to write")->required();
           });
  add_part(*trace, "stats", "how local the routing is", chosen, trace_stats, add_json_flag);
  add_part(
      *trace, "replay", "what a cache would have hit", chosen, trace_replay,
      [](CLI::App& command, TraceFlags& flags) {
        command
            .add_option(
                "--policy", flags.policy,
                fmt::format("{} or belady (the offline optimum)", fmt::join(policy_names(), ", ")))
            ->capture_default_str();
        command
            .add_option("--capacity", flags.capacity,
                        "experts kept per layer, their share (25%), or a list by layer")
            ->capture_default_str();
        command.add_option("--tokens", flags.tokens, "so many from the beginning (default: all)");
        command.add_option("--skip", flags.skipped,
                           "the first so many fill the cache and don't count");
        command.add_option("-m,--model", flags.model,
                           "a model of that shape: what the misses cost in bytes");
        add_json_flag(command, flags);
      });
}

}  // namespace offstage
