#include "app/run_report.h"

#include <algorithm>

#include "app/record_json.h"
#include "base/histogram.h"
#include "base/process_memory.h"
#include "base/units.h"

namespace offstage {
namespace {

double per_second(double count, int64_t ns) {
  return ns <= 0 ? 0 : count * 1e9 / static_cast<double>(ns);
}

Samples token_times(const GenerationRecord& record) {
  Samples times(std::max<size_t>(record.tokens.size(), 1));
  for (const TokenRecord& token : record.tokens) times.add(token.wall_ns);
  return times;
}

TokenRecord decode_total(const GenerationRecord& record) {
  TokenRecord total;
  for (const TokenRecord& token : record.tokens) {
    total.causes += token.causes;
    total.wall_ns += token.wall_ns;
    total.vram_hits += token.vram_hits;
    total.ram_hits += token.ram_hits;
    total.drive_reads += token.drive_reads;
    total.bytes_read += token.bytes_read;
    total.prefetched += token.prefetched;
    total.prefetch_wasted_bytes += token.prefetch_wasted_bytes;
  }
  return total;
}

nlohmann::ordered_json causes_json(const CauseTimes& causes) {
  nlohmann::ordered_json json;
  for (size_t i = 0; i < kCauseCount; ++i)
    json[std::string(cause_name(static_cast<Cause>(i)))] = ms(causes.ns[i]);
  return json;
}

double share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

// Of the experts that guesses one layer ahead named, the share that was called; by layer with
// experts.
nlohmann::ordered_json guess_recall(const Lookahead& lookahead) {
  auto json = nlohmann::ordered_json::array();
  for (const LayerForesight& layer : lookahead.layers())
    json.push_back(share(layer.guessed_hits, layer.guesses));
  return json;
}

// The same over all layers, by the distances that were guessed from.
nlohmann::ordered_json recall_by_distance(const Lookahead& lookahead) {
  auto json = nlohmann::ordered_json::array();
  for (uint32_t ahead = 1; ahead <= Lookahead::kHorizonMax; ++ahead) {
    uint64_t guesses = 0, hits = 0;
    for (const LayerForesight& layer : lookahead.layers(ahead)) {
      guesses += layer.guesses;
      hits += layer.guessed_hits;
    }
    if (guesses == 0) break;
    json.push_back(
        {{"layers_ahead", ahead}, {"guesses", guesses}, {"recall", share(hits, guesses)}});
  }
  return json;
}

// The whole run's, loading included.
nlohmann::ordered_json drives_json(const Runtime& runtime) {
  auto json = nlohmann::ordered_json::array();
  const std::vector<DriveCounters> drives = runtime.reads().drive_counters();
  for (size_t i = 0; i < drives.size(); ++i)
    json.push_back({{"folder", runtime.drives().names[i]},
                    {"bytes", drives[i].bytes},
                    {"reads", drives[i].reads},
                    {"errors", drives[i].errors},
                    {"in_flight_max", drives[i].in_flight_max},
                    {"busy_ms", ms(drives[i].busy_ns)}});
  return json;
}

// One line a drive, where there are several.
std::string drives_lines(const Runtime& runtime) {
  const std::vector<DriveCounters> drives = runtime.reads().drive_counters();
  std::string text;
  for (size_t i = 0; i < drives.size() && drives.size() > 1; ++i)
    text +=
        fmt::format("drive    {}: {} read in {} ({} reads, {} errors), {:.0f} MB/s while busy\n",
                    runtime.drives().names[i], format_bytes(drives[i].bytes),
                    format_duration_ns(drives[i].busy_ns), drives[i].reads, drives[i].errors,
                    per_second(static_cast<double>(drives[i].bytes) / 1e6, drives[i].busy_ns));
  return text;
}

// "experts 61.2 %, wait_drive 20.1 %, …", largest first.
std::string causes_line(const CauseTimes& causes) {
  std::vector<size_t> order(kCauseCount);
  for (size_t i = 0; i < kCauseCount; ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return causes.ns[a] > causes.ns[b]; });
  std::string line;
  for (const size_t i : order) {
    const double share = 100.0 * static_cast<double>(causes.ns[i]) /
                         static_cast<double>(std::max<int64_t>(causes.total_ns(), 1));
    if (share < 0.05) continue;
    line += fmt::format("{}{} {:.1f} %", line.empty() ? "" : ", ",
                        cause_name(static_cast<Cause>(i)), share);
  }
  return line;
}

// Where the called experts were, and what the drive gave for the others.
std::string experts_line(const Runtime& runtime, const TokenRecord& decode, size_t n_tokens) {
  const uint64_t calls = decode.vram_hits + decode.ram_hits + decode.drive_reads;
  const std::string from_vram =
      runtime.device_experts() == nullptr
          ? ""
          : fmt::format("{:.1f} % from VRAM, ", 100 * share(decode.vram_hits, calls));
  const double megabytes = static_cast<double>(decode.bytes_read) / 1e6;
  std::string text = fmt::format(
      "experts  {}{:.1f} % of {} calls from RAM; {} read, {:.2f} MB/token, {:.0f} MB/s\n",
      from_vram, 100 * share(decode.ram_hits, calls), calls, decode.drive_reads,
      n_tokens == 0 ? 0 : megabytes / static_cast<double>(n_tokens),
      per_second(megabytes, decode.wall_ns));
  if (const DeviceDense* dense = runtime.device_dense())
    text += fmt::format(
        "dense    {}attention, router and shared experts of {} forwards by the device, and of "
        "prompts' chunks: {}\n",
        dense->is_lost() ? "lost; " : "", dense->forwards(), dense->chunks());
  if (const DeviceLogits* logits = runtime.device_logits())
    text += fmt::format("logits   of {} rows by the device\n", logits->rows());
  if (runtime.device_experts() == nullptr) return text;
  const VramTier& vram = runtime.device_experts()->vram();
  const VramCounters& counters = vram.counters();
  text += fmt::format(
      "vram     {}{} experts there, {} copied ({}; {} before they were called), "
      "{} left again, {} of them to RAM\n",
      vram.is_lost() ? "lost; " : "", vram.resident_count(), counters.promotions,
      format_bytes(counters.promoted_bytes), runtime.device_experts()->nominated(),
      counters.evictions, counters.demotions);
  const PlacementCounts& placed = runtime.device_experts()->placements();
  text += fmt::format(
      "placed   not in VRAM: {} calls computed by the CPU, {} by the device "
      "after a copy; the drive first: {} and {}\n",
      placed.ram_cpu, placed.ram_copied, placed.drive_cpu, placed.drive_copied);
  const DeviceChunks* const chunks = runtime.device_experts()->chunks();
  if (chunks == nullptr) return text;
  const ChunkCounts& counts = chunks->counts();
  return text + fmt::format(
                    "prompts  {} calls of chunks computed in VRAM, {} on their way through it, "
                    "{} by the CPU\n",
                    counts.in_place, counts.streamed, counts.cpu);
}

// Who chose the experts.
nlohmann::ordered_json routing_json(const Runtime& runtime) {
  nlohmann::ordered_json json;
  const RouteReplay* replay = runtime.route_replay();
  json["source"] = replay == nullptr ? "router" : "trace";
  json["experts_used"] = runtime.spec().router.n_used;
  json["weights"] = replay == nullptr ? "router" : replay->has_weights() ? "trace" : "equal";
  if (replay == nullptr) return json;
  json["trace"] = replay->path();
  json["trace_tokens"] = replay->n_tokens();
  json["rows_replayed"] = replay->rows_replayed();
  json["restarts"] = replay->restarts();
  if (replay->oracle_recall()) json["oracle_recall"] = *replay->oracle_recall();
  return json;
}

// What makes a run a measurement; empty otherwise.
std::string measuring_lines(const Runtime& runtime) {
  std::string text;
  if (const RouteReplay* replay = runtime.route_replay()) {
    text +=
        fmt::format("routing  {} tokens from {} ({}, begun again {} times), top-{}, {} weights",
                    replay->rows_replayed(), replay->path(), replay->n_tokens(), replay->restarts(),
                    replay->n_used(), replay->has_weights() ? "its" : "equal");
    if (replay->oracle_recall())
      text += fmt::format("; prefetch told {:g} % of the calls", 100 * *replay->oracle_recall());
    text += "\n";
  }
  if (const uint64_t pace = runtime.options().pace_bytes_per_s; pace != 0)
    text += fmt::format("pace     {}/s per drive\n", format_bytes(pace));
  return text;
}

}  // namespace

std::string run_summary(Runtime& runtime, const Generation& generation, const Ceilings& ceilings) {
  const GenerationRecord& record = generation.record;
  const TokenRecord decode = decode_total(record);
  const Samples times = token_times(record);
  std::string text =
      fmt::format("prefill  {} tokens, {:.2f} tok/s, {} read\n", record.prompt_tokens,
                  per_second(record.prompt_tokens, record.prefill.wall_ns),
                  format_bytes(record.prefill.bytes_read));
  text += fmt::format(
      "decode   {} tokens, {:.2f} tok/s; per token p50 {:.1f}  p95 {:.1f}  p99 {:.1f}  max {:.1f} "
      "ms\n",
      record.tokens.size(), per_second(static_cast<double>(record.tokens.size()), decode.wall_ns),
      ms(times.percentile(50)), ms(times.percentile(95)), ms(times.percentile(99)),
      ms(times.max()));
  if (runtime.spec().n_moe_layers() != 0)
    text += experts_line(runtime, decode, record.tokens.size());
  if (decode.prefetched != 0 || decode.prefetch_wasted_bytes != 0)
    text += fmt::format("ahead    {} of {} reads began before their layer; {} read in vain\n",
                        decode.prefetched, decode.drive_reads,
                        format_bytes(decode.prefetch_wasted_bytes));
  text += measuring_lines(runtime);
  text += drives_lines(runtime);
  text += fmt::format("time     {}\n", causes_line(decode.causes));
  text += fmt::format(
      "memory   peak {} of {}; {} threads, {}, {}, {}\n", format_bytes(peak_resident_bytes()),
      format_bytes(runtime.plan().budget_bytes), runtime.threads(), isa_name(runtime.kernels().isa),
      runtime.io().name(), runtime.io().direct_io(0) ? "direct" : "buffered");
  if (!record.tokens.empty()) text += latency_summary(runtime, generation, ceilings);
  return text;
}

std::string latency_summary(Runtime& runtime, const Generation& generation,
                            const Ceilings& ceilings) {
  const GenerationRecord& record = generation.record;
  const Samples times = token_times(record);
  std::string text = fmt::format(
      "latency  TTFT {:.1f} ms; between tokens p50 {:.1f}  p90 {:.1f}  p99 {:.1f}  p99.9 {:.1f}  "
      "max {:.1f} ms\n",
      ms(record.prefill.wall_ns), ms(times.percentile(50)), ms(times.percentile(90)),
      ms(times.percentile(99)), ms(times.percentile(99.9)), ms(times.max()));
  const double tokens_per_s =
      per_second(static_cast<double>(record.tokens.size()), record.decode_ns());
  text += fmt::format(
      "ceiling  {} reads {:.1f} GB/s: {:.1f} tok/s if all were there, {:.0f} % of it "
      "reached",
      ceilings.ram_is_cache ? "cache" : "RAM", ceilings.ram_bytes_per_s / 1e9,
      ceilings.tokens_per_s(), 100 * tokens_per_s / std::max(ceilings.tokens_per_s(), 1e-9));
  for (const DriveCeiling& drive : ceilings.drives)
    if (drive.bytes != 0)
      text +=
          fmt::format("; {} gave {:.2f} GB/s while busy{}", drive.name, drive.bytes_per_s() / 1e9,
                      drive.expected_bytes_per_s == 0
                          ? ""
                          : fmt::format(", {:.2f} expected", drive.expected_bytes_per_s / 1e9));
  const SpikeReport spikes = explain_spikes(record.tokens, 1, runtime.drive_names());
  if (spikes.slowest.empty())
    return text + fmt::format("\nslowest  no token took {:.0f} % more than the median\n",
                              100 * (kSlowRatio - 1));
  return text + fmt::format("\nslowest  {}; would have helped: {}\n", spikes.slowest[0].sentence,
                            remedy_name(spikes.slowest[0].remedy));
}

nlohmann::ordered_json notices_json(const Notices& notices) {
  auto json = nlohmann::ordered_json::array();
  for (const Notice& notice : notices.list())
    json.push_back({{"subject", notice.subject}, {"text", notice.text}});
  return json;
}

nlohmann::ordered_json run_json(Runtime& runtime, const Generation& generation,
                                const Ceilings& ceilings, const SpikeReport& spikes,
                                const Notices& notices, const std::string& text,
                                std::string_view chat_template) {
  const GenerationRecord& record = generation.record;
  const TokenRecord decode = decode_total(record);
  const Samples times = token_times(record);
  nlohmann::ordered_json json;
  json["schema"] = "offstage.run/1";
  json["model"] = runtime.file().gguf.path();
  json["tokens"] = generation.tokens;
  json["text"] = text;
  json["stop"] = stop_reason_name(generation.stop);
  json["chat_template"] = chat_template;
  json["prompt_tokens"] = record.prompt_tokens;
  json["prefill_tok_s"] = per_second(record.prompt_tokens, record.prefill.wall_ns);
  json["decode_tok_s"] = per_second(static_cast<double>(record.tokens.size()), decode.wall_ns);
  json["token_ms"] = {{"p50", ms(times.percentile(50))},
                      {"p95", ms(times.percentile(95))},
                      {"p99", ms(times.percentile(99))},
                      {"max", ms(times.max())}};
  json["ttft_ms"] = ms(record.prefill.wall_ns);
  json["itl_ms"] = itl_json(record.tokens);
  json["experts"] = {{"slots", runtime.plan().slots.n_slots()},
                     {"kept_per_layer", runtime.plan().slots.kept_per_layer},
                     {"vram_hits", decode.vram_hits},
                     {"ram_hits", decode.ram_hits},
                     {"drive_reads", decode.drive_reads},
                     {"bytes_read", decode.bytes_read}};
  json["vram"] = vram_json(runtime, decode.vram_hits);
  json["prefetch"] = {{"experts", decode.prefetched},
                      {"wasted_bytes", decode.prefetch_wasted_bytes},
                      {"guess_recall", guess_recall(runtime.lookahead())},
                      {"horizon", runtime.lookahead().horizon()},
                      {"by_distance", recall_by_distance(runtime.lookahead())}};
  json["prefill"] = {{"ram_hits", record.prefill.ram_hits},
                     {"drive_reads", record.prefill.drive_reads},
                     {"bytes_read", record.prefill.bytes_read},
                     {"read_ahead", record.prefill.prefetched},
                     {"wasted_bytes", record.prefill.prefetch_wasted_bytes},
                     {"chunk_tokens", runtime.plan().chunk_rows},
                     {"wait_ms", causes_json(record.prefill.causes)}};
  json["wait_ms"] = causes_json(decode.causes);
  json["ram_budget_bytes"] = runtime.plan().budget_bytes;
  json["peak_rss_bytes"] = peak_resident_bytes();
  json["threads"] = runtime.threads();
  json["io_engine"] = runtime.io().name();
  json["direct_io"] = runtime.io().direct_io(0);
  json["drives"] = drives_json(runtime);
  json["isa"] = isa_name(runtime.kernels().isa);
  json["pace_bytes_per_s"] = runtime.options().pace_bytes_per_s;
  json["routing"] = routing_json(runtime);
  json["cache_policy"] = runtime.options().cache_policy;
  json["warm_start_tokens"] = runtime.warm_start_tokens();
  json["token_records"] = tokens_json(record.tokens, runtime);
  json["spikes"] = spikes_json(spikes);
  json["spike_classes"] = spike_classes_json(spikes);
  json["ceilings"] = ceilings_json(ceilings);
  const DriveChoice& drive = runtime.drive();
  json["drive"] = {{"block_bytes", drive.block_bytes},
                   {"depth", drive.depth},
                   {"bytes_per_s", drive.bytes_per_s},
                   {"probed", drive.probed},
                   {"probe_ms", ms(drive.probe_ns)}};
  json["preload"] = {{"experts", runtime.preloaded().experts},
                     {"bytes", runtime.preloaded().bytes},
                     {"ms", ms(runtime.preloaded().ns)}};
  json["fallbacks"] = notices_json(notices);
  return json;
}

void print_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace offstage
