#include "runtime/device_experts.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"

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
                                                const float* normed, Phase phase,
                                                const float* normed_on_device) {
  CHECK(!in_flight_);
  taken_.clear();
  left_.clear();
  take_arrivals();
  in_chunk_ = phase == Phase::kPrefill && chunks_ != nullptr && !vram_->is_lost() &&
              vram_->has_slots(layer);
  takes_part_ = phase == Phase::kDecode && routing.n_rows <= options_.rows_max &&
                !vram_->is_lost() && vram_->has_slots(layer);
  if (in_chunk_) return take_chunk(layer, routing, normed, normed_on_device);
  if (!takes_part_) return routing.calls;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  layer_ = layer;
  rows_there_ = normed_on_device;
  begun_ns_ = scope.entered_ns();
  waited_ns_ = parts_.timer.times()[Cause::kWaitDrive];
  value_.add_calls(layer, routing.calls);
  to_read_ = 0;
  for (const ExpertCall& call : routing.calls) {
    if (vram_->is_resident(layer, call.expert)) {
      taken_.push_back(call);
      continue;
    }
    left_.push_back(call);
    at_hand_[call.expert.value] = parts_.ram.is_ready(layer, call.expert);
    to_read_ += at_hand_[call.expert.value] ? 0 : 1;
  }
  still_to_read_ = to_read_;
  n_residents_ = taken_.size();
  if (taken_.empty()) return left_;
  if (const Status launched = launch(routing, normed, 0); !launched) {
    lose(launched.error());
    taken_.clear();
    takes_part_ = false;
    return routing.calls;
  }
  residents_done_ = done_;
  return left_;
}

// Of taken_, those from there on.
Status DeviceExperts::launch(const Routing& routing, const float* normed, size_t first_taken) {
  const Group group = hand_over(routing, normed, first_taken);
  OFFSTAGE_TRY_VOID(launch_group(group, routing.n_rows));
  OFFSTAGE_TRY(done_, parts_.device.mark(DeviceStream::kCompute));
  in_flight_ = true;
  return {};
}

// Into pinned memory. The event before was waited for, so nobody reads what the first group
// overwrites; the others are written behind it. A group's places of results are those of its
// experts' calls, one after another.
DeviceExperts::Group DeviceExperts::hand_over(const Routing& routing, const float* normed,
                                              size_t first_taken) {
  Group group;
  group.calls = std::span(taken_).subspan(first_taken);
  group.is_first = !in_flight_;
  if (group.is_first) {
    const uint64_t x_bytes =
        rows_there_ != nullptr ? 0 : uint64_t{routing.n_rows} * parts_.spec.hidden * sizeof(float);
    std::memcpy(handed_, normed, x_bytes);
    handed_bytes_ = round_up(x_bytes, kPartAlignment);
    n_places_ = 0;
  }
  group.first_place = n_places_;
  group.jobs = handed_bytes_;
  group.place_rows =
      round_up(group.jobs + group.calls.size() * sizeof(gpu::ExpertJob), kPartAlignment);
  auto* job = reinterpret_cast<gpu::ExpertJob*>(handed_ + group.jobs);
  auto* place_rows = reinterpret_cast<uint32_t*>(handed_ + group.place_rows);
  for (const ExpertCall& call : group.calls) {
    const uint32_t expert = call.expert.value;
    const uint32_t first = routing.first[expert], n = routing.first[expert + 1] - first;
    *job++ = {expert, group.n_places, n};
    std::copy_n(&routing.call_rows[first], n, place_rows + group.n_places);
    group.n_places += n;
  }
  group.end = round_up(group.place_rows + group.n_places * sizeof(uint32_t), kPartAlignment);
  n_places_ += group.n_places;
  handed_bytes_ = group.end;
  CHECK_LE(handed_bytes_, hand_over_bytes_);
  return group;
}

// The simulated device's check of races is told of what a promotion's copy could touch too.
template <typename Args>
Status DeviceExperts::put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                          const Args& args, const Group& group, uint64_t bytes,
                          uint64_t host_bytes) {
  DeviceWork work;
  work.name = name;
  work.bytes = bytes;
  work.host_bytes = host_bytes;
  if (bytes != 0) {
    work.ranges.push_back({reinterpret_cast<const std::byte*>(vram_->table(layer_)),
                           parts_.layout.n_experts() * sizeof(std::byte*)});
    for (const ExpertCall& call : group.calls)
      work.ranges.push_back(vram_->slot_memory(layer_, call.expert));
  }
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device.launch(std::move(work));
}

// Fetch, quantise, (gate, up, activation), quantise, down, hand back: one after the other on the
// compute stream. The rows are fetched and quantised once an event.
Status DeviceExperts::launch_group(const Group& group, uint32_t n_rows) {
  const DeviceKernels& kernels = parts_.kernels;
  const LayerWeights& weights = weights_of(layer_);
  const DeviceBiases& biases = biases_[layer_.value];
  const uint32_t hidden = parts_.spec.hidden, ffn = parts_.spec.expert_ffn;
  const uint64_t begin = group.is_first ? 0 : group.jobs, handed_bytes = group.end - begin;
  const float* const rows =
      rows_there_ != nullptr ? rows_there_ : reinterpret_cast<const float*>(input_);
  OFFSTAGE_TRY_VOID(put("hand over", kernels.move_words,
                        gpu::MoveWordsArgs{handed_ + begin, input_ + begin, handed_bytes}, group, 0,
                        handed_bytes));
  if (group.is_first)
    OFFSTAGE_TRY_VOID(put("quantise", kernels.quantise_activations,
                          gpu::QuantiseArgs{weights.gate_type, rows, n_rows, hidden, forms_}, group,
                          0, 0));
  float* const ffn_out = hidden_ + uint64_t{group.first_place} * ffn;
  gpu::GateUpArgs first;
  first.gate.type = weights.gate_type;
  first.gate.k = hidden;
  first.gate.n = ffn;
  first.gate.slots = vram_->table(layer_);
  first.gate.offset = vram_->offset(layer_, ExpertMatrix::kGate);
  first.gate.jobs = reinterpret_cast<const gpu::ExpertJob*>(input_ + group.jobs);
  first.gate.n_jobs = static_cast<uint32_t>(group.calls.size());
  first.gate.n_places = n_rows;
  first.gate.activations = forms_;
  first.gate.place_rows = reinterpret_cast<const uint32_t*>(input_ + group.place_rows);
  first.gate.bias = biases.gate;
  first.gate.out = ffn_out;
  first.up_offset = vram_->offset(layer_, ExpertMatrix::kUp);
  first.up_bias = biases.up;
  first.activation = activation_of(parts_.spec.activation);
  const auto bytes_of = [&](ExpertMatrix matrix) {
    return parts_.layout.extent(layer_, ExpertId(0), matrix).bytes * group.calls.size();
  };
  OFFSTAGE_TRY_VOID(put("gate and up", kernels.expert_gate_up, first, group,
                        bytes_of(ExpertMatrix::kGate) + bytes_of(ExpertMatrix::kUp), 0));
  std::byte* const ffn_forms =
      hidden_forms_ + group.first_place * kernels.activation_row_bytes(weights.down_type, ffn);
  OFFSTAGE_TRY_VOID(put(
      "quantise", kernels.quantise_activations,
      gpu::QuantiseArgs{weights.down_type, ffn_out, group.n_places, ffn, ffn_forms}, group, 0, 0));
  gpu::MatvecArgs second = first.gate;
  second.type = weights.down_type;
  second.k = ffn;
  second.n = hidden;
  second.offset = vram_->offset(layer_, ExpertMatrix::kDown);
  second.activations = ffn_forms;
  second.place_rows = nullptr;
  second.bias = biases.down;
  second.out = out_ + uint64_t{group.first_place} * hidden;
  OFFSTAGE_TRY_VOID(put("down", kernels.matvec, second, group, bytes_of(ExpertMatrix::kDown), 0));
  const uint64_t out_bytes = uint64_t{group.n_places} * hidden * sizeof(float);
  return put("hand back", kernels.move_words,
             gpu::MoveWordsArgs{reinterpret_cast<const std::byte*>(second.out),
                                results_ + group.first_place * uint64_t{hidden} * sizeof(float),
                                out_bytes},
             group, 0, out_bytes);
}

DeviceExperts::Lost DeviceExperts::collect(const Routing& routing, float* expert_out) {
  if (in_chunk_) return collect_chunk(expert_out);
  if (!in_flight_) return {};
  const CauseScope scope(parts_.timer, Cause::kGpu);
  in_flight_ = false;
  if (const Status there = wait(); !there) lose(there.error());
  if (vram_->is_lost()) {
    takes_part_ = false;
    const std::span<const ExpertCall> taken(taken_);
    return {taken.first(n_residents_), taken.subspan(n_residents_)};
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
  hits_ += n_residents_;
  vram_->end_visits();
  release_guests();
  return {};
}

// For all that was launched; what it took is learned on the way.
Status DeviceExperts::wait() {
  if (vram_->is_lost()) return {};
  if (n_residents_ != 0) {
    OFFSTAGE_TRY(const bool exact, wait_for(residents_done_));
    const int64_t ns = parts_.clock.now_ns() - begun_ns_;
    const auto n = static_cast<uint32_t>(n_residents_);
    value_.add_device(n, ns, exact);
    meter_.add_device(layer_, n, ns, exact);
  }
  if (n_residents_ == taken_.size()) return {};
  OFFSTAGE_TRY_VOID(vram_->await_burst(options_.deadline_ns));
  OFFSTAGE_TRY_VOID(wait_for(done_));
  return {};
}

// True: it wasn't there already.
Result<bool> DeviceExperts::wait_for(DeviceMark mark) {
  OFFSTAGE_TRY(const bool there, parts_.device.reached(mark));
  if (there) return false;
  OFFSTAGE_TRY_VOID(parts_.device.wait(mark, options_.deadline_ns));
  return true;
}

void DeviceExperts::promote(LayerIndex layer, const EventCosts& costs) {
  if (in_chunk_) chunks_->add_cpu(costs.cpu_ns);
  if (!takes_part_) return;
  value_.add_costs(costs);
  meter_.add_cpu(layer, costs.calls, costs.cpu_ns);
  if (options_.promote == Promote::kOff || vram_->is_lost() || left_.empty()) return;
  const CauseScope scope(parts_.timer, Cause::kPcie);
  for (const ExpertCall& call : left_)
    bring(layer, call.expert, value_.calls_expected(layer), saved_ns());
}

int64_t DeviceExperts::saved_ns() const {
  return options_.promote == Promote::kAlways ? kPaysAlways : value_.saved_ns_per_call();
}

bool DeviceExperts::wants_nominees(LayerIndex layer) const {
  return options_.promote != Promote::kOff && !vram_->is_lost() && vram_->has_slots(layer) &&
         vram_->resident_count(layer) != parts_.layout.n_experts();
}

// The coming call is one more than the past makes expect, as far as the guess is trusted.
void DeviceExperts::nominate(LayerIndex layer, std::span<const Nominee> nominees) {
  if (!wants_nominees(layer)) return;
  const CauseScope scope(parts_.timer, Cause::kPcie);
  take_arrivals();
  const std::span<const double> past = value_.calls_expected(layer);
  expected_.assign(past.begin(), past.end());
  for (const Nominee& nominee : nominees)
    expected_[nominee.expert.value] += static_cast<double>(nominee.right);
  for (const Nominee& nominee : nominees)
    nominated_ += bring(layer, nominee.expert, expected_, saved_ns()) ? 1 : 0;
}

// True: its copy has begun.
bool DeviceExperts::bring(LayerIndex layer, ExpertId expert, std::span<const double> calls_expected,
                          int64_t saved_ns) {
  if (vram_->is_resident(layer, expert)) return false;
  const std::optional<ExpertBytes> bytes = parts_.ram.hold(layer, expert);
  if (!bytes) return false;
  const Promotion promotion = vram_->promote(layer, expert, *bytes, calls_expected, saved_ns);
  if (promotion == Promotion::kStarted) {
    held_.push_back({layer, expert});
    return true;
  }
  parts_.ram.release(layer, expert);
  return false;
}

// Who leaves VRAM will be called again and is nowhere else. In RAM it saves the reads of its calls,
// less those of the calls of who leaves there, for the time of another copy.
std::optional<ExpertSpace> DeviceExperts::keep(LayerIndex layer, ExpertId expert) {
  const std::span<const double> expected = value_.calls_expected(layer);
  return parts_.ram.adopt(layer, expert, [&](std::optional<ExpertId> leaves) {
    if (options_.promote == Promote::kAlways) return true;
    const double calls = expected[expert.value] - (leaves ? expected[leaves->value] : 0.0);
    return calls * static_cast<double>(meter_.drive_ns()) >
           static_cast<double>(vram_->copy_ns(layer));
  });
}

void DeviceExperts::take_arrivals() {
  if (held_.empty()) return;
  const CauseScope scope(parts_.timer, Cause::kPcie);
  const std::span<const ExpertPlace> arrivals = vram_->poll();
  for (const ExpertPlace& departed : vram_->departed())
    parts_.ram.adopted(departed.layer, departed.expert);
  for (const ExpertPlace& arrived : arrivals) {
    parts_.ram.release(arrived.layer, arrived.expert);
    held_.erase(held_.begin());  // they arrive in the order in which they were brought
  }
  if (!vram_->is_lost()) return;
  for (const ExpertPlace& place : held_) parts_.ram.release(place.layer, place.expert);
  held_.clear();
}

void DeviceExperts::release_guests() {
  for (const ExpertPlace& place : guests_) parts_.ram.release(place.layer, place.expert);
  guests_.clear();
}

void DeviceExperts::lose(const Error& error) {
  vram_->lose(error);
  release_all();
}

// After the tier was lost.
void DeviceExperts::release_all() {
  take_arrivals();
  release_guests();
}

// Until every copy has arrived, so that RAM lends as many slots again. False: the device is lost.
bool DeviceExperts::drain() {
  if (vram_->is_lost()) return false;
  if (!vram_->is_copying()) return true;
  const Result<DeviceMark> there = parts_.device.mark(DeviceStream::kToDevice);
  const Status status = there ? parts_.device.wait(*there, options_.deadline_ns)
                              : Status(tl::unexpected(there.error()));
  if (!status) {
    lose(status.error());
    return false;
  }
  take_arrivals();
  return !vram_->is_lost();
}

}  // namespace offstage
