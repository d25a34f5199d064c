#include "runtime/start_probe.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/arena.h"
#include "base/units.h"
#include "io/drive_probe.h"
#include "io/drive_profile.h"
#include "runtime/compute.h"

namespace offstage {
namespace {

constexpr uint32_t kProbeDepthMax = 32;
constexpr uint64_t kProbeMemory = 64ull << 20;
constexpr uint32_t kReadBytesMax = 4u << 20;
// A probe that met a moment's hiccup must not leave the drive idle for good.
constexpr uint32_t kDepthMin = 8;

std::string through(const IoEngine& engine) {
  return fmt::format("{} {}", engine.name(), engine.direct_io(0) ? "direct" : "buffered");
}

// The file with most of the experts, and where in it they lie.
struct ExpertRange {
  uint32_t file = 0;
  uint64_t begin = UINT64_MAX, end = 0;
  uint32_t read_bytes = 0;
};

ExpertRange range_of_experts(const ExpertLayout& layout) {
  ExpertRange range;
  range.file =
      layout.extent(LayerIndex(layout.n_layers() / 2), ExpertId(0), ExpertMatrix::kGate).file;
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    for (const auto matrix : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown}) {
      const Extent first = layout.extent(LayerIndex(l), ExpertId(0), matrix);
      const Extent last = layout.extent(LayerIndex(l), ExpertId(layout.n_experts() - 1), matrix);
      if (first.file != range.file) continue;
      range.begin = std::min(range.begin, first.offset);
      range.end = std::max(range.end, last.offset + last.bytes);
      if (range.read_bytes == 0)
        range.read_bytes =
            static_cast<uint32_t>(std::min<uint64_t>(span_bytes(first), kReadBytesMax));
    }
  return range;
}

Result<DriveProfile> probe_now(IoEngine& engine, const ExpertRange& range, HostArena& memory,
                               const Clock& clock) {
  DriveProbeShape shape;
  shape.file = range.file;
  shape.range_begin = range.begin;
  shape.range_bytes = range.end - range.begin;
  shape.read_bytes = range.read_bytes;
  shape.depth_max = kProbeDepthMax;
  shape.seed = static_cast<uint64_t>(clock.now_ns());
  shape.memory = {memory.data(), memory.size_bytes()};
  return probe_drive(engine, clock, shape);
}

void keep(const std::string& model_path, const KeptProfile& profile, Notices& notices) {
  Status status;
  for (const std::string& path : profile_places(model_path)) {
    status = write_profile(path, profile);
    if (status) return;
  }
  if (!status) notices.add("probe", status.error().message + "; the next start probes again");
}

void apply(const KeptProfile& profile, const RuntimeOptions& options, DriveChoice& choice) {
  choice.block_bytes = profile.block_bytes;
  if (!options.io_depth) choice.depth = std::max(profile.depth, kDepthMin);
  choice.bytes_per_s = static_cast<double>(profile.bytes_per_s);
  choice.probed = profile.date;
}

// What an earlier start kept of this drive, if it did.
std::optional<KeptProfile> kept_profile(const std::string& model_path, const std::string& drive,
                                        Notices& notices) {
  for (const std::string& place : profile_places(model_path)) {
    auto kept = read_profile(place);
    if (kept && kept->drive == drive) return std::move(*kept);
    if (!kept && kept.error().code != ErrorCode::kNotFound)
      notices.add("probe", kept.error().message + "; it isn't used");
  }
  return std::nullopt;
}

Status probe_into(DriveChoice& choice, const ModelFile& file, const RuntimeOptions& options,
                  uint64_t memory_bytes, const Clock& clock, Notices& notices) {
  const ExpertLayout layout = file.expert_layout();
  const ExpertRange range = range_of_experts(layout);
  OFFSTAGE_TRY(const std::string id, drive_id(file.paths()[range.file]));
  std::optional<KeptProfile> kept;
  if (options.probe != Probe::kForce) kept = kept_profile(options.model_path, id, notices);
  const bool is_worth_it =
      options.probe == Probe::kForce || layout.total_expert_bytes() >= kProbedExpertBytesMin;
  if (!kept && !is_worth_it) return {};
  // What the engine falls back to is announced when the run's own opens.
  Notices unsaid;
  OFFSTAGE_TRY(HostArena memory,
               HostArena::create("the drive probe", std::min(kProbeMemory, memory_bytes), unsaid));
  OFFSTAGE_TRY(const auto engine,
               open_io_engine({.paths = file.paths(),
                               .kind = options.io_engine,
                               .direct = options.direct_io,
                               .depth = kProbeDepthMax,
                               .buffers = {{memory.data(), memory.size_bytes()}}},
                              unsaid));
  if (kept && kept->engine == through(*engine)) {
    apply(*kept, options, choice);
    return {};
  }
  if (!is_worth_it) return {};
  OFFSTAGE_TRY(const DriveProfile profile, probe_now(*engine, range, memory, clock));
  const KeptProfile now = {id,
                           through(*engine),
                           utc_date(),
                           profile.block_bytes,
                           profile.depth,
                           static_cast<uint64_t>(std::max(profile.bytes_per_s, 1.0))};
  keep(options.model_path, now, notices);
  apply(now, options, choice);
  choice.probe_ns = profile.took_ns;
  return {};
}

}  // namespace

DriveChoice choose_drive(const ModelFile& file, const RuntimeOptions& options,
                         uint64_t memory_bytes, const Clock& clock, Notices& notices) {
  DriveChoice choice;
  choice.depth = options.io_depth.value_or(choice.depth);
  if (options.pace_bytes_per_s != 0) {  // as fast as that, whatever the drive is
    choice.bytes_per_s = static_cast<double>(options.pace_bytes_per_s);
    return choice;
  }
  if (options.probe == Probe::kOff || !options.io_fault.empty()) return choice;
  if (const Status status = probe_into(choice, file, options, memory_bytes, clock, notices);
      !status)
    notices.add("probe",
                fmt::format("{}; blocks of {} at depth {} are used", status.error().message,
                            format_bytes(choice.block_bytes), choice.depth));
  return choice;
}

std::optional<DriveChoice> kept_choice(const ModelFile& file) {
  const ExpertLayout layout = file.expert_layout();
  if (layout.n_layers() == 0) return std::nullopt;
  const std::string path = file.paths()[range_of_experts(layout).file];
  const Result<std::string> id = drive_id(path);
  Notices unsaid;  // the run says it
  const auto kept = id ? kept_profile(file.paths().front(), *id, unsaid) : std::nullopt;
  if (!kept) return std::nullopt;
  DriveChoice choice;
  apply(*kept, {}, choice);
  return choice;
}

double estimate_row_ns(const ModelFile& file, const Kernels& kernels, ThreadPool& workers,
                       const Clock& clock) {
  constexpr uint32_t kRows = 64, kTokens = 32;
  constexpr int kTimes = 8;
  const auto layer = std::find_if(file.tensors.layers.begin(), file.tensors.layers.end(),
                                  [](const LayerTensors& t) { return t.has_experts(); });
  const TensorType type = layer->gate_experts->type;
  const uint32_t k = file.spec.hidden;
  const ActivationFormat format = activation_format(type);
  const std::vector<float> x(k, 1.0f);
  const uint64_t weights_bytes = round_up(kRows * row_bytes(type, k), 64);
  std::vector<std::byte> memory(weights_bytes + kTokens * activation_row_bytes(format, k) + 64);
  auto* const weights = reinterpret_cast<std::byte*>(
      round_up(reinterpret_cast<uintptr_t>(memory.data()), uintptr_t{64}));
  std::byte* const aligned = weights + weights_bytes;
  for (uint32_t t = 0; t < kTokens; ++t)
    kernels.quantise_activations(format, x.data(), k,
                                 aligned + t * activation_row_bytes(format, k));
  std::vector<float> out(size_t{workers.size()} * kTokens * kRows);
  int64_t best_ns = INT64_MAX;
  for (int i = 0; i < kTimes; ++i) {
    const int64_t begin_ns = clock.now_ns();
    workers.parallel_for(workers.size(), 1, [&](uint32_t begin, uint32_t end, uint32_t) {
      for (uint32_t w = begin; w < end; ++w) {
        MatmulArgs args;
        args.type = type;
        args.weights = weights;
        args.k = k;
        args.row_end = kRows;
        args.activations = aligned;
        args.n_tokens = kTokens;
        args.out = out.data() + size_t{w} * kTokens * kRows;
        args.out_stride = kRows;
        kernels.matmul(args);
      }
    });
    best_ns = std::min(best_ns, clock.now_ns() - begin_ns);
  }
  const double products = double{kRows} * kTokens * k * workers.size();
  return static_cast<double>(best_ns) / products * static_cast<double>(file.active_params());
}

}  // namespace offstage
