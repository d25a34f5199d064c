// A layer's experts, put on the device's stream: those that are handed over, and the hits that the
// device finds itself.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"
#include "runtime/device_experts.h"

namespace offstage {
namespace {

gpu::Activation activation_of(Activation activation) {
  return activation == Activation::kSwiglu ? gpu::Activation::kSwiglu
                                           : gpu::Activation::kSwigluClamped;
}

}  // namespace

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
  group.is_first = !std::exchange(has_rows_, true);
  if (group.is_first && rows_there_ == nullptr) {
    const uint64_t x_bytes = uint64_t{routing.n_rows} * parts_.spec.hidden * sizeof(float);
    std::memcpy(handed_, normed, x_bytes);
    handed_bytes_ = round_up(x_bytes, kPartAlignment);
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

// Fetch, quantise, compute, hand back: one after the other on the compute stream. The rows are
// fetched and quantised once an event.
Status DeviceExperts::launch_group(const Group& group, uint32_t n_rows) {
  const uint64_t begin = group.is_first ? 0 : group.jobs, handed_bytes = group.end - begin;
  OFFSTAGE_TRY_VOID(put("hand over", parts_.kernels.move_words,
                        gpu::MoveWordsArgs{handed_ + begin, input_ + begin, handed_bytes},
                        handed_bytes));
  if (group.is_first)
    OFFSTAGE_TRY_VOID(quantise_rows(
        rows_there_ != nullptr ? rows_there_ : reinterpret_cast<const float*>(input_), n_rows));
  Share share;
  share.jobs = reinterpret_cast<const gpu::ExpertJob*>(input_ + group.jobs);
  share.n_jobs = share.n_likely = static_cast<uint32_t>(group.calls.size());
  share.place_rows = reinterpret_cast<const uint32_t*>(input_ + group.place_rows);
  share.first_place = group.first_place;
  share.n_places = group.n_places;
  share.calls = group.calls;
  return launch_share(share, n_rows);
}

// The event before was waited for, so nobody uses what this overwrites.
Status DeviceExperts::start_hits(LayerIndex layer, const uint32_t* experts, const float* normed,
                                 uint32_t n_rows) {
  CHECK(!in_flight_);
  hits_started_ = false;
  take_arrivals();
  if (!options_.starts_hits || vram_->is_lost() || n_rows > options_.rows_max) return {};
  if (!vram_->has_slots(layer) || !hit_list_.look(*vram_, layer)) return {};
  layer_ = layer;
  OFFSTAGE_TRY_VOID(
      put("find hits", parts_.kernels.group_calls, hit_list_.args(*vram_, experts, n_rows)));
  OFFSTAGE_TRY_VOID(quantise_rows(normed, n_rows));
  Share share;
  share.jobs = hit_list_.jobs();
  share.n_jobs = hit_list_.n_jobs(n_rows);
  share.place_rows = hit_list_.place_rows();
  share.n_places = n_rows * parts_.spec.router.n_used;
  share.count = hit_list_.n_places();
  share.n_likely = std::min(share.n_jobs, likely_hits_[layer.value]);
  OFFSTAGE_TRY_VOID(launch_share(share, n_rows));
  OFFSTAGE_TRY(residents_done_, parts_.device.mark(DeviceStream::kCompute));
  hits_started_ = true;
  return {};
}

// Their places are by expert.
void DeviceExperts::adopt_hits() {
  std::sort(taken_.begin(), taken_.end(),
            [](const ExpertCall& a, const ExpertCall& b) { return a.expert < b.expert; });
  for (const ExpertCall& call : taken_) n_places_ += call.uses;
  in_flight_ = true;  // hits or none: kernels that found nothing to do are waited for as well
  done_ = residents_done_;
}

Status DeviceExperts::quantise_rows(const float* rows, uint32_t n_rows) {
  return put(
      "quantise", parts_.kernels.quantise_activations,
      gpu::QuantiseArgs{weights_of(layer_).gate_type, rows, n_rows, parts_.spec.hidden, forms_});
}

// (Gate, up, activation), quantise, down, hand back.
Status DeviceExperts::launch_share(const Share& share, uint32_t n_rows) {
  const DeviceKernels& kernels = parts_.kernels;
  const LayerWeights& weights = weights_of(layer_);
  const DeviceBiases& biases = biases_[layer_.value];
  const uint32_t hidden = parts_.spec.hidden, ffn = parts_.spec.expert_ffn;
  float* const ffn_out = hidden_ + uint64_t{share.first_place} * ffn;
  gpu::GateUpArgs first;
  first.gate.type = weights.gate_type;
  first.gate.k = hidden;
  first.gate.n = ffn;
  first.gate.slots = vram_->table(layer_);
  first.gate.offset = vram_->offset(layer_, ExpertMatrix::kGate);
  first.gate.jobs = share.jobs;
  first.gate.n_jobs = share.n_jobs;
  first.gate.n_places = n_rows;
  first.gate.activations = forms_;
  first.gate.place_rows = share.place_rows;
  first.gate.bias = biases.gate;
  first.gate.out = ffn_out;
  first.up_offset = vram_->offset(layer_, ExpertMatrix::kUp);
  first.up_bias = biases.up;
  first.activation = activation_of(parts_.spec.activation);
  const auto bytes_of = [&](ExpertMatrix matrix) {
    return parts_.layout.extent(layer_, ExpertId(0), matrix).bytes * share.n_likely;
  };
  OFFSTAGE_TRY_VOID(put_experts("gate and up", kernels.expert_gate_up, first, share,
                                bytes_of(ExpertMatrix::kGate) + bytes_of(ExpertMatrix::kUp)));
  std::byte* const ffn_forms =
      hidden_forms_ + share.first_place * kernels.activation_row_bytes(weights.down_type, ffn);
  OFFSTAGE_TRY_VOID(put("quantise", kernels.quantise_activations,
                        gpu::QuantiseArgs{weights.down_type, ffn_out, share.n_places, ffn,
                                          ffn_forms, 0, share.count}));
  gpu::MatvecArgs second = first.gate;
  second.type = weights.down_type;
  second.k = ffn;
  second.n = hidden;
  second.offset = vram_->offset(layer_, ExpertMatrix::kDown);
  second.activations = ffn_forms;
  second.place_rows = nullptr;
  second.bias = biases.down;
  second.out = out_ + uint64_t{share.first_place} * hidden;
  OFFSTAGE_TRY_VOID(
      put_experts("down", kernels.matvec, second, share, bytes_of(ExpertMatrix::kDown)));
  const uint64_t row_bytes = uint64_t{hidden} * sizeof(float);
  const uint32_t n_likely = share.count == nullptr ? share.n_places : share.n_likely;
  return put("hand back", kernels.move_words,
             gpu::MoveWordsArgs{reinterpret_cast<const std::byte*>(second.out),
                                results_ + share.first_place * row_bytes,
                                share.n_places * row_bytes, share.count, row_bytes},
             n_likely * row_bytes);
}

template <typename Args>
Status DeviceExperts::put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                          const Args& args, uint64_t host_bytes) {
  DeviceWork work;
  work.name = name;
  work.host_bytes = host_bytes;
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device.launch(std::move(work));
}

// The simulated device's check of races is told of what a promotion's copy could touch too.
template <typename Args>
Status DeviceExperts::put_experts(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                                  const Args& args, const Share& share, uint64_t bytes) {
  DeviceWork work;
  work.name = name;
  work.bytes = bytes;
  work.ranges.push_back({reinterpret_cast<const std::byte*>(vram_->table(layer_)),
                         parts_.layout.n_experts() * sizeof(std::byte*)});
  for (const ExpertCall& call : share.calls)
    work.ranges.push_back(vram_->slot_memory(layer_, call.expert));
  if (share.calls.empty()) vram_->add_memory_of(layer_, work.ranges);
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device.launch(std::move(work));
}

}  // namespace offstage
