#include "app/record_json.h"

#include <algorithm>

#include "base/histogram.h"
#include "base/units.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

Json causes_json(const CauseTimes& causes) {
  Json json;
  for (size_t i = 0; i < kCauseCount; ++i)
    json[std::string(cause_name(static_cast<Cause>(i)))] = causes.ns[i];
  return json;
}

const char* matrix_name(uint8_t matrix) {
  constexpr const char* kNames[] = {"gate", "up", "down"};
  return kNames[matrix % kExpertMatrices];
}

Json read_json(const ReadRecord& read, Runtime& runtime) {
  return {{"layer", read.layer},
          {"expert", read.expert},
          {"matrix", matrix_name(read.matrix)},
          {"drive", runtime.drive_name(read.drive)},
          {"bytes", read.bytes},
          {"queued_ns", read.queued_ns()},
          {"service_ns", read.service_ns()},
          {"retries", read.retries}};
}

Json layer_json(const LayerRecord& layer) {
  return {{"layer", layer.layer},
          {"wall_ns", layer.wall_ns},
          {"wait_ns", layer.wait_ns},
          {"misses", layer.all_misses()},
          {"queue_depth", layer.depth_max}};
}

// Sleeps by the drive of the read that ended each.
Json waits_json(const TokenTrace& trace, Runtime& runtime) {
  Json json = Json::object();
  for (uint32_t drive = 0; drive < runtime.drive_count(); ++drive) {
    const DriveWait& wait = trace.waits[drive];
    json[runtime.drive_name(drive)] = {{"queued_ns", wait.queued_ns},
                                       {"service_ns", wait.service_ns},
                                       {"woken_ns", wait.woken_ns}};
  }
  return json;
}

Json celsius_json(const TokenRecord& token, Runtime& runtime) {
  Json json = Json::object();
  for (uint32_t drive = 0; drive < runtime.drive_count(); ++drive)
    if (token.drive_celsius[drive] != kNoTemperature)
      json[runtime.drive_name(drive)] = token.drive_celsius[drive];
  return json;
}

// The layer that waited longest and, in it, the read that was waited for longest; an empty object
// if nothing was waited for.
Json waiting_json(const LayerRecord& layer, Runtime& runtime) {
  if (layer.layer == kNoLayer) return Json::object();
  Json json = layer_json(layer);
  json["longest_wait_ns"] = layer.longest_ns;
  if (layer.longest_ns != 0) json["read"] = read_json(layer.longest, runtime);
  return json;
}

// Rings are in order of tokens: from the back to this token's, without the prompt's in front.
template <typename T, typename TokenOf, typename ToJson>
Json of_token(const Ring<T>& ring, size_t index, TokenOf&& token_of, ToJson&& to_json) {
  Json list = Json::array();
  size_t end = ring.size();
  while (end > 0 && token_of(ring[end - 1]) != kPromptToken && token_of(ring[end - 1]) > index)
    --end;
  size_t begin = end;
  while (begin > 0 && token_of(ring[begin - 1]) == index) --begin;
  for (; begin < end; ++begin) list.push_back(to_json(ring[begin]));
  return list;
}

void add_deeper_levels(Json& json, size_t index, Runtime& runtime) {
  const Trace& trace = runtime.trace();
  if (trace.level() < RecordLevel::kLayer) return;
  json["layers"] = of_token(
      trace.layers(), index, [](const LayerSample& sample) { return sample.record.token; },
      [](const LayerSample& sample) {
        Json layer = layer_json(sample.record);
        layer["causes"] = causes_json(sample.causes);
        return layer;
      });
  if (trace.level() < RecordLevel::kRead) return;
  json["reads"] = of_token(
      trace.reads(), index, [](const ReadRecord& read) { return read.token; },
      [&](const ReadRecord& read) {
        Json one = read_json(read, runtime);
        one["guessed"] = read.guessed;
        return one;
      });
}

}  // namespace

Json cost_json(const TokenRecord& record, Runtime& runtime) {
  Json bytes = Json::object();
  for (uint32_t drive = 0; drive < runtime.drive_count(); ++drive)
    bytes[runtime.drive_name(drive)] = record.trace.drive_bytes[drive];
  Json json = {
      {"began_ns", record.began_ns},
      {"wall_ns", record.wall_ns},
      {"causes", causes_json(record.causes)},
      {"hits",
       {{"vram", record.vram_hits}, {"ram", record.ram_hits}, {"drive", record.drive_reads}}},
      {"bytes", std::move(bytes)},
      {"waits", waits_json(record.trace, runtime)},
      {"drive_celsius", celsius_json(record, runtime)},
      {"prefetch",
       {{"experts", record.prefetched},
        {"useful_bytes", record.prefetch_useful_bytes},
        {"wasted_bytes", record.prefetch_wasted_bytes}}},
      {"reads_retried", record.trace.read_retries},
      {"queue_depth_max", record.trace.depth_max},
      {"page_faults", {{"minor", record.load.minor_faults}, {"major", record.load.major_faults}}},
      {"cpu",
       {{"ns", record.load.cpu_ns},
        {"involuntary_switches", record.load.involuntary_switches},
        {"throttled_ns", record.load.throttled_ns}}},
      {"waiting", waiting_json(record.trace.waiting, runtime)}};
  if (record.trace.slowest_layer != kNoLayer)
    json["slowest_layer"] = {{"layer", record.trace.slowest_layer},
                             {"wall_ns", record.trace.slowest_layer_ns}};
  return json;
}

Json token_json(size_t index, const TokenRecord& token, Runtime& runtime) {
  Json json = {{"index", index}, {"token", token.token}};
  json.update(cost_json(token, runtime));
  add_deeper_levels(json, index, runtime);
  return json;
}

Json tokens_json(std::span<const TokenRecord> tokens, Runtime& runtime) {
  Json json = Json::array();
  for (size_t i = 0; i < tokens.size(); ++i) json.push_back(token_json(i, tokens[i], runtime));
  return json;
}

Json vram_json(const Runtime& runtime, uint64_t hits) {
  const Device* device = runtime.device();
  const DeviceDense* dense = runtime.device_dense();
  const DeviceLogits* logits = runtime.device_logits();
  const DeviceExperts* experts = runtime.device_experts();
  const VramCounters counters = experts == nullptr ? VramCounters() : experts->vram().counters();
  const PlacementCounts placed = experts == nullptr ? PlacementCounts() : experts->placements();
  const DeviceChunks* chunks = experts == nullptr ? nullptr : experts->chunks();
  const ChunkCounts chunked = chunks == nullptr ? ChunkCounts() : chunks->counts();
  return {{"version", 1},
          {"state", vram_state_name(runtime.vram_state())},
          {"device", device == nullptr ? "" : device->facts().name},
          {"simulated", device != nullptr && runtime.options().device == DeviceKind::kSim},
          {"budget_bytes", runtime.options().vram_bytes.value_or(0)},
          {"dense_bytes", dense == nullptr ? 0 : dense->weights_bytes()},
          {"kv_bytes", dense == nullptr ? 0 : dense->kv_bytes()},
          {"working_bytes", (dense == nullptr ? 0 : dense->working_bytes()) +
                                (experts == nullptr ? 0 : experts->working_bytes())},
          {"dense_forwards", dense == nullptr ? 0 : dense->forwards()},
          {"dense_chunks", dense == nullptr ? 0 : dense->chunks()},
          {"logits_bytes", logits == nullptr ? 0 : logits->memory_bytes()},
          {"logits_rows", logits == nullptr ? 0 : logits->rows()},
          {"experts_bytes", experts == nullptr ? 0 : experts->vram().memory_bytes()},
          {"layers", experts == nullptr ? 0 : experts->layers_with_slots()},
          {"slots_per_layer", experts == nullptr ? 0 : experts->vram().slots_per_layer()},
          {"resident", experts == nullptr ? 0 : experts->vram().resident_count()},
          {"hits", hits},
          {"promotions", counters.promotions},
          {"promoted_bytes", counters.promoted_bytes},
          {"nominated", experts == nullptr ? 0 : experts->nominated()},
          {"evictions", counters.evictions},
          {"demotions", counters.demotions},
          {"unpaid", counters.unpaid},
          {"no_time", counters.no_time},
          {"busy", counters.busy},
          {"placed_ram_cpu", placed.ram_cpu},
          {"placed_ram_copied", placed.ram_copied},
          {"placed_drive_cpu", placed.drive_cpu},
          {"placed_drive_copied", placed.drive_copied},
          {"chunk_bytes", chunks == nullptr ? 0 : chunks->memory_bytes()},
          {"chunk_in_place", chunked.in_place},
          {"chunk_streamed", chunked.streamed},
          {"chunk_cpu", chunked.cpu}};
}

Json itl_json(std::span<const TokenRecord> tokens) {
  Samples times(std::max<size_t>(tokens.size(), 1));
  for (const TokenRecord& token : tokens) times.add(token.wall_ns);
  return {{"p50", ms(times.percentile(50))},
          {"p90", ms(times.percentile(90))},
          {"p99", ms(times.percentile(99))},
          {"p999", ms(times.percentile(99.9))},
          {"max", ms(times.max())}};
}

Json spikes_json(const SpikeReport& report) {
  Json json = Json::array();
  for (const Spike& spike : report.slowest) {
    json.push_back({{"token", spike.token},
                    {"layer", spike.layer == kNoLayer ? -1 : static_cast<int64_t>(spike.layer)},
                    {"cause", spike_cause_name(spike.cause)},
                    {"sentence", spike.sentence},
                    {"wall_ns", spike.wall_ns},
                    {"excess_ns", spike.excess_ns},
                    {"remedy", remedy_name(spike.remedy)}});
  }
  return json;
}

Json spike_classes_json(const SpikeReport& report) {
  Json json = Json::array();
  for (const SpikeClass& c : report.classes) {
    json.push_back({{"cause", spike_cause_name(c.cause)},
                    {"remedy", remedy_name(c.remedy)},
                    {"tokens", c.tokens},
                    {"excess_ns", c.excess_ns}});
  }
  return json;
}

Json ceilings_json(const Ceilings& ceilings) {
  Json drives = Json::array();
  for (const DriveCeiling& drive : ceilings.drives) {
    drives.push_back({{"name", drive.name},
                      {"gb_s", drive.bytes_per_s() / 1e9},
                      {"expected_gb_s", drive.expected_bytes_per_s / 1e9},
                      {"bytes", drive.bytes},
                      {"busy_ns", drive.busy_ns}});
  }
  return {{"ram_read_gb_s", ceilings.ram_bytes_per_s / 1e9},
          {"ram_bytes", ceilings.ram_bytes},
          {"ram_fits_cache", ceilings.ram_is_cache},
          {"weight_bytes_per_token", ceilings.token_bytes},
          {"tok_s", ceilings.tokens_per_s()},
          {"drives", std::move(drives)}};
}

}  // namespace offstage
