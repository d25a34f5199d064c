#include "runtime/device_chunks.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 256;

gpu::Activation activation_of(Activation activation) {
  return activation == Activation::kSwiglu ? gpu::Activation::kSwiglu
                                           : gpu::Activation::kSwigluClamped;
}

uint64_t job_bytes(const ModelSpec& spec, uint32_t rows) {
  return std::min(spec.router.n_experts, rows * spec.router.n_used) * sizeof(gpu::ExpertJob);
}

}  // namespace

// Counts with a null base, else says what lies where: one walk, so that the two can't disagree.
uint64_t DeviceChunks::lay_out(const ModelSpec& spec, const DeviceKernels& kernels, uint32_t rows,
                               std::byte* base, Work* work) {
  uint64_t end = 0;
  const auto bytes = [&](uint64_t n) {
    const uint64_t at = std::exchange(end, end + round_up(n, kAlignment));
    return base == nullptr ? nullptr : base + at;
  };
  const auto floats = [&](uint64_t n) {
    return reinterpret_cast<float*>(bytes(n * sizeof(float)));
  };
  const auto numbers = [&](uint64_t n) {
    return reinterpret_cast<uint32_t*>(bytes(n * sizeof(uint32_t)));
  };
  const uint64_t calls = uint64_t{rows} * spec.router.n_used;
  // Q8_0's rows are as long as any format's.
  const auto forms = [&](uint64_t n, uint32_t k) {
    return bytes(n * kernels.activation_row_bytes(TensorType::kQ8_0, k));
  };
  work->x = floats(uint64_t{rows} * spec.hidden);
  work->forms = forms(rows, spec.hidden);
  work->experts = numbers(calls);
  work->place_rows = numbers(calls);
  work->place_of = numbers(calls);
  work->jobs = reinterpret_cast<gpu::ExpertJob*>(bytes(job_bytes(spec, rows)));
  work->gate = floats(calls * spec.expert_ffn);
  work->up = floats(calls * spec.expert_ffn);
  work->hidden_forms = forms(calls, spec.expert_ffn);
  work->out = floats(calls * spec.hidden);
  return end;
}

uint64_t DeviceChunks::memory_bytes(const ModelSpec& spec, const DeviceKernels& kernels,
                                    uint32_t rows) {
  Work work;
  return lay_out(spec, kernels, rows, nullptr, &work);
}

DeviceChunks::DeviceChunks(const Parts& parts, const Options& options)
    : parts_(parts),
      options_(options),
      pieces_(parts.device, options.deadline_ns),
      job_of_(parts.layout.n_experts()) {
  const uint32_t n_experts = parts_.layout.n_experts();
  taken_.reserve(n_experts);
  left_.reserve(n_experts);
  here_.reserve(n_experts);
  places_.reserve(n_experts);
  rows_.reserve(n_experts);
}

Result<std::unique_ptr<DeviceChunks>> DeviceChunks::create(const Parts& parts,
                                                           const Options& options) {
  std::unique_ptr<DeviceChunks> chunks(new DeviceChunks(parts, options));
  OFFSTAGE_TRY_VOID(chunks->take_memory());
  return chunks;
}

Status DeviceChunks::take_memory() {
  memory_bytes_ = memory_bytes(parts_.spec, parts_.kernels, options_.rows_max);
  const uint64_t calls = uint64_t{options_.rows_max} * parts_.spec.router.n_used;
  OFFSTAGE_TRY(std::byte* const pinned, parts_.device.allocate_pinned(DevicePieces::kPinnedBytes +
                                                                      calls * sizeof(uint32_t)));
  Result<std::byte*> memory = parts_.device.allocate(memory_bytes_);
  if (!memory) {
    parts_.device.release_pinned(pinned);
    return tl::unexpected(std::move(memory).error());
  }
  memory_ = *memory;
  pieces_.set_memory(pinned);
  experts_over_ = reinterpret_cast<uint32_t*>(pinned + DevicePieces::kPinnedBytes);
  lay_out(parts_.spec, parts_.kernels, options_.rows_max, memory_, &work_);
  return {};
}

const LayerWeights& DeviceChunks::weights() const {
  return parts_.weights.layers[parts_.spec.n_dense_layers + layer_.value];
}

DeviceChunks::Places DeviceChunks::places_of(ExpertId expert) const {
  const uint32_t first = routing_->first[expert.value];
  return {first, routing_->first[expert.value + 1] - first};
}

// places_ ← those of the experts, ascending.
void DeviceChunks::join_places(std::span<const ExpertCall> experts) {
  places_.clear();
  for (const ExpertCall& call : experts) places_.push_back(places_of(call.expert));
  std::sort(places_.begin(), places_.end(),
            [](const Places& a, const Places& b) { return a.first < b.first; });
  size_t n = 0;
  for (const Places& places : places_) {
    if (n != 0 && places_[n - 1].first + places_[n - 1].n == places.first)
      places_[n - 1].n += places.n;
    else
      places_[n++] = places;
  }
  places_.resize(n);
}

Status DeviceChunks::begin(LayerIndex layer, const Routing& routing, const float* normed,
                           const float* normed_on_device) {
  CHECK_LE(routing.n_rows, options_.rows_max);
  layer_ = layer;
  routing_ = &routing;
  normed_ = normed;
  rows_there_ = normed_on_device;
  taken_.clear();
  left_.clear();
  in_flight_ = false;
  copied_.reset();
  n_copies_ = 0;
  resident_rows_ = cpu_rows_ = 0;
  begun_ns_ = device_free_ns_ = parts_.clock.now_ns();
  n_jobs_ = 0;
  for (uint32_t e = 0; e < job_of_.size(); ++e) {
    job_of_[e] = n_jobs_;
    n_jobs_ += places_of(ExpertId(e)).n != 0 ? 1 : 0;
  }
  for (const ExpertCall& call : routing.calls)
    (parts_.vram.is_resident(layer, call.expert) ? taken_ : left_).push_back(call);
  n_residents_ = taken_.size();
  for (const ExpertCall& call : taken_) resident_rows_ += places_of(call.expert).n;
  if (taken_.empty()) return {};
  device_free_ns_ += static_cast<int64_t>(resident_rows_) * meter_.device_row_ns();
  OFFSTAGE_TRY_VOID(hand_over());
  // The jobs of all that are called: those whose experts aren't there are passed over.
  return launch(taken_, 0, n_jobs_);
}

// Rows and choice, once a layer. The layer before was waited for: nobody uses what this overwrites.
Status DeviceChunks::hand_over() {
  Device& device = parts_.device;
  const ModelSpec& spec = parts_.spec;
  in_flight_ = true;
  const uint32_t n_rows = routing_->n_rows;
  const size_t n_calls = routing_->experts.size();
  for (size_t c = 0; c < n_calls; ++c) experts_over_[c] = routing_->experts[c].value;
  if (rows_there_ == nullptr)
    OFFSTAGE_TRY_VOID(device.copy(DeviceStream::kToDevice, reinterpret_cast<std::byte*>(work_.x),
                                  reinterpret_cast<const std::byte*>(normed_),
                                  uint64_t{n_rows} * spec.hidden * sizeof(float)));
  OFFSTAGE_TRY_VOID(
      device.copy(DeviceStream::kToDevice, reinterpret_cast<std::byte*>(work_.experts),
                  reinterpret_cast<const std::byte*>(experts_over_), n_calls * sizeof(uint32_t)));
  OFFSTAGE_TRY(const DeviceMark there, device.mark(DeviceStream::kToDevice));
  OFFSTAGE_TRY_VOID(device.order(DeviceStream::kCompute, there));
  OFFSTAGE_TRY_VOID(
      put("quantise", parts_.kernels.quantise_activations,
          gpu::QuantiseArgs{weights().gate_type, rows_there_ != nullptr ? rows_there_ : work_.x,
                            n_rows, spec.hidden, work_.forms}));
  return put("group", parts_.kernels.group_calls,
             gpu::GroupCallsArgs{work_.experts, n_rows, routing_->n_used, parts_.layout.n_experts(),
                                 work_.jobs, work_.place_rows, work_.place_of});
}

gpu::MatvecArgs DeviceChunks::matmul_args(ExpertMatrix matrix, std::span<const ExpertCall> experts,
                                          uint32_t first_job, uint32_t n_jobs) const {
  const bool is_down = matrix == ExpertMatrix::kDown;
  gpu::MatvecArgs args;
  args.type = is_down ? weights().down_type : weights().gate_type;
  args.k = is_down ? parts_.spec.expert_ffn : parts_.spec.hidden;
  args.n = is_down ? parts_.spec.hidden : parts_.spec.expert_ffn;
  args.slots = parts_.vram.table(layer_);
  args.offset = parts_.vram.offset(layer_, matrix);
  args.jobs = work_.jobs + first_job;
  args.n_jobs = n_jobs;
  args.n_places = 0;
  for (const ExpertCall& call : experts)
    args.n_places = std::max(args.n_places, places_of(call.expert).n);
  args.activations = is_down ? work_.hidden_forms : work_.forms;
  args.place_rows = is_down ? nullptr : work_.place_rows;
  return args;
}

// Of `experts`, which are in the table: gate, up, activation, quantise, down.
Status DeviceChunks::launch(std::span<const ExpertCall> experts, uint32_t first_job,
                            uint32_t n_jobs) {
  const DeviceKernels& kernels = parts_.kernels;
  const DeviceBiases& biases = parts_.biases[layer_.value];
  const uint32_t ffn = parts_.spec.expert_ffn;
  const auto multiply = [&](std::string_view name, ExpertMatrix matrix, const float* bias,
                            float* out) {
    gpu::MatvecArgs args = matmul_args(matrix, experts, first_job, n_jobs);
    args.bias = bias;
    args.out = out;
    const uint64_t bytes = parts_.layout.extent(layer_, ExpertId(0), matrix).bytes;
    return put(name, kernels.matmul, args, experts, bytes * experts.size());
  };
  OFFSTAGE_TRY_VOID(multiply("gate", ExpertMatrix::kGate, biases.gate, work_.gate));
  OFFSTAGE_TRY_VOID(multiply("up", ExpertMatrix::kUp, biases.up, work_.up));
  const uint64_t form_bytes = kernels.activation_row_bytes(weights().down_type, ffn);
  join_places(experts);
  for (const Places& places : places_) {
    const uint64_t at = uint64_t{places.first} * ffn;
    OFFSTAGE_TRY_VOID(put("activate", kernels.activate,
                          gpu::ActivateArgs{activation_of(parts_.spec.activation), work_.gate + at,
                                            work_.up + at, uint64_t{places.n} * ffn}));
    OFFSTAGE_TRY_VOID(put("quantise", kernels.quantise_activations,
                          gpu::QuantiseArgs{weights().down_type, work_.gate + at, places.n, ffn,
                                            work_.hidden_forms + places.first * form_bytes}));
  }
  return multiply("down", ExpertMatrix::kDown, biases.down, work_.out);
}

// The most called first.
Status DeviceChunks::place(std::span<const ReadyExpert> ready) {
  const CauseScope scope(parts_.timer, Cause::kPcie);
  here_.assign(ready.begin(), ready.end());
  std::stable_sort(here_.begin(), here_.end(), [&](const ReadyExpert& a, const ReadyExpert& b) {
    return places_of(a.expert).n > places_of(b.expert).n;
  });
  const uint32_t n = streams_of(scope.entered_ns());
  copies_begun_ns_ = scope.entered_ns();
  n_copies_ = 0;
  Status status;
  size_t n_stay = 0;
  for (size_t i = 0; i < here_.size(); ++i) {
    bool streams = false;
    if (status && i < n) {
      const Result<bool> began = stream(here_[i]);
      if (began)
        streams = *began;
      else
        status = tl::unexpected(began.error());
    }
    if (!streams) here_[n_stay++] = here_[i];
  }
  here_.erase(here_.begin() + static_cast<ptrdiff_t>(n_stay), here_.end());
  for (const ReadyExpert& stays : here_) cpu_rows_ += places_of(stays.expert).n;
  counts_.streamed += n_copies_;
  counts_.cpu += here_.size();
  if (n_copies_ != 0) {
    device_free_ns_ = std::max(device_free_ns_, copies_begun_ns_) +
                      int64_t{n_copies_} * meter_.stream_ns(parts_.vram.copy_ns(layer_));
    parts_.vram.end_burst();
  }
  if (!status || n_copies_ == 0) return status;
  OFFSTAGE_TRY(copied_, parts_.device.mark(DeviceStream::kToDevice));
  return {};
}

uint32_t DeviceChunks::streams_of(int64_t now_ns) {
  const auto n = static_cast<uint32_t>(here_.size());
  if (options_.placement == Placement::kCpu) return 0;
  if (options_.placement == Placement::kCopy) return n;
  rows_.clear();
  for (const ReadyExpert& expert : here_) rows_.push_back(places_of(expert.expert).n);
  return experts_to_stream(rows_,
                           {meter_.cpu_row_ns(), meter_.stream_ns(parts_.vram.copy_ns(layer_)),
                            std::max<int64_t>(0, device_free_ns_ - now_ns)});
}

// False: VRAM doesn't take it now.
Result<bool> DeviceChunks::stream(const ReadyExpert& expert) {
  const auto bytes_of = [&](const std::byte* data, ExpertMatrix matrix) {
    return std::span(data, parts_.layout.extent(layer_, expert.expert, matrix).bytes);
  };
  if (!in_flight_) OFFSTAGE_TRY_VOID(hand_over());
  const Visit visit = parts_.vram.visit(
      layer_, expert.expert,
      {bytes_of(expert.gate, ExpertMatrix::kGate), bytes_of(expert.up, ExpertMatrix::kUp),
       bytes_of(expert.down, ExpertMatrix::kDown)},
      {});
  if (visit == Visit::kLost) return make_error(ErrorCode::kIo, "the device is lost");
  if (visit == Visit::kRefused) return false;
  const ExpertCall call = {expert.expert, places_of(expert.expert).n};
  OFFSTAGE_TRY_VOID(launch({&call, 1}, job_of_[expert.expert.value], 1));
  taken_.push_back(call);
  ++n_copies_;
  return true;
}

Status DeviceChunks::let_go() {
  if (!copied_) return {};
  const CauseScope scope(parts_.timer, Cause::kPcie);
  OFFSTAGE_TRY(const bool exact, wait_for(*std::exchange(copied_, std::nullopt)));
  meter_.add_stream(n_copies_, parts_.clock.now_ns() - copies_begun_ns_, exact);
  return {};
}

// True: it wasn't there already.
Result<bool> DeviceChunks::wait_for(DeviceMark mark) {
  OFFSTAGE_TRY(const bool there, parts_.device.reached(mark));
  if (there) return false;
  OFFSTAGE_TRY_VOID(parts_.device.wait(mark, options_.deadline_ns));
  return true;
}

Status DeviceChunks::collect(float* expert_out) {
  if (!in_flight_) return {};
  {
    const CauseScope scope(parts_.timer, Cause::kGpu);
    OFFSTAGE_TRY(const DeviceMark done, parts_.device.mark(DeviceStream::kCompute));
    OFFSTAGE_TRY(const bool exact, wait_for(done));
    if (n_residents_ == taken_.size())
      meter_.add_device(resident_rows_, parts_.clock.now_ns() - begun_ns_, exact);
  }
  const CauseScope scope(parts_.timer, Cause::kPcie);
  OFFSTAGE_TRY_VOID(bring_back(expert_out));
  in_flight_ = false;
  counts_.in_place += n_residents_;
  parts_.vram.end_visits();
  return {};
}

Status DeviceChunks::bring_back(float* expert_out) {
  join_places(taken_);
  const uint64_t hidden = parts_.spec.hidden;
  for (const Places& places : places_)
    OFFSTAGE_TRY_VOID(pieces_.bring(work_.out + places.first * hidden,
                                    expert_out + places.first * hidden,
                                    places.n * hidden * sizeof(float)));
  return pieces_.finish();
}

// The simulated device's check of races is told of all that copies could meet.
template <typename Args>
Status DeviceChunks::put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                         const Args& args, std::span<const ExpertCall> experts, uint64_t bytes) {
  DeviceWork work;
  work.name = name;
  work.bytes = bytes;
  work.ranges.push_back({memory_, memory_bytes_});
  if (!experts.empty())
    work.ranges.push_back({reinterpret_cast<const std::byte*>(parts_.vram.table(layer_)),
                           parts_.layout.n_experts() * sizeof(std::byte*)});
  for (const ExpertCall& call : experts)
    work.ranges.push_back(parts_.vram.slot_memory(layer_, call.expert));
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device.launch(std::move(work));
}

}  // namespace offstage
