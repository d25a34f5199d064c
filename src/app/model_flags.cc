#include "app/model_flags.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include "app/default_model.h"
#include "base/units.h"
#include "cache/eviction.h"

namespace offstage {
namespace {

template <typename T, size_t N>
Result<T> one_of(const char* flag, const std::string& text,
                 const std::array<std::pair<const char*, T>, N>& choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return make_error(ErrorCode::kInvalidArgument, "{}: expected one of {}, found '{}'", flag, names,
                    text);
}

constexpr std::array kKvTypes = {std::pair("f16", KvType::kF16), std::pair("f32", KvType::kF32),
                                 std::pair("q8_0", KvType::kQ8_0)};
constexpr std::array kEngines = {std::pair("auto", IoEngineKind::kAuto),
                                 std::pair("uring", IoEngineKind::kUring),
                                 std::pair("threads", IoEngineKind::kThreads)};
constexpr std::array kPrefetch = {std::pair("auto", Prefetch::kAuto),
                                  std::pair("off", Prefetch::kOff),
                                  std::pair("always", Prefetch::kAlways)};
constexpr std::array kDevice = {std::pair("auto", DeviceKind::kAuto),
                                std::pair("sim", DeviceKind::kSim)};
constexpr std::array kPromote = {std::pair("auto", Promote::kAuto), std::pair("off", Promote::kOff),
                                 std::pair("always", Promote::kAlways)};
constexpr std::array kPlacement = {std::pair("auto", Placement::kAuto),
                                   std::pair("cpu", Placement::kCpu),
                                   std::pair("copy", Placement::kCopy)};
constexpr std::array kDense = {std::pair("auto", DensePart::kAuto),
                               std::pair("cpu", DensePart::kCpu)};
constexpr std::array kDemote = {std::pair("auto", true), std::pair("off", false)};
constexpr std::array kRecord = {std::pair("token", RecordLevel::kToken),
                                std::pair("layer", RecordLevel::kLayer),
                                std::pair("read", RecordLevel::kRead)};
constexpr std::array kNuma = {
    std::pair("off", Numa::kOff), std::pair("distribute", Numa::kDistribute),
    std::pair("isolate", Numa::kIsolate), std::pair("numactl", Numa::kNumactl)};
constexpr std::array kProbe = {std::pair("auto", Probe::kAuto), std::pair("off", Probe::kOff),
                               std::pair("force", Probe::kForce)};
constexpr std::array kDirect = {std::pair("auto", DirectIo::kAuto), std::pair("on", DirectIo::kOn),
                                std::pair("off", DirectIo::kOff)};

}  // namespace

void add_model_flag(CLI::App& command, std::string& model) {
  command.add_option("-m,--model", model,
                     "GGUF file, or any one shard of it (default: $OFFSTAGE_MODEL, then the demo)");
}

CLI::Option* add_drive_flag(CLI::App& command, std::vector<std::string>& drives,
                            const std::string& help) {
  return command.add_option("--drive", drives, help)->allow_extra_args(false);
}

void ModelFlags::add_to(CLI::App& command) {
  add_model_flag(command, model);
  add_drive_flag(command, drives, kReadDrivesHelp);
  command.add_option("--ram", ram,
                     "host memory of the whole process, e.g. 8G (default: 90 % of what is free)");
  command.add_option("-c,--ctx-size", context, "positions of context")->capture_default_str();
  command.add_option("-t,--threads", threads, "compute threads (0: one per physical core)")
      ->check(CLI::Range(0u, 1024u))
      ->capture_default_str();
  chunk_option = command
                     .add_option("--ubatch-size", chunk,
                                 "-ub: prompt tokens per forward (default: 512, less when --ram is "
                                 "short, more when the drive is slow)")
                     ->check(CLI::Range(1u, 65536u));
  command
      .add_option("-b,--batch-size", batch, "prompt tokens per forward at most, if -ub isn't given")
      ->check(CLI::Range(1u, 65536u))
      ->capture_default_str();
  command.add_option("--cache-type-k", cache_type_k, "-ctk: keys as f16, f32 or q8_0")
      ->capture_default_str();
  command.add_option("--cache-type-v", cache_type_v, "-ctv: values as f16, f32 or q8_0")
      ->capture_default_str();
  command.add_option("--io-engine", io_engine, "auto, uring or threads")->capture_default_str();
  command.add_option("--direct-io", direct_io, "auto, on or off: reads past the page cache")
      ->capture_default_str();
  io_depth_option =
      command
          .add_option("--io-depth", io_depth,
                      "reads in flight, on each drive (default: what the probe found, else "
                      "32)")
          ->check(CLI::Range(1u, 1024u));
  command
      .add_option("--probe", probe,
                  "auto, off or force: try for half a second how the drive likes to be read, when "
                  "experts come from it; auto keeps the result beside the model")
      ->capture_default_str();
  command
      .add_option("--prefetch", prefetch,
                  "auto, off or always: read experts that the next layers will probably call, and "
                  "with --vram bring them there")
      ->capture_default_str();
  command
      .add_option("--cache-policy", cache_policy,
                  fmt::format("which experts leave RAM: {}", fmt::join(policy_names(), ", ")))
      ->capture_default_str();
  command.add_flag("--no-warm-start", no_warm_start,
                   "begin without what earlier runs used their experts for, and keep nothing");
  command
      .add_option("--record", record,
                  "token, layer or read: how deep the record of where time goes reaches")
      ->capture_default_str();
  command.add_flag("--mlock", mlock,
                   "keep the planned memory from being swapped out; an error where that isn't "
                   "allowed (ulimit -l)");
  command
      .add_option("--numa", numa,
                  "off, distribute (memory over all nodes), isolate (memory and threads on this "
                  "one) or numactl (as that has set it)")
      ->capture_default_str();
  command.add_flag("--no-preload", no_preload,
                   "read experts when they are called, not at start (as far as RAM will keep "
                   "them)");
  add_device_flags(command);
  command.add_option("--io-fault", io_fault, "inject read faults, for tests")->group("");
  command
      .add_flag("--folders-are-drives", folders_are_drives,
                "folders of one disk stand for disks, for tests and measurements")
      ->group("");
}

void ModelFlags::add_device_flags(CLI::App& command) {
  command.add_option("--vram", vram,
                     "memory of the GPU for experts that are called most, e.g. 8G; they are "
                     "computed there beside the CPU (default: none; not yet tried on a real card)");
  // Dealt with by saying what to do instead.
  constexpr const char* kInstead = "not used: Offstage places experts, not layers; see --vram";
  gpu_options = {command.add_option("--n-gpu-layers,--gpu-layers", gpu_layers,
                                    "-ngl: not used: "
                                    "Offstage places experts, not layers; see --vram"),
                 command.add_option("--n-cpu-moe", gpu_layers, kInstead),
                 command.add_flag("--cpu-moe", cpu_moe, kInstead)};
  command
      .add_option("--device", device,
                  "auto, or sim: with --vram, a simulated GPU, for development; speeds mean "
                  "nothing then")
      ->group("Development");
  command
      .add_option("--promote", promote,
                  "auto, off or always: copy experts to VRAM where it pays, never, whatever it "
                  "costs")
      ->group("Development");
  command
      .add_option("--placement", placement,
                  "auto, cpu or copy: experts that VRAM hasn't got are computed where the layer is "
                  "done earliest, by the CPU, or by the GPU after a copy")
      ->group("Development");
  command
      .add_option("--dense", dense,
                  "auto or cpu: attention, router and shared experts are the GPU's if --vram holds "
                  "their weights and the KV cache, or the CPU's")
      ->group("Development");
  command
      .add_option("--demote", demote,
                  "auto or off: experts that leave VRAM go to RAM where that pays, or are dropped")
      ->group("Development");
  command.add_option("--device-fault", device_fault, "make the simulated GPU fail")->group("");
}

void ModelFlags::add_measuring_to(CLI::App& command) {
  command.add_option("--replay-routing", replay_routing,
                     "experts as in this routing trace of as many layers and experts, not as the "
                     "model's router says");
  oracle_option = command
                      .add_option("--oracle-prefetch", oracle_recall,
                                  "with it: the prefetcher is told this share (0 to 1) of the "
                                  "coming layer's calls, its square of those of the one after "
                                  "it, and so on; nothing is guessed")
                      ->check(CLI::Range(0.0, 1.0));
  command.add_option("--pace", pace,
                     "every drive answers as one of this speed would, bytes per second, e.g. 500M");
  command.add_option("--spikes", spikes, "slow tokens to explain one by one")
      ->capture_default_str();
  command.add_flag("--no-forecast", no_forecast,
                   "don't hold the run against its forecast, which is made where `offstage probe` "
                   "has measured the machine");
}

void ModelFlags::record_layers() {
  if (record == "token") record = "layer";
}

Result<RuntimeOptions> ModelFlags::parse() const {
  RuntimeOptions options;
  OFFSTAGE_TRY(options.model_path, model_or_default(model));
  if (!ram.empty()) {
    OFFSTAGE_TRY(options.ram_bytes, parse_bytes(ram));
  }
  if (!vram.empty()) {
    OFFSTAGE_TRY(options.vram_bytes, parse_bytes(vram));
  }
  OFFSTAGE_TRY(options.device, one_of("--device", device, kDevice));
  OFFSTAGE_TRY(options.promote, one_of("--promote", promote, kPromote));
  OFFSTAGE_TRY(options.placement, one_of("--placement", placement, kPlacement));
  OFFSTAGE_TRY(options.dense, one_of("--dense", dense, kDense));
  OFFSTAGE_TRY(options.demote, one_of("--demote", demote, kDemote));
  options.device_fault = device_fault;
  options.context = context;
  options.threads = threads;
  options.chunk_rows = chunk;
  options.chunk_rows_fixed = chunk_option->count() != 0;
  options.drives = drives;
  if (io_depth_option->count() != 0) options.io_depth = io_depth;
  if (folders_are_drives) options.drive_grouping = DriveGrouping::kFolder;
  options.chunk_rows_max = batch;
  options.cache_policy = cache_policy;
  options.warm_start = !no_warm_start;
  options.preload = !no_preload;
  options.mlock = mlock;
  options.keep_first_routes = keep_first_routes;
  OFFSTAGE_TRY(options.numa, one_of("--numa", numa, kNuma));
  const auto policies = policy_names();
  if (std::find(policies.begin(), policies.end(), cache_policy) == policies.end())
    return make_error(ErrorCode::kInvalidArgument, "--cache-policy: expected one of {}, found '{}'",
                      fmt::join(policies, ", "), cache_policy);
  options.io_fault = io_fault;
  options.replay_routing = replay_routing;
  if (oracle_option != nullptr && oracle_option->count() != 0)
    options.oracle_prefetch = oracle_recall;
  if (!pace.empty()) {
    OFFSTAGE_TRY(options.pace_bytes_per_s, parse_bytes(pace));
    if (options.pace_bytes_per_s == 0)
      return make_error(ErrorCode::kInvalidArgument, "--pace: expected at least 1 byte per second");
  }
  OFFSTAGE_TRY(options.k_type, one_of("--cache-type-k", cache_type_k, kKvTypes));
  OFFSTAGE_TRY(options.v_type, one_of("--cache-type-v", cache_type_v, kKvTypes));
  OFFSTAGE_TRY(options.io_engine, one_of("--io-engine", io_engine, kEngines));
  OFFSTAGE_TRY(options.prefetch, one_of("--prefetch", prefetch, kPrefetch));
  OFFSTAGE_TRY(options.record, one_of("--record", record, kRecord));
  OFFSTAGE_TRY(options.probe, one_of("--probe", probe, kProbe));
  OFFSTAGE_TRY(options.direct_io, one_of("--direct-io", direct_io, kDirect));
  const char* isa = std::getenv("OFFSTAGE_ISA");
  options.isa = isa == nullptr ? "" : isa;
  return options;
}

}  // namespace offstage
