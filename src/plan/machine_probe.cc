#include "plan/machine_probe.h"

#include <algorithm>
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
#include "io/read_scheduler.h"
#include "plan/cpu_trial.h"
#include "plan/drive_trial.h"

namespace offstage {
namespace {

constexpr uint64_t kFileBytesMin = 16ull << 20;
constexpr uint64_t kFileBytesGood = 1ull << 30;  // more than a drive has memory for
constexpr uint32_t kReadBytes = 1u << 20;  // about an expert's matrix; the probe tries shorter ones
constexpr uint32_t kDepthMax = 32;
constexpr int64_t kLatencyNs = 300'000'000;
constexpr uint32_t kLatencyBytes = 64u << 10;  // so few that their transfer hardly shows
constexpr size_t kMatrixBytes = 8u << 20;      // multiplied while the drive reads

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
    profile_.machine = fmt::format("{}, {} threads, {}", processor_name(), workers_.size(),
                                   format_bytes(profile_.ram_bytes));
    CpuTrialParts cpu = {*kernels_, workers_, clock_, memory_};
    cpu.format_ns = options_.format_ns;
    cpu.progress = [&](size_t done, size_t total) { say("processors", done, total); };
    try_cpu(cpu, profile_, notices_);
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
    DriveTrialShape shape;
    shape.range_bytes = file_bytes;
    shape.block_bytes = kLatencyBytes;
    shape.memory = memory_;
    shape.time_ns = kLatencyNs;
    shape.seed = quick.seed + 1;
    OFFSTAGE_TRY(const DriveTrial idle, try_drive(*engine, clock_, shape));
    shape.block_bytes = asked.block_bytes;
    OFFSTAGE_TRY(const DriveTrial lone, try_drive(*engine, clock_, shape));
    shape.depth = asked.depth;
    shape.time_ns = options_.drive_ns;
    OFFSTAGE_TRY(const DriveTrial loaded, try_drive(*engine, clock_, shape));
    add_drive(path, asked, {idle, lone, loaded});
    profile_.wake_ns = std::max(profile_.wake_ns, idle.wake_ns);
    if (profile_.drives.size() == 1) OFFSTAGE_TRY_VOID(measure_slowdown(*engine, path, file_bytes));
    return {};
  }

  struct DriveTrials {
    const DriveTrial &idle, &lone, &loaded;  // short reads, one long one at a time, many
  };

  // The simulated drive (io/sim.h): a latency, exponential jitter on it, the speed at which one
  // read's bytes come, and a bus for those of all.
  void add_drive(const std::string& path, const DriveProfile& asked, const DriveTrials& trials) {
    const auto& [idle, lone, loaded] = trials;
    DriveSpeed drive;
    drive.name = drive_name(path);
    drive.bytes_per_s = loaded.bytes_per_s;
    drive.slowest_second = loaded.slowest_second;
    drive.block_bytes = asked.block_bytes;
    drive.depth = asked.depth;
    drive.channels = kDepthMax;
    drive.latency_ns = idle.least_ns;
    drive.jitter_ns = std::max<int64_t>(idle.mean_ns - idle.least_ns, 0);
    drive.read_p99_ns = loaded.p99_ns;
    const int64_t moved_ns = lone.mean_ns - drive.latency_ns - drive.jitter_ns;
    if (moved_ns > 0)
      drive.lone_bytes_per_s =
          static_cast<double>(asked.block_bytes) * 1e9 / static_cast<double>(moved_ns);
    profile_.drives.push_back(std::move(drive));
  }

  // The same products alone and while the drive reads at its depth into memory that is hashed.
  Status measure_slowdown(IoEngine& engine, const std::string& path, uint64_t file_bytes) {
    CpuTrialParts alone = {*kernels_, workers_, clock_, memory_.first(kMatrixBytes)};
    alone.format_ns = kLatencyNs;
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
    while (reads.unfinished() != 0) reads.reap(done, kLatencyNs);
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
