#include "app/report_data.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <limits>

#include "app/record_json.h"
#include "app/run_report.h"
#include "base/process_memory.h"
#include "base/units.h"
#include "cache/size_curve.h"
#include "runtime/layer_figures.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

Json fact(const char* name, const std::string& value) { return {{"name", name}, {"value", value}}; }

// A list per figure, not an object per token: ten thousand tokens stay a small file.
Json tokens_by_column(const ReportRun& run, uint32_t n_drives) {
  Json json = {{"repetition", Json::array()},  {"wall_ns", Json::array()},
               {"causes", Json::object()},     {"ram_hits", Json::array()},
               {"drive_reads", Json::array()}, {"drive_bytes", Json::array()},
               {"queue_depth", Json::array()}, {"cpu_ns", Json::array()}};
  for (size_t c = 0; c < kCauseCount; ++c)
    json["causes"][std::string(cause_name(static_cast<Cause>(c)))] = Json::array();
  for (uint32_t drive = 0; drive < n_drives; ++drive) json["drive_bytes"].push_back(Json::array());
  const size_t per_repetition = std::max<size_t>(run.records.size() / run.repetitions, 1);
  for (size_t i = 0; i < run.records.size(); ++i) {
    const TokenRecord& record = run.records[i];
    json["repetition"].push_back(i / per_repetition);
    json["wall_ns"].push_back(record.wall_ns);
    for (size_t c = 0; c < kCauseCount; ++c)
      json["causes"][std::string(cause_name(static_cast<Cause>(c)))].push_back(record.causes.ns[c]);
    json["ram_hits"].push_back(record.ram_hits);
    json["drive_reads"].push_back(record.drive_reads);
    for (uint32_t drive = 0; drive < n_drives; ++drive)
      json["drive_bytes"][drive].push_back(record.trace.drive_bytes[drive]);
    json["queue_depth"].push_back(record.trace.depth_max);
    json["cpu_ns"].push_back(record.load.cpu_ns);
  }
  return json;
}

// All sleeps of the run, by the drive of the read that ended each.
Json waits_json(std::span<const TokenRecord> records, const Runtime& runtime) {
  Json json = Json::array();
  for (uint32_t drive = 0; drive < runtime.drive_count(); ++drive) {
    DriveWait sum;
    for (const TokenRecord& record : records) {
      sum.queued_ns += record.trace.waits[drive].queued_ns;
      sum.service_ns += record.trace.waits[drive].service_ns;
      sum.woken_ns += record.trace.waits[drive].woken_ns;
    }
    json.push_back({{"drive", runtime.drive_name(drive)},
                    {"queued_ns", sum.queued_ns},
                    {"service_ns", sum.service_ns},
                    {"woken_ns", sum.woken_ns}});
  }
  return json;
}

Json layers_json(Runtime& runtime) {
  Json json = Json::array();
  for (const LayerFigures& layer : layer_figures(
           runtime.trace().layers(), runtime.spec().n_dense_layers, runtime.spec().router.n_used))
    json.push_back({{"layer", layer.layer},
                    {"visits", layer.visits},
                    {"calls", layer.calls},
                    {"misses", layer.misses},
                    {"wall_ns", layer.wall_ns},
                    {"wait_ns", layer.wait_ns}});
  return json;
}

Result<Json> curve_json(const Runtime& runtime) {
  const std::vector<uint32_t>& kept = runtime.plan().slots.kept_per_layer;
  OFFSTAGE_TRY(const SizeCurve curve,
               size_curve(runtime.route_memory()->log(), runtime.options().cache_policy, kept));
  const ExpertLayout layout = runtime.file().expert_layout();
  uint64_t bytes_of_one = 0, all_kept = 0;  // an expert of every layer
  for (uint32_t l = 0; l < layout.n_layers(); ++l) {
    bytes_of_one += layout.expert_bytes(LayerIndex(l));
    all_kept += kept[l];
  }
  Json points = Json::array();
  for (const SizeCurve::Point& point : curve.points)
    points.push_back({{"kept", point.kept},
                      {"bytes", point.kept * bytes_of_one},
                      {"policy", point.policy},
                      {"optimum", point.optimum}});
  return Json{{"policy", runtime.options().cache_policy},
              {"experts", layout.n_experts()},
              {"tokens", curve.tokens},
              {"skipped", curve.skipped},
              {"run_kept", static_cast<double>(all_kept) / layout.n_layers()},
              {"at_run_size", curve.at_run_size},
              {"optimum_at_run_size", curve.optimum_at_run_size},
              {"points", std::move(points)}};
}

// "nvme0n1 41 to 58 °C", of the drives that have a sensor.
std::string temperatures_text(std::span<const TokenRecord> records, const Runtime& runtime) {
  std::string text;
  for (uint32_t drive = 0; drive < runtime.drive_count(); ++drive) {
    int16_t least = std::numeric_limits<int16_t>::max(), most = kNoTemperature;
    for (const TokenRecord& record : records) {
      if (record.drive_celsius[drive] == kNoTemperature) continue;
      least = std::min(least, record.drive_celsius[drive]);
      most = std::max(most, record.drive_celsius[drive]);
    }
    if (most != kNoTemperature)
      text += fmt::format("{}{} {} to {} °C", text.empty() ? "" : ", ", runtime.drive_name(drive),
                          least, most);
  }
  return text.empty() ? "not shown by this system" : text;
}

Json facts_json(std::span<const TokenRecord> records, Runtime& runtime) {
  const RuntimeOptions& options = runtime.options();
  const ModelFile& file = runtime.file();
  Json json = {fact("model file", file.gguf.path()),
               fact("architecture", file.spec.architecture),
               fact("parameters", fmt::format("{}, {} active", format_count(file.total_params()),
                                              format_count(file.active_params()))),
               fact("memory budget", format_bytes(runtime.plan().budget_bytes)),
               fact("peak resident memory", format_bytes(peak_resident_bytes())),
               fact("compute threads", std::to_string(runtime.threads())),
               fact("CPU time that the host gave to others",
                    fmt::format("{:.1f} %", 100 * runtime.stolen_share())),
               fact("instruction set", std::string(isa_name(runtime.kernels().isa))),
               fact("context", std::to_string(options.context)),
               fact("reads by", fmt::format("{}, {}", runtime.io().name(),
                                            runtime.io().direct_io(0) ? "direct" : "buffered")),
               fact("drive temperature", temperatures_text(records, runtime)),
               fact("cache policy", options.cache_policy),
               fact("experts read at start", std::to_string(runtime.preloaded().experts)),
               fact("warm start", fmt::format("{} earlier tokens", runtime.warm_start_tokens()))};
  if (options.pace_bytes_per_s != 0)
    json.push_back(fact("pace", format_bytes(options.pace_bytes_per_s) + "/s per drive"));
  if (const RouteReplay* replay = runtime.route_replay(); replay != nullptr)
    json.push_back(fact("routing from", replay->path()));
  return json;
}

// "model name\t: X": the X of the first line that begins with `key`; empty if there is none.
std::string proc_value(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (line.starts_with(key) && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "";
}

Json environment_json() {
  Json json = Json::array();
  const std::string cpu = proc_value("/proc/cpuinfo", "model name");
  const long n_cpus = sysconf(_SC_NPROCESSORS_ONLN), n_pages = sysconf(_SC_PHYS_PAGES);
  json.push_back(fact("CPU", cpu.empty() ? "not named by this system" : cpu));
  json.push_back(fact("CPUs", std::to_string(n_cpus)));
  json.push_back(fact("memory", format_bytes(static_cast<uint64_t>(n_pages) *
                                             static_cast<uint64_t>(sysconf(_SC_PAGESIZE)))));
  utsname system = {};
  if (uname(&system) == 0)
    json.push_back(
        fact("system", fmt::format("{} {} {}", system.sysname, system.release, system.machine)));
  return json;
}

Json command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  Json words = Json::array();
  std::string word;
  while (std::getline(file, word, '\0')) words.push_back(word);
  return words;
}

std::string now_utc() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts = {};
  gmtime_r(&now, &parts);
  char text[32] = {};
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

}  // namespace

Result<Json> report_run(Runtime& runtime, const ReportRun& run) {
  const uint32_t n_drives = runtime.drive_count();
  Json json;
  json["name"] = run.name;
  json["unit"] = run.are_prompts ? "prompt" : "token";
  json["repetitions"] = run.repetitions;
  json["model"] = {{"name", runtime.spec().name}, {"path", runtime.file().gguf.path()}};
  json["facts"] = facts_json(run.records, runtime);
  json["tok_s"] = run.tokens_per_s;
  json["ttft_ms"] = run.ttft_ms;
  json["itl_ms"] = itl_json(run.records);
  json["causes"] = Json::array();
  for (size_t c = 0; c < kCauseCount; ++c)
    json["causes"].push_back(cause_name(static_cast<Cause>(c)));
  json["drives"] = Json::array();
  for (uint32_t drive = 0; drive < n_drives; ++drive)
    json["drives"].push_back(runtime.drive_name(drive));
  json["tokens"] = tokens_by_column(run, n_drives);
  json["waits"] = waits_json(run.records, runtime);
  json["layers"] = layers_json(runtime);
  json["ceilings"] = ceilings_json(run.ceilings);
  if (runtime.route_memory() != nullptr) {
    OFFSTAGE_TRY(json["cache_curve"], curve_json(runtime));
  }
  json["spikes"] = spikes_json(run.spikes);
  json["spike_classes"] = spike_classes_json(run.spikes);
  json["fallbacks"] = notices_json(run.notices);
  return json;
}

Json report_json(std::vector<Json> runs) {
  Json json;
  json["schema"] = kReportSchema;
  json["program"] = "offstage " OFFSTAGE_VERSION;
  json["made"] = now_utc();
  json["command"] = command_line();
  json["environment"] = environment_json();
  json["runs"] = std::move(runs);
  return json;
}

}  // namespace offstage
