#include "plan/machine_probe.h"

#include <algorithm>
#include <array>
#include <fstream>

#include "base/arena.h"
#include "base/checked_math.h"
#include "base/process_memory.h"
#include "base/rng.h"
#include "base/units.h"
#include "io/drive_name.h"
#include "io/drive_probe.h"
#include "io/drive_profile.h"
#include "io/file.h"
#include "io/hash_index.h"
#include "io/read_scheduler.h"
#include "plan/cpu_trial.h"
#include "plan/drive_trial.h"
#include "plan/layer_trial.h"
#include "runtime/ceilings.h"

namespace offstage {
namespace {

constexpr uint64_t kFileBytesMin = 16ull << 20;
constexpr uint64_t kFileBytesGood = 1ull << 30;  // more than a drive has memory for
constexpr uint32_t kReadBytes = 1u << 20;  // about an expert's matrix; the probe tries shorter ones
constexpr uint32_t kDepthMax = 32;
constexpr int64_t kTrialNs = 300'000'000;
constexpr int64_t kPauseNs = 200'000;  // a layer's arithmetic
constexpr uint32_t kVolley = 16;
constexpr size_t kMatrixBytes = 8u << 20;  // multiplied while the drive reads

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

class MachineProbe {
 public:
  MachineProbe(const MachineProbeOptions& options, const Clock& clock, Notices& notices)
      : options_(options), clock_(clock), notices_(notices), workers_(options.threads, notices) {}

  Result<HardwareProfile> run() {
    OFFSTAGE_TRY_VOID(check_files());
    OFFSTAGE_TRY(kernels_, choose_kernels(options_.isa));
    const uint64_t bytes = std::max<uint64_t>(
        std::min(options_.memory_bytes, available_bytes() / 4), kDepthMax * uint64_t{kReadBytes});
    OFFSTAGE_TRY(HostArena memory, HostArena::create("the machine's probe", bytes, notices_));
    OFFSTAGE_TRY_VOID(memory.populate());
    memory_ = {memory.data(), round_down(memory.size_bytes(), kSectorBytes)};
    profile_.date = utc_date();
    profile_.ram_bytes = available_bytes() + resident_bytes();
    profile_.cache_bytes = last_level_cache_bytes();
    profile_.machine = fmt::format("{}, {} threads, {}", processor_name(), workers_.size(),
                                   format_bytes(profile_.ram_bytes));
    CpuTrialParts cpu = {*kernels_, workers_, clock_, memory_};
    cpu.format_ns = options_.format_ns;
    cpu.progress = [&](size_t done, size_t total) { say("processors", done, total); };
    try_cpu(cpu, profile_, notices_);
    time_layers();
    for (size_t i = 0; i < options_.files.size(); ++i) {
      say("drives", i, options_.files.size());
      OFFSTAGE_TRY_VOID(probe_drive_of(options_.files[i]));
    }
    return std::move(profile_);
  }

 private:
  void say(std::string_view what, uint64_t done, uint64_t total) {
    if (options_.progress) options_.progress(what, done, total);
  }

  // Before anything takes time.
  Status check_files() const {
    Notices unheard;
    OFFSTAGE_TRY(const auto files, open_read_files(options_.files, DirectIo::kAuto, unheard));
    for (const ReadFile& file : files)
      if (file.bytes < kFileBytesMin)
        return make_error(ErrorCode::kInvalidArgument,
                          "{}: expected a file of at least {} to read in, found {}", file.path,
                          format_bytes(kFileBytesMin), format_bytes(file.bytes));
    return {};
  }

  void time_layers() {
    if (options_.layer_model.empty()) return;
    const Result<LayerTrial> trial =
        try_layers({options_.layer_model, options_.threads, options_.isa, profile_});
    if (!trial)
      return notices_.add(
          "probe",
          trial.error().message + "; a layer's time beside its weights is counted by hand-outs");
    profile_.attention_ns = trial->attention_ns;
    profile_.router_ns = trial->router_ns;
    profile_.experts_ns = trial->experts_ns;
  }

  Status probe_drive_of(const std::string& path) {
    OFFSTAGE_TRY(
        const auto engine,
        open_io_engine({.paths = {path}, .depth = kDepthMax, .buffers = {memory_}}, notices_));
    const uint64_t file_bytes = engine->file_bytes(0);
    if (file_bytes < kFileBytesGood)
      notices_.add("probe", fmt::format("{}: of its {} the drive may hold much in its own memory; "
                                        "a larger file tells more",
                                        path, format_bytes(file_bytes)));
    if (!engine->direct_io(0))
      notices_.add("probe", path + ": reads go through the page cache; speeds may be memory's");
    DriveProbeShape quick;
    quick.range_bytes = file_bytes;
    quick.read_bytes = kReadBytes;
    quick.depth_max = kDepthMax;
    quick.seed = static_cast<uint64_t>(clock_.now_ns());
    quick.memory = memory_;
    OFFSTAGE_TRY(const DriveProfile asked, probe_drive(*engine, clock_, quick));
    DriveSpeed drive;
    drive.name = drive_name(path);
    drive.block_bytes = asked.block_bytes;
    drive.depth = asked.depth;
    drive.channels = kDepthMax;
    DriveTrialShape shape;
    shape.range_bytes = file_bytes;
    shape.memory = memory_;
    shape.seed = quick.seed + 1;
    OFFSTAGE_TRY(const DriveTrials trials, try_reads(*engine, shape, drive));
    fit_drive(trials, drive);
    profile_.drives.push_back(std::move(drive));
    profile_.wake_ns = std::max(profile_.wake_ns, trials.burst.wake_ns);
    if (profile_.drives.size() == 1) OFFSTAGE_TRY_VOID(measure_slowdown(*engine, path, file_bytes));
    return {};
  }

  Result<DriveTrials> try_reads(IoEngine& engine, DriveTrialShape shape, const DriveSpeed& drive) {
    DriveTrials trials;
    const auto take = [&](DriveTrial& trial, uint32_t block_bytes, uint32_t depth,
                          int64_t time_ns) -> Status {
      shape.block_bytes = block_bytes;
      shape.depth = depth;
      shape.time_ns = time_ns;
      OFFSTAGE_TRY(trial, try_drive(engine, clock_, shape));
      return {};
    };
    shape.pause_ns = kPauseNs;
    OFFSTAGE_TRY_VOID(take(trials.idle, kShortReadBytes, 1, kTrialNs));
    OFFSTAGE_TRY_VOID(take(trials.lone, drive.block_bytes, 1, kTrialNs));
    HashTimes hashed, longer_hashed;
    shape.after_burst = [&](std::span<const std::byte> burst) { hash_burst(burst, hashed); };
    OFFSTAGE_TRY_VOID(take(trials.burst, kShortReadBytes, kBurst, kTrialNs));
    shape.after_burst = [&](std::span<const std::byte> burst) { hash_burst(burst, longer_hashed); };
    OFFSTAGE_TRY_VOID(take(trials.longer_burst, kLongerReadBytes, kBurst, kTrialNs));
    shape.after_burst = {};
    fit_hashing(hashed, longer_hashed);
    shape.pause_ns = 0;
    OFFSTAGE_TRY_VOID(take(trials.loaded, drive.block_bytes, drive.depth, options_.drive_ns));
    shape.block_bytes = kReadBytes;
    shape.depth = kVolley;
    OFFSTAGE_TRY(trials.answers_together,
                 answers_together(engine, clock_, shape, trials.loaded.bytes_per_s));
    return trials;
  }

  struct HashTimes {
    int64_t ns = 0, n = 0;
    double mean_ns() const { return static_cast<double>(ns) / static_cast<double>(n); }
  };

  // What has just come, by workers who slept meanwhile.
  void hash_burst(std::span<const std::byte> burst, HashTimes& times) {
    const size_t bytes = burst.size() / kBurst;
    std::array<PieceHash, kBurst> hashes;
    const int64_t begin_ns = clock_.now_ns();
    workers_.parallel_for(kBurst, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
      for (uint32_t i = begin; i < end; ++i)
        hashes[i] = hash_piece(burst.subspan(i * bytes, bytes));
    });
    times.ns += clock_.now_ns() - begin_ns;
    ++times.n;
  }

  // Bytes that a drive has just written aren't as near as others, and who sleeps has to wake.
  void fit_hashing(const HashTimes& times, const HashTimes& longer_times) {
    const double bytes = double{kBurst} * kShortReadBytes;
    const double more_bytes = double{kBurst} * (kLongerReadBytes - kShortReadBytes);
    const double more_ns = longer_times.mean_ns() - times.mean_ns();
    if (more_ns > 0)
      profile_.hash_bytes_per_s =
          std::min(profile_.hash_bytes_per_s, more_bytes * 1e9 / more_ns / workers_.size());
    const double hash_ns = bytes * 1e9 / (profile_.hash_bytes_per_s * workers_.size());
    profile_.asleep_ns =
        std::max(profile_.asleep_ns, static_cast<int64_t>(times.mean_ns() - hash_ns));
  }

  // The same products alone and while the drive reads at its depth into memory that is hashed.
  Status measure_slowdown(IoEngine& engine, const std::string& path, uint64_t file_bytes) {
    CpuTrialParts alone = {*kernels_, workers_, clock_, memory_.first(kMatrixBytes)};
    alone.format_ns = kTrialNs;
    const double alone_bytes_per_s = decode_bytes_per_s(alone, TensorType::kQ4_K);
    const DriveSpeed& drive = profile_.drives.front();
    const std::span<std::byte> target = memory_.subspan(kMatrixBytes);
    const uint32_t n =
        std::min<uint32_t>(drive.depth, static_cast<uint32_t>(target.size() / drive.block_bytes));
    if (n == 0) return {};
    ReadSchedulerOptions scheduling;
    scheduling.block_bytes = drive.block_bytes;
    ReadScheduler reads(engine, {path}, clock_, scheduling, n);
    Rng rng(1);
    const uint64_t places = (file_bytes - drive.block_bytes) / kSectorBytes + 1;
    const auto start = [&](uint32_t i) {
      reads.start({.extent = {0, rng.below(places) * kSectorBytes, drive.block_bytes},
                   .buffer = target.data() + uint64_t{i} * drive.block_bytes,
                   .cookie = i});
    };
    for (uint32_t i = 0; i < n; ++i) start(i);
    std::vector<ReadDone> done(n);
    Status status;
    workers_.set_between_chunks([&] {
      const size_t count = reads.reap(done, 0);
      for (const ReadDone& read : std::span(done).first(count)) {
        if (!read.status) status = read.status;
        if (status) start(static_cast<uint32_t>(read.cookie));
      }
    });
    const double beside_bytes_per_s = decode_bytes_per_s(alone, TensorType::kQ4_K);
    workers_.set_between_chunks([] {});
    while (reads.unfinished() != 0) reads.reap(done, kTrialNs);
    OFFSTAGE_TRY_VOID(std::move(status));
    profile_.slowdown_beside_reads = std::clamp(alone_bytes_per_s / beside_bytes_per_s, 1.0, 100.0);
    return {};
  }

  const MachineProbeOptions& options_;
  const Clock& clock_;
  Notices& notices_;
  ThreadPool workers_;
  const Kernels* kernels_ = nullptr;
  std::span<std::byte> memory_;
  HardwareProfile profile_;
};

}  // namespace

Result<HardwareProfile> probe_machine(const MachineProbeOptions& options, const Clock& clock,
                                      Notices& notices) {
  if (options.files.empty())
    return make_error(ErrorCode::kInvalidArgument,
                      "a probe of drives needs a file on each of them");
  return MachineProbe(options, clock, notices).run();
}

}  // namespace offstage
