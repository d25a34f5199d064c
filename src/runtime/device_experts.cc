#include "runtime/device_experts.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace offstage {
namespace {

gpu::Activation activation_of(Activation activation) {
  return activation == Activation::kSwiglu ? gpu::Activation::kSwiglu
                                           : gpu::Activation::kSwigluClamped;
}

}  // namespace

const LayerWeights& DeviceExperts::weights_of(LayerIndex layer) const {
  return parts_.weights.layers[parts_.spec.n_dense_layers + layer.value];
}

void DeviceExperts::begin_forward(Phase phase) {
  const int64_t now_ns = parts_.clock.now_ns();
  if (is_decode_) vram_->token_done(now_ns - forward_began_ns_);
  forward_began_ns_ = now_ns;
  is_decode_ = phase == Phase::kDecode;
}

std::span<const ExpertCall> DeviceExperts::take(LayerIndex layer, const Routing& routing,
                                                const float* normed, Phase phase) {
  CHECK(!in_flight_);
  taken_.clear();
  left_.clear();
  take_arrivals();
  if (phase == Phase::kPrefill || routing.n_rows > options_.rows_max || vram_->is_lost() ||
      !vram_->has_slots(layer))
    return routing.calls;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  value_.add_calls(layer, routing.calls);
  for (const ExpertCall& call : routing.calls)
    (vram_->is_resident(layer, call.expert) ? taken_ : left_).push_back(call);
  if (taken_.empty()) return left_;
  launched_ns_ = scope.entered_ns();
  if (const Status launched = launch(layer, routing, normed); !launched) {
    lose(launched.error());
    taken_.clear();
    return routing.calls;
  }
  in_flight_ = true;
  return left_;
}

Status DeviceExperts::launch(LayerIndex layer, const Routing& routing, const float* normed) {
  const uint32_t n_places = hand_over(routing, normed);
  OFFSTAGE_TRY_VOID(launch_expert(layer, routing.n_rows, n_places));
  OFFSTAGE_TRY(done_, parts_.device->mark(DeviceStream::kCompute));
  return {};
}

// Into pinned memory, which nobody else reads now: the layer before was waited for. The device's
// places are those of the taken experts' calls, one after another.
uint32_t DeviceExperts::hand_over(const Routing& routing, const float* normed) {
  auto* jobs = reinterpret_cast<gpu::ExpertJob*>(handed_);
  auto* place_rows = reinterpret_cast<uint32_t*>(handed_ + at_.place_rows);
  uint32_t n_places = 0;
  for (size_t i = 0; i < taken_.size(); ++i) {
    const uint32_t expert = taken_[i].expert.value;
    const uint32_t first = routing.first[expert], n = routing.first[expert + 1] - first;
    jobs[i] = {expert, n_places, n};
    std::copy_n(&routing.call_rows[first], n, place_rows + n_places);
    n_places += n;
  }
  std::memcpy(handed_ + at_.x, normed,
              uint64_t{routing.n_rows} * parts_.spec.hidden * sizeof(float));
  return n_places;
}

// The simulated device's check of races is told of what a promotion's copy could touch too.
template <typename Args>
Status DeviceExperts::put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                          const Args& args, uint64_t bytes, uint64_t host_bytes, LayerIndex layer) {
  DeviceWork work;
  work.name = name;
  work.bytes = bytes;
  work.host_bytes = host_bytes;
  if (bytes != 0) {
    work.ranges.push_back({reinterpret_cast<const std::byte*>(vram_->table(layer)),
                           parts_.layout.n_experts() * sizeof(std::byte*)});
    for (const ExpertCall& call : taken_)
      work.ranges.push_back(vram_->slot_memory(layer, call.expert));
  }
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device->launch(std::move(work));
}

// Fetch, quantise, (gate, up, activation), quantise, down, hand back: one after the other on the
// compute stream.
Status DeviceExperts::launch_expert(LayerIndex layer, uint32_t n_rows, uint32_t n_places) {
  const DeviceKernels& kernels = parts_.kernels;
  const LayerWeights& weights = weights_of(layer);
  const Biases& biases = biases_[layer.value];
  const uint32_t hidden = parts_.spec.hidden, ffn = parts_.spec.expert_ffn;
  const auto* x = reinterpret_cast<const float*>(input_ + at_.x);
  const uint64_t input_bytes = at_.x + uint64_t{n_rows} * hidden * sizeof(float);
  OFFSTAGE_TRY_VOID(put("hand over", kernels.move_words,
                        gpu::MoveWordsArgs{handed_, input_, input_bytes}, 0, input_bytes, layer));
  OFFSTAGE_TRY_VOID(put("quantise", kernels.quantise_activations,
                        gpu::QuantiseArgs{weights.gate_type, x, n_rows, hidden, forms_}, 0, 0,
                        layer));
  gpu::GateUpArgs first;
  first.gate.type = weights.gate_type;
  first.gate.k = hidden;
  first.gate.n = ffn;
  first.gate.slots = vram_->table(layer);
  first.gate.offset = vram_->offset(layer, ExpertMatrix::kGate);
  first.gate.jobs = reinterpret_cast<const gpu::ExpertJob*>(input_);
  first.gate.n_jobs = static_cast<uint32_t>(taken_.size());
  first.gate.n_places = n_rows;
  first.gate.activations = forms_;
  first.gate.place_rows = reinterpret_cast<const uint32_t*>(input_ + at_.place_rows);
  first.gate.bias = biases.gate;
  first.gate.out = hidden_;
  first.up_offset = vram_->offset(layer, ExpertMatrix::kUp);
  first.up_bias = biases.up;
  first.activation = activation_of(parts_.spec.activation);
  const auto bytes_of = [&](ExpertMatrix matrix) {
    return parts_.layout.extent(layer, ExpertId(0), matrix).bytes * taken_.size();
  };
  OFFSTAGE_TRY_VOID(put("gate and up", kernels.expert_gate_up, first,
                        bytes_of(ExpertMatrix::kGate) + bytes_of(ExpertMatrix::kUp), 0, layer));
  OFFSTAGE_TRY_VOID(put("quantise", kernels.quantise_activations,
                        gpu::QuantiseArgs{weights.down_type, hidden_, n_places, ffn, hidden_forms_},
                        0, 0, layer));
  gpu::MatvecArgs second = first.gate;
  second.type = weights.down_type;
  second.k = ffn;
  second.n = hidden;
  second.offset = vram_->offset(layer, ExpertMatrix::kDown);
  second.activations = hidden_forms_;
  second.place_rows = nullptr;
  second.bias = biases.down;
  second.out = out_;
  OFFSTAGE_TRY_VOID(put("down", kernels.matvec, second, bytes_of(ExpertMatrix::kDown), 0, layer));
  const uint64_t out_bytes = uint64_t{n_places} * hidden * sizeof(float);
  return put("hand back", kernels.move_words,
             gpu::MoveWordsArgs{reinterpret_cast<const std::byte*>(out_), results_, out_bytes}, 0,
             out_bytes, layer);
}

std::span<const ExpertCall> DeviceExperts::collect(const Routing& routing, float* expert_out) {
  if (!in_flight_) return {};
  const CauseScope scope(parts_.timer, Cause::kGpu);
  in_flight_ = false;
  Device& device = *parts_.device;
  const Result<bool> was_there = device.reached(done_);
  Status status;
  if (!was_there) status = tl::unexpected(was_there.error());
  if (was_there && !*was_there) status = device.wait(done_, options_.deadline_ns);
  if (!status) {
    lose(status.error());
    return taken_;
  }
  uint32_t n_places = 0;
  const uint32_t hidden = parts_.spec.hidden;
  const auto* out = reinterpret_cast<const float*>(results_);
  for (const ExpertCall& call : taken_) {
    const uint32_t first = routing.first[call.expert.value];
    const uint32_t n = routing.first[call.expert.value + 1] - first;
    std::copy_n(out + uint64_t{n_places} * hidden, uint64_t{n} * hidden,
                expert_out + uint64_t{first} * hidden);
    n_places += n;
  }
  hits_ += taken_.size();
  value_.add_device(static_cast<uint32_t>(taken_.size()), parts_.clock.now_ns() - launched_ns_,
                    !*was_there);
  return {};
}

void DeviceExperts::promote(LayerIndex layer, const EventCosts& costs) {
  value_.add_costs(costs);
  if (options_.promote == Promote::kOff || vram_->is_lost() || left_.empty()) return;
  const CauseScope scope(parts_.timer, Cause::kPcie);
  const int64_t saved_ns =
      options_.promote == Promote::kAlways ? kPaysAlways : value_.saved_ns_per_call();
  for (const ExpertCall& call : left_) bring(layer, call.expert, saved_ns);
}

// True: its copy has begun.
bool DeviceExperts::bring(LayerIndex layer, ExpertId expert, int64_t saved_ns) {
  const std::optional<ExpertBytes> bytes = parts_.ram.hold(layer, expert);
  if (!bytes) return false;
  const Promotion promotion =
      vram_->promote(layer, expert, *bytes, value_.calls_expected(layer), saved_ns);
  if (promotion == Promotion::kStarted) {
    held_.push_back({layer, expert});
    return true;
  }
  parts_.ram.release(layer, expert);
  return false;
}

void DeviceExperts::take_arrivals() {
  if (held_.empty()) return;
  const CauseScope scope(parts_.timer, Cause::kPcie);
  for (const ExpertPlace& arrived : vram_->poll()) {
    parts_.ram.release(arrived.layer, arrived.expert);
    held_.erase(held_.begin());  // they arrive in the order in which they were brought
  }
  if (!vram_->is_lost()) return;
  for (const ExpertPlace& place : held_) parts_.ram.release(place.layer, place.expert);
  held_.clear();
}

void DeviceExperts::lose(const Error& error) {
  vram_->lose(error);
  take_arrivals();
}

// Until every copy has arrived, so that RAM lends as many slots again. False: the device is lost.
bool DeviceExperts::drain() {
  if (vram_->is_lost()) return false;
  if (!vram_->is_copying()) return true;
  const Result<DeviceMark> there = parts_.device->mark(DeviceStream::kToDevice);
  const Status status = there ? parts_.device->wait(*there, options_.deadline_ns)
                              : Status(tl::unexpected(there.error()));
  if (!status) {
    lose(status.error());
    return false;
  }
  take_arrivals();
  return !vram_->is_lost();
}

}  // namespace offstage
