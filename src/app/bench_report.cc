#include "app/bench_report.h"

#include <algorithm>

#include "app/record_json.h"
#include "app/run_forecast.h"
#include "app/run_report.h"
#include "base/process_memory.h"
#include "base/units.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

std::string number(const Json& value, int digits) {
  return fmt::format("{:.{}f}", value.get<double>(), digits);
}

double mean(const std::vector<int64_t>& values) {
  const std::vector<double> copy(values.begin(), values.end());
  return mean_of(copy);
}

double stddev(const std::vector<int64_t>& values) {
  const std::vector<double> copy(values.begin(), values.end());
  return stddev_of(copy);
}

Json totals_json(std::span<const TokenRecord> records) {
  uint64_t vram = 0, ram = 0, drive = 0, bytes = 0;
  for (const TokenRecord& record : records) {
    vram += record.vram_hits;
    ram += record.ram_hits;
    drive += record.drive_reads;
    bytes += record.bytes_read;
  }
  return {{"vram_hits", vram}, {"ram_hits", ram}, {"drive_reads", drive}, {"bytes_read", bytes}};
}

// Speed if nothing but the drives' reading took time; 0 where nothing was read.
double drive_bound(const BenchResult& result, std::span<const TokenRecord> records) {
  double seconds = 0;
  const size_t n_drives = std::min<size_t>(result.ceilings.drives.size(), kDrivesMax);
  for (size_t drive = 0; drive < n_drives; ++drive) {
    uint64_t bytes = 0;
    for (const TokenRecord& record : records) bytes += record.trace.drive_bytes[drive];
    const double speed = result.ceilings.drives[drive].bytes_per_s();
    if (bytes != 0 && speed > 0)
      seconds = std::max(seconds, static_cast<double>(bytes) / speed);  // drives read side by side
  }
  const double tokens = result.test.tokens() * static_cast<double>(result.samples_ns.size());
  return seconds <= 0 ? 0 : tokens / seconds;
}

// As the tokens', so that a table can have both.
Json prompts_json(std::span<const TokenRecord> prompts, Runtime& runtime) {
  Json json = Json::array();
  for (size_t r = 0; r < prompts.size(); ++r) {
    Json one;
    one["index"] = r;
    one.update(cost_json(prompts[r], runtime));
    one["repetition"] = r;
    json.push_back(std::move(one));
  }
  return json;
}

std::string percent_of(double value, double bound) {
  return bound <= 0 ? "–" : fmt::format("{:.0f} %", 100 * value / bound);
}

std::string row_line(const Json& row) {
  const Json& itl = row["itl_ms"];
  const bool decodes = row["n_gen"] != 0;
  const std::string latency =
      decodes ? fmt::format("{} / {} / {} / {} / {}", number(itl["p50"], 1), number(itl["p90"], 1),
                            number(itl["p99"], 1), number(itl["p999"], 1), number(itl["max"], 1))
              : "–";
  const double speed = row["avg_ts"], ram = row["ceilings"]["tok_s"], drive = row["drive_tok_s"];
  return fmt::format(
      "| {} | {} | {} | {} | {} | {} | {} | {:.2f} ± {:.2f} | {} | {} | {} | {} |\n",
      row["model_type"].get<std::string>(), format_bytes(row["model_size"].get<uint64_t>()),
      format_count(row["model_n_params"].get<uint64_t>()), row["n_threads"].get<uint32_t>(),
      format_bytes(row["ram_budget_bytes"].get<uint64_t>()), vram_text(row),
      row["test"].get<std::string>(), speed, row["stddev_ts"].get<double>(),
      decodes ? percent_of(speed, ram) : "–", percent_of(speed, drive), number(row["ttft_ms"], 1),
      latency);
}

void add_spikes(std::string& text, const Json& row) {
  if (row["n_gen"] == 0) return;
  text +=
      fmt::format("\n{}, {} of RAM{}, {} threads:", row["test"].get<std::string>(),
                  format_bytes(row["ram_budget_bytes"].get<uint64_t>()),
                  row["vram"]["budget_bytes"] == 0 ? std::string()
                                                   : fmt::format(", {} of VRAM", vram_text(row)),
                  row["n_threads"].get<uint32_t>());
  if (row["spikes"].empty()) {
    text += fmt::format(" no token took {:.0f} % more than the median.\n", 100 * (kSlowRatio - 1));
    return;
  }
  text += "\n\n| slowest tokens | cause | would have helped |\n|---|---|---|\n";
  for (const Json& spike : row["spikes"])
    text += fmt::format("| {} | {} | {} |\n", spike["sentence"].get<std::string>(),
                        spike["cause"].get<std::string>(), spike["remedy"].get<std::string>());
  text += "\n";
  for (const Json& c : row["spike_classes"])
    text += fmt::format(
        "{} slow tokens by {}, {:.1f} ms over the median in all: {} would have "
        "removed them.\n",
        c["tokens"].get<uint64_t>(), c["cause"].get<std::string>(),
        c["excess_ns"].get<double>() / 1e6, c["remedy"].get<std::string>());
}

std::string csv_field(const Json& value) {
  if (!value.is_string()) return value.dump();
  std::string quoted(1, '"');
  for (const char c : value.get<std::string>()) {
    if (c == '"') quoted += c;
    quoted += c;
  }
  quoted += '"';
  return quoted;
}

}  // namespace

std::string vram_text(const Json& row) {
  if (!row.contains("vram") || row["vram"]["budget_bytes"] == 0) return "–";
  const std::string size = format_bytes(row["vram"]["budget_bytes"].get<uint64_t>());
  const std::string state = row["vram"]["state"];
  return state == "in_use" ? size : fmt::format("{} ({})", size, state);
}

Json bench_json(Runtime& runtime, const BenchResult& result, const std::string& text, bool cold,
                const Notices& notices) {
  const ModelFile& file = runtime.file();
  const bool decodes = result.test.n_gen != 0;
  const std::vector<TokenRecord>& records = decodes ? result.tokens : result.prompts;
  std::vector<double> speeds;
  for (const int64_t ns : result.samples_ns) speeds.push_back(result.tokens_per_s(ns));
  uint64_t file_bytes = 0;
  for (uint32_t i = 0; i < file.paths().size(); ++i) file_bytes += runtime.io().file_bytes(i);
  Json json;
  json["schema"] = kBenchSchema;
  json["test"] = result.test.name();
  json["model_filename"] = file.gguf.path();
  json["model_type"] = file.spec.name;
  json["model_size"] = file_bytes;
  json["model_n_params"] = file.total_params();
  json["n_threads"] = runtime.threads();
  json["n_prompt"] = result.test.n_prompt;
  json["n_gen"] = result.test.n_gen;
  json["n_depth"] = result.test.n_depth;
  json["avg_ns"] = mean(result.samples_ns);
  json["stddev_ns"] = stddev(result.samples_ns);
  json["avg_ts"] = result.mean_tokens_per_s();
  json["stddev_ts"] = result.stddev_tokens_per_s();
  json["samples_ns"] = result.samples_ns;
  json["samples_ts"] = speeds;
  json["cache"] = cold ? "cold" : "warm";
  json["text"] = text;
  json["ram"] = result.ram;
  json["ram_budget_bytes"] = runtime.plan().budget_bytes;
  json["peak_rss_bytes"] = peak_resident_bytes();
  json["io_engine"] = runtime.io().name();
  json["direct_io"] = runtime.io().direct_io(0);
  json["isa"] = isa_name(runtime.kernels().isa);
  json["cache_policy"] = runtime.options().cache_policy;
  json["experts"] = totals_json(records);
  json["vram"] = vram_json(runtime, json["experts"]["vram_hits"].get<uint64_t>());
  json["ttft_ms"] = mean(result.ttft_ns) / 1e6;
  json["itl_ms"] = itl_json(result.tokens);
  json["spikes"] = spikes_json(result.spikes);
  json["spike_classes"] = spike_classes_json(result.spikes);
  json["ceilings"] = ceilings_json(result.ceilings);
  json["drive_tok_s"] = drive_bound(result, records);
  json["prompts"] = prompts_json(result.prompts, runtime);
  json["tokens"] = result.tokens_json;
  if (result.forecast) json["forecast"] = forecast_json(*result.forecast);
  json["fallbacks"] = notices_json(notices);
  return json;
}

std::string bench_markdown(std::span<const Json> rows) {
  std::string text =
      "| model | size | params | threads | ram | vram | test | t/s | of RAM | of drive | TTFT ms | "
      "ITL ms p50 / p90 / p99 / p99.9 / max |\n"
      "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n";
  for (const Json& row : rows) text += row_line(row);
  if (rows.empty()) return text;
  text +=
      "\nt/s: tokens ÷ time, mean ± standard deviation (n − 1) of the repetitions. TTFT: from the "
      "prompt to its\nlast logits. ITL: every time from one token's logits to the next's, all "
      "repetitions, percentiles by\nnearest rank. of RAM: of the speed at which a token's weights "
      "can be read from memory. of drive: of the\nspeed at which the drives could have given what "
      "was read.\n";
  for (const Json& row : rows) add_spikes(text, row);
  const Json& last = rows.back();
  const Json& ceilings = last["ceilings"];
  text += fmt::format("\nceilings in this run: {} reads {} GB/s",
                      ceilings["ram_fits_cache"].get<bool>() ? "cache (the model fits it)" : "RAM",
                      number(ceilings["ram_read_gb_s"], 1));
  for (const Json& drive : ceilings["drives"])
    if (drive["bytes"] != 0)
      text += fmt::format("; {} gave {} GB/s while busy{}", drive["name"].get<std::string>(),
                          number(drive["gb_s"], 2),
                          drive["expected_gb_s"] == 0
                              ? ""
                              : fmt::format(", {} expected", number(drive["expected_gb_s"], 2)));
  text += fmt::format("\nexpert cache: {}; tokens: {}; reads by {}; peak RSS {}\n",
                      last["cache"].get<std::string>(), last["text"].get<std::string>(),
                      last["io_engine"].get<std::string>(),
                      format_bytes(last["peak_rss_bytes"].get<uint64_t>()));
  return text;
}

std::string bench_csv(std::span<const Json> rows) {
  std::string text;
  for (const Json& row : rows) {
    std::string names, values;
    for (const auto& [name, value] : row.items()) {
      if (name == "itl_ms" || name == "experts" || name == "vram") {
        for (const auto& [part, figure] : value.items()) {
          names += fmt::format("{}_{},", name, part);
          values += csv_field(figure) + ",";
        }
      } else if (!value.is_structured()) {
        names += name + ",";
        values += csv_field(value) + ",";
      }
    }
    if (text.empty()) text = names.substr(0, names.size() - 1) + "\n";
    text += values.substr(0, values.size() - 1) + "\n";
  }
  return text;
}

std::string records_csv(std::span<const Json> rows) {
  std::string text;
  for (const Json& row : rows) {
    for (const Json& record : row["n_gen"] == 0 ? row["prompts"] : row["tokens"]) {
      std::string names =
          "test,ram_budget_bytes,vram_budget_bytes,n_threads,repetition,index,wall_ns";
      std::string values = fmt::format(
          "{},{},{},{},{},{},{}", row["test"].get<std::string>(), row["ram_budget_bytes"].dump(),
          row["vram"]["budget_bytes"].dump(), row["n_threads"].dump(), record["repetition"].dump(),
          record["index"].dump(), record["wall_ns"].dump());
      for (const char* group : {"causes", "hits", "bytes", "prefetch", "page_faults", "cpu"}) {
        for (const auto& [name, value] : record[group].items()) {
          names += fmt::format(",{}_{}", group, name);
          values += ",";
          values += value.dump();
        }
      }
      if (text.empty()) text = names + "\n";
      text += values + "\n";
    }
  }
  return text;
}

}  // namespace offstage
