#include "app/timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "cache/expert_layout.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDecodeTrack = 1;
constexpr int kFirstWorkerTrack = 2;
constexpr const char* kCpusCounter = "CPUs in use";
constexpr int kTracksPerDrive = 2000;  // no machine has as many workers

// Events go to the file one by one: a timeline is larger than anything else a run keeps.
class EventFile {
 public:
  EventFile(const std::string& path, int64_t origin_ns)
      : file_(path, std::ios::binary), origin_ns_(origin_ns) {
    file_ << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  }

  void name_track(int track, const std::string& name) {
    add({{"ph", "M"},
         {"name", "thread_name"},
         {"pid", 1},
         {"tid", track},
         {"args", {{"name", name}}}});
    add({{"ph", "M"},
         {"name", "thread_sort_index"},
         {"pid", 1},
         {"tid", track},
         {"args", {{"sort_index", track}}}});
  }
  void slice(int track, const std::string& name, int64_t begin_ns, int64_t length_ns, Json args) {
    add({{"ph", "X"},
         {"name", name},
         {"pid", 1},
         {"tid", track},
         {"ts", static_cast<double>(begin_ns - origin_ns_) / 1e3},
         {"dur", static_cast<double>(length_ns) / 1e3},
         {"args", std::move(args)}});
  }
  void counter(const std::string& name, int64_t at_ns, double value) {
    add({{"ph", "C"},
         {"name", name},
         {"pid", 1},
         {"ts", static_cast<double>(at_ns - origin_ns_) / 1e3},
         {"args", {{"value", value}}}});
  }
  bool close() {
    file_ << "\n]}\n";
    file_.close();
    return static_cast<bool>(file_);
  }

 private:
  void add(const Json& event) {
    file_ << (first_ ? "" : ",\n") << event.dump();
    first_ = false;
  }
  std::ofstream file_;
  int64_t origin_ns_;
  bool first_ = true;
};

Json causes_ms(const CauseTimes& causes) {
  Json json;
  for (size_t i = 0; i < kCauseCount; ++i)
    if (causes.ns[i] != 0)
      json[std::string(cause_name(static_cast<Cause>(i))) + " ms"] =
          static_cast<double>(causes.ns[i]) / 1e6;
  return json;
}

void add_token(EventFile& file, const std::string& name, const TokenRecord& token) {
  Json args = causes_ms(token.causes);
  args["RAM hits"] = token.ram_hits;
  args["drive reads"] = token.drive_reads;
  args["bytes read"] = token.bytes_read;
  args["CPU ms"] = static_cast<double>(token.load.cpu_ns) / 1e6;
  args["throttled ms"] = static_cast<double>(token.load.throttled_ns) / 1e6;
  args["pushed aside"] = token.load.involuntary_switches;
  args["major faults"] = token.load.major_faults;
  file.slice(kDecodeTrack, name, token.began_ns, token.wall_ns, std::move(args));
  // How busy all threads were, on average: a token that took long while this fell was kept from
  // computing.
  file.counter(kCpusCounter, token.began_ns,
               static_cast<double>(token.load.cpu_ns) /
                   static_cast<double>(std::max<int64_t>(token.wall_ns, 1)));
}

void add_layers(EventFile& file, const Trace& trace) {
  for (size_t i = 0; i < trace.layers().size(); ++i) {
    const LayerSample& sample = trace.layers()[i];
    Json args = causes_ms(sample.causes);
    args["misses"] = sample.record.all_misses();
    file.slice(kDecodeTrack, fmt::format("layer {}", sample.record.layer), sample.record.began_ns,
               sample.record.wall_ns, std::move(args));
  }
}

// What each compute thread had a share in; the first is the decode thread itself.
void add_workers(EventFile& file, const ThreadPool& workers) {
  for (uint32_t worker = 0; worker < workers.size(); ++worker) {
    const Ring<WorkerSpan>* spans = workers.spans(worker);
    if (spans == nullptr) return;
    const int track = kFirstWorkerTrack + static_cast<int>(worker);
    file.name_track(track, fmt::format("worker {}", worker));
    for (size_t i = 0; i < spans->size(); ++i) {
      const WorkerSpan& span = (*spans)[i];
      file.slice(track, std::string(cause_name(static_cast<Cause>(span.tag))), span.begin_ns,
                 span.end_ns - span.begin_ns, Json::object());
    }
  }
}

// Reads of a drive overlap; each goes to the first of its tracks that is free again. The ring has
// them in order of completion, so a later one may have begun earlier: a track is free if it had
// nothing since the read was issued.
void add_reads(EventFile& file, Runtime& runtime) {
  const Trace& trace = runtime.trace();
  std::vector<std::vector<int64_t>> free_ns(runtime.drive_count());  // [drive][track]
  for (size_t i = 0; i < trace.reads().size(); ++i) {
    const ReadRecord& read = trace.reads()[i];
    std::vector<int64_t>& tracks = free_ns[read.drive];
    size_t track = 0;
    while (track < tracks.size() && tracks[track] > read.issued_ns) ++track;
    const int id = (read.drive + 1) * kTracksPerDrive + static_cast<int>(track);
    if (track == tracks.size()) {
      tracks.push_back(0);
      file.name_track(id, fmt::format("{} read {}", runtime.drive_name(read.drive), track + 1));
    }
    tracks[track] = read.completed_ns;
    constexpr const char* kMatrices[] = {"gate", "up", "down"};
    file.slice(id,
               fmt::format("layer {} expert {} {}", read.layer, read.expert,
                           kMatrices[read.matrix % kExpertMatrices]),
               read.issued_ns, read.completed_ns - read.issued_ns,
               {{"bytes", read.bytes},
                {"queued ms", static_cast<double>(read.queued_ns()) / 1e6},
                {"guessed", read.guessed},
                {"retries", read.retries}});
  }
}

}  // namespace

Status write_timeline(const std::string& path, const TokenRecord& prompt,
                      std::span<const TokenRecord> tokens, Runtime& runtime) {
  EventFile file(path, prompt.began_ns);
  file.name_track(kDecodeTrack, "decode");
  add_token(file, "prompt", prompt);
  for (size_t i = 0; i < tokens.size(); ++i) add_token(file, fmt::format("token {}", i), tokens[i]);
  add_layers(file, runtime.trace());
  add_workers(file, runtime.workers());
  add_reads(file, runtime);
  if (!file.close())
    return make_error(ErrorCode::kIo, "{}: cannot write the timeline: {}", path,
                      std::strerror(errno));
  return {};
}

}  // namespace offstage
