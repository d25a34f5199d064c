#include "runtime/spikes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/units.h"

namespace offstage {
namespace {

constexpr std::array<std::string_view, kSpikeCauses> kCauseNames = {
    "misses",       "late_read", "drive_queue",   "slow_drive",  "less_hidden",
    "read_retried", "cpu_taken", "cpu_throttled", "page_faults", "compute",
    "hash",         "gpu",       "other"};
constexpr std::array<std::string_view, 4> kRemedyNames = {"more RAM", "faster drive",
                                                          "second drive", "nothing"};
constexpr std::array<std::string_view, 3> kMatrixNames = {"gate", "up", "down"};

// A wait is one read's doing if it is half of what is to be explained and out of the ordinary.
constexpr int64_t kLateRatio = 3;
// More misses than usual; reads slower than usual.
constexpr double kMoreRatio = 1.25;
// Reads that are more than usual and slower by this much more.
constexpr double kSlowerThanMore = 1.5;
// Of the CPUs that are in use on average.
constexpr double kFewerCpus = 0.9;
// A queue so deep is kept full: a second drive halves it, a faster one shortens every read.
constexpr uint32_t kDeepQueue = 8;

bool any(const TokenRecord&) { return true; }
bool has_reads(const TokenRecord& token) { return token.trace.reads != 0; }
bool has_waited(const TokenRecord& token) { return token.trace.waiting.longest_ns != 0; }

// Of the tokens that `counts`; 0 if there are none.
template <typename Value>
int64_t median_of(std::span<const TokenRecord> tokens, Value&& value,
                  bool (*counts)(const TokenRecord&) = any) {
  std::vector<int64_t> values;
  values.reserve(tokens.size());
  for (const TokenRecord& token : tokens)
    if (counts(token)) values.push_back(static_cast<int64_t>(value(token)));
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The token that every other one is held against: each of its numbers is a median.
struct Typical {
  int64_t wall_ns = 0;
  CauseTimes causes;
  int64_t drive_reads = 0;
  int64_t longest_wait_ns = 0;
  int64_t service_ns = 0;  // of one read
  int64_t cpu_ns = 0;
};

int64_t service_per_read(const TokenRecord& token) {
  return token.trace.reads == 0 ? 0 : token.trace.service_ns / token.trace.reads;
}

Typical typical_of(std::span<const TokenRecord> tokens) {
  Typical typical;
  typical.wall_ns = median_of(tokens, [](const TokenRecord& t) { return t.wall_ns; });
  for (size_t i = 0; i < kCauseCount; ++i)
    typical.causes.ns[i] = median_of(tokens, [&](const TokenRecord& t) { return t.causes.ns[i]; });
  typical.drive_reads = median_of(tokens, [](const TokenRecord& t) { return t.drive_reads; });
  // A token without reads says nothing about how long one takes.
  typical.longest_wait_ns = median_of(
      tokens, [](const TokenRecord& t) { return t.trace.waiting.longest_ns; }, has_waited);
  typical.service_ns = median_of(tokens, service_per_read, has_reads);
  typical.cpu_ns = median_of(tokens, [](const TokenRecord& t) { return t.load.cpu_ns; });
  return typical;
}

int64_t excess_of(const TokenRecord& token, const Typical& typical,
                  std::initializer_list<Cause> causes) {
  int64_t excess = 0;
  for (const Cause cause : causes) excess += token.causes[cause] - typical.causes[cause];
  return excess;
}

double ratio(int64_t value, int64_t usual) {
  return static_cast<double>(value) / static_cast<double>(std::max<int64_t>(usual, 1));
}

// Asleep though what was waited for had come.
int64_t woken_ns(const TokenRecord& token) {
  int64_t sum = 0;
  for (const DriveWait& wait : token.trace.waits) sum += wait.woken_ns;
  return sum;
}

SpikeCause drive_cause(const TokenRecord& token, const Typical& typical, int64_t excess_ns) {
  const LayerRecord& layer = token.trace.waiting;
  const bool one_read =
      2 * layer.longest_ns >= excess_ns && layer.longest_ns >= kLateRatio * typical.longest_wait_ns;
  // The read had come long before the sleep ended: nobody let the thread wake.
  const ReadRecord& read = layer.longest;
  const int64_t woken_late_ns = layer.longest_ns - (read.completed_ns - read.started_ns);
  if (2 * std::max(woken_late_ns, woken_ns(token)) >= excess_ns) return SpikeCause::kCpuTaken;
  if (one_read && layer.longest.retries != 0) return SpikeCause::kReadRetried;
  if (one_read && layer.longest.service_ns() >= kLateRatio * typical.service_ns &&
      2 * layer.longest.service_ns() >= layer.longest_ns)
    return SpikeCause::kLateRead;
  const double more = ratio(static_cast<int64_t>(token.drive_reads), typical.drive_reads);
  const double slower = ratio(service_per_read(token), typical.service_ns);
  const bool are_more = static_cast<double>(token.drive_reads) >=
                        kMoreRatio * static_cast<double>(typical.drive_reads) + 1;
  // Reads that wait for one another are each slower too, as much as they are more.
  if (are_more && slower < kSlowerThanMore * more) return SpikeCause::kMisses;
  if (one_read && 2 * layer.longest.queued_ns() >= layer.longest_ns) return SpikeCause::kDriveQueue;
  // The drive is to blame only if its reads say so: the same reads cost more waiting, too, when
  // they are asked for later, or when less was computed meanwhile.
  return slower >= kMoreRatio ? SpikeCause::kSlowDrive : SpikeCause::kLessHidden;
}

// Computing is spread over all workers: the same work with fewer CPUs lost one to others, though
// those that were left, waiting for it, may have used more CPU time than usual.
bool had_fewer_cpus(const TokenRecord& token, const Typical& typical) {
  const auto cpus = [](int64_t cpu_ns, int64_t wall_ns) {
    return static_cast<double>(cpu_ns) / static_cast<double>(std::max<int64_t>(wall_ns, 1));
  };
  return cpus(token.load.cpu_ns, token.wall_ns) <
         kFewerCpus * cpus(typical.cpu_ns, typical.wall_ns);
}

// A quota counts per CPU, and a token may lose several at once.
bool is_throttled(const TokenRecord& token, int64_t excess_ns) {
  return 4 * token.load.throttled_ns >= excess_ns;
}

// Work of the CPU, verifying too, gets CPU time for what it takes: what is missing was taken.
SpikeCause cpu_cause(const TokenRecord& token, const Typical& typical, int64_t excess_ns,
                     SpikeCause more_work) {
  if (is_throttled(token, excess_ns)) return SpikeCause::kCpuThrottled;
  const bool is_spread = more_work == SpikeCause::kCompute;
  if (2 * (token.load.cpu_ns - typical.cpu_ns) < excess_ns ||
      (is_spread && had_fewer_cpus(token, typical)))
    return token.load.major_faults != 0 ? SpikeCause::kPageFaults : SpikeCause::kCpuTaken;
  return more_work;
}

SpikeCause cause_of(const TokenRecord& token, const Typical& typical) {
  const int64_t drive = excess_of(token, typical, {Cause::kWaitDrive});
  const int64_t compute = excess_of(
      token, typical,
      {Cause::kAttention, Cause::kRouter, Cause::kExperts, Cause::kOutput, Cause::kLookahead});
  const int64_t hash = excess_of(token, typical, {Cause::kHash});
  const int64_t other =
      excess_of(token, typical,
                {Cause::kCache, Cause::kSample, Cause::kCaller, Cause::kRecord, Cause::kOther});
  const int64_t taken = excess_of(token, typical, {Cause::kDescheduled});
  const int64_t device = excess_of(token, typical, {Cause::kGpu, Cause::kPcie});
  const int64_t most = std::max({drive, compute, hash, device, other, taken});
  if (most == drive) return drive_cause(token, typical, drive);
  if (most == taken)
    return is_throttled(token, taken) ? SpikeCause::kCpuThrottled : SpikeCause::kCpuTaken;
  if (most == compute) return cpu_cause(token, typical, compute, SpikeCause::kCompute);
  if (most == hash) return cpu_cause(token, typical, hash, SpikeCause::kHash);
  if (most == device) return SpikeCause::kGpu;
  // What the caller did between tokens is its own; sampling and bookkeeping are work.
  const int64_t between = excess_of(token, typical, {Cause::kCaller, Cause::kOther});
  if (2 * between >= other) return SpikeCause::kOther;
  return cpu_cause(token, typical, other, SpikeCause::kOther);
}

Remedy remedy_for(SpikeCause cause, const TokenRecord& token) {
  switch (cause) {
    case SpikeCause::kMisses: return Remedy::kMoreRam;
    case SpikeCause::kDriveQueue: return Remedy::kSecondDrive;
    case SpikeCause::kSlowDrive:
    case SpikeCause::kLessHidden:
      return token.trace.depth_max >= kDeepQueue ? Remedy::kSecondDrive : Remedy::kFasterDrive;
    case SpikeCause::kHash: return Remedy::kMoreRam;  // what stays in RAM isn't verified again
    default: return Remedy::kNothing;
  }
}

bool is_drive_cause(SpikeCause cause) { return cause <= SpikeCause::kReadRetried; }

uint32_t layer_of(SpikeCause cause, const TokenRecord& token) {
  return is_drive_cause(cause) ? token.trace.waiting.layer : token.trace.slowest_layer;
}

std::string name_of(uint32_t drive, std::span<const std::string> drives) {
  return drive < drives.size() ? drives[drive] : fmt::format("drive {}", drive);
}

// "3 misses on nvme1", "2 misses on sda, 1 on sdb", "3 misses striped over sda and sdb".
std::string misses_text(const LayerRecord& layer, std::span<const std::string> drives) {
  std::string text, striped_over;
  const auto add = [&](uint32_t n, std::string_view where, const std::string& name) {
    text += text.empty() ? fmt::format("{} miss{} {} {}", n, n == 1 ? "" : "es", where, name)
                         : fmt::format(", {} {} {}", n, where, name);
  };
  for (uint32_t drive = 0; drive < kDrivesMax; ++drive) {
    if (layer.misses[drive] != 0) add(layer.misses[drive], "on", name_of(drive, drives));
    if ((layer.striped_over >> drive & 1) == 0) continue;
    striped_over += (striped_over.empty() ? "" : " and ") + name_of(drive, drives);
  }
  if (layer.striped_misses != 0) add(layer.striped_misses, "striped over", striped_over);
  return text.empty() ? "no miss" : text;
}

std::string read_text(const ReadRecord& read) {
  return fmt::format("expert {} ({})", read.expert, kMatrixNames[read.matrix % 3]);
}

std::string warmth_text(int16_t celsius) {
  return celsius == kNoTemperature ? "" : fmt::format("; it is {} °C warm", celsius);
}

std::string ready_text(int64_t descheduled_ns) {
  return descheduled_ns == 0 ? ""
                             : fmt::format(" for {} in which the decode thread was ready to run",
                                           format_duration_ns(descheduled_ns));
}

std::string reason_text(SpikeCause cause, const TokenRecord& token, const Typical& typical) {
  const LayerRecord& layer = token.trace.waiting;
  const ReadRecord& read = layer.longest;
  switch (cause) {
    case SpikeCause::kMisses:
      return fmt::format("{} experts of the token had to be read, {} are usual", token.drive_reads,
                         typical.drive_reads);
    case SpikeCause::kLateRead:
      return fmt::format("one read, {}, was {} with the drive, {} is usual", read_text(read),
                         format_duration_ns(read.service_ns()),
                         format_duration_ns(typical.service_ns));
    case SpikeCause::kDriveQueue:
      return fmt::format("one read, {}, stood {} behind others", read_text(read),
                         format_duration_ns(read.queued_ns()));
    case SpikeCause::kSlowDrive:
      return fmt::format("the drive took {} for a read, {} is usual{}",
                         format_duration_ns(service_per_read(token)),
                         format_duration_ns(typical.service_ns),
                         warmth_text(token.drive_celsius[read.drive]));
    case SpikeCause::kLessHidden:
      return fmt::format(
          "reads no slower than usual, {} each, but {} of them weren't hidden behind computing, {} "
          "are usual",
          format_duration_ns(service_per_read(token)),
          format_duration_ns(token.causes[Cause::kWaitDrive]),
          format_duration_ns(typical.causes[Cause::kWaitDrive]));
    case SpikeCause::kReadRetried:
      return fmt::format("one read, {}, was asked for {} times", read_text(read), read.retries + 1);
    case SpikeCause::kCpuTaken:
      return fmt::format("others used the CPU{}: {} of CPU time, pushed aside {} times",
                         ready_text(token.causes[Cause::kDescheduled]),
                         format_duration_ns(token.load.cpu_ns), token.load.involuntary_switches);
    case SpikeCause::kCpuThrottled:
      return fmt::format("the cgroup's CPU quota was used up for {}",
                         format_duration_ns(token.load.throttled_ns));
    case SpikeCause::kPageFaults:
      return fmt::format("{} page faults went to a drive", token.load.major_faults);
    case SpikeCause::kCompute:
      return fmt::format("computing took {} of CPU time, {} is usual",
                         format_duration_ns(token.load.cpu_ns), format_duration_ns(typical.cpu_ns));
    case SpikeCause::kHash:
      return fmt::format("verifying took {}", format_duration_ns(token.causes[Cause::kHash]));
    case SpikeCause::kGpu:
      return fmt::format("the GPU took {} and copies to it {}, {} and {} are usual",
                         format_duration_ns(token.causes[Cause::kGpu]),
                         format_duration_ns(token.causes[Cause::kPcie]),
                         format_duration_ns(typical.causes[Cause::kGpu]),
                         format_duration_ns(typical.causes[Cause::kPcie]));
    case SpikeCause::kOther: break;
  }
  return fmt::format(
      "sampling took {}, bookkeeping {}, and {} went by between tokens",
      format_duration_ns(token.causes[Cause::kSample]),
      format_duration_ns(token.causes[Cause::kCache]),
      format_duration_ns(token.causes[Cause::kCaller] + token.causes[Cause::kRecord] +
                         token.causes[Cause::kOther]));
}

// "token 812: 340 ms, layer 31, 3 misses on nvme1, 290 ms waiting at queue depth 4; …"
std::string sentence_of(uint32_t index, SpikeCause cause, const TokenRecord& token,
                        const Typical& typical, std::span<const std::string> drives) {
  std::string text = fmt::format("token {}: {}", index, format_duration_ns(token.wall_ns));
  const LayerRecord& layer = token.trace.waiting;
  if (is_drive_cause(cause)) {
    text +=
        fmt::format(", layer {}, {}, {} waiting at queue depth {}", layer.layer,
                    misses_text(layer, drives), format_duration_ns(layer.wait_ns), layer.depth_max);
  } else if (token.trace.slowest_layer != kNoLayer) {
    text += fmt::format(", layer {} slowest with {}", token.trace.slowest_layer,
                        format_duration_ns(token.trace.slowest_layer_ns));
  }
  return text + "; " + reason_text(cause, token, typical);
}

void add_to_class(std::vector<SpikeClass>& classes, SpikeCause cause, Remedy remedy,
                  int64_t excess_ns) {
  const auto same = [&](const SpikeClass& c) { return c.cause == cause && c.remedy == remedy; };
  auto found = std::find_if(classes.begin(), classes.end(), same);
  if (found == classes.end())
    found = classes.insert(classes.end(), SpikeClass{cause, remedy, 0, 0});
  ++found->tokens;
  found->excess_ns += excess_ns;
}

}  // namespace

std::string_view spike_cause_name(SpikeCause cause) {
  return kCauseNames[static_cast<size_t>(cause)];
}

std::string_view remedy_name(Remedy remedy) { return kRemedyNames[static_cast<size_t>(remedy)]; }

SpikeReport explain_spikes(std::span<const TokenRecord> tokens, size_t n,
                           std::span<const std::string> drives) {
  const Typical typical = typical_of(tokens);
  SpikeReport report;
  report.median_ns = typical.wall_ns;
  for (uint32_t i = 0; i < tokens.size(); ++i) {
    const TokenRecord& token = tokens[i];
    if (static_cast<double>(token.wall_ns) < kSlowRatio * static_cast<double>(typical.wall_ns))
      continue;
    const SpikeCause cause = cause_of(token, typical);
    const Remedy remedy = remedy_for(cause, token);
    const int64_t excess_ns = token.wall_ns - typical.wall_ns;
    add_to_class(report.classes, cause, remedy, excess_ns);
    report.slowest.push_back(
        {i, token.wall_ns, excess_ns, layer_of(cause, token), cause, remedy, {}});
  }
  std::stable_sort(report.slowest.begin(), report.slowest.end(),
                   [](const Spike& a, const Spike& b) { return a.wall_ns > b.wall_ns; });
  if (report.slowest.size() > n) report.slowest.resize(n);
  for (Spike& spike : report.slowest)
    spike.sentence = sentence_of(spike.token, spike.cause, tokens[spike.token], typical, drives);
  std::stable_sort(
      report.classes.begin(), report.classes.end(),
      [](const SpikeClass& a, const SpikeClass& b) { return a.excess_ns > b.excess_ns; });
  return report;
}

}  // namespace offstage
