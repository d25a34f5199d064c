#include "runtime/device_experts.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace offstage {

const LayerWeights& DeviceExperts::weights_of(LayerIndex layer) const {
  return parts_.weights.layers[parts_.spec.n_dense_layers + layer.value];
}

void DeviceExperts::begin_forward(Phase phase) {
  const int64_t now_ns = parts_.clock.now_ns();
  if (is_decode_) vram_->token_done(now_ns - forward_began_ns_);
  forward_began_ns_ = now_ns;
  is_decode_ = phase == Phase::kDecode;
  hits_started_ = false;
}

std::span<const ExpertCall> DeviceExperts::take(LayerIndex layer, const Routing& routing,
                                                const float* normed, Phase phase,
                                                const float* normed_on_device) {
  CHECK(!in_flight_);
  taken_.clear();
  left_.clear();
  if (!hits_started_) take_arrivals();
  in_chunk_ = phase == Phase::kPrefill && chunks_ != nullptr && !vram_->is_lost() &&
              vram_->has_slots(layer);
  takes_part_ = phase == Phase::kDecode && routing.n_rows <= options_.rows_max &&
                !vram_->is_lost() && vram_->has_slots(layer);
  if (in_chunk_) return take_chunk(layer, routing, normed, normed_on_device);
  hits_started_ = hits_started_ && takes_part_;
  if (!takes_part_) return routing.calls;
  CHECK(!hits_started_ || layer_ == layer);
  const CauseScope scope(parts_.timer, Cause::kGpu);
  layer_ = layer;
  rows_there_ = normed_on_device;
  begun_ns_ = scope.entered_ns();  // hits that were started began a little earlier
  waited_ns_ = parts_.timer.times()[Cause::kWaitDrive];
  value_.add_calls(layer, routing.calls);
  to_read_ = 0;
  for (const ExpertCall& call : routing.calls) {
    if (hits_started_ ? hit_list_.was_there(call.expert) : vram_->is_resident(layer, call.expert)) {
      taken_.push_back(call);
      continue;
    }
    left_.push_back(call);
    at_hand_[call.expert.value] = parts_.ram.is_ready(layer, call.expert);
    to_read_ += at_hand_[call.expert.value] ? 0 : 1;
  }
  still_to_read_ = to_read_;
  n_residents_ = taken_.size();
  likely_hits_[layer.value] = static_cast<uint32_t>(n_residents_);
  has_rows_ = hits_started_;
  n_places_ = 0;
  handed_bytes_ = 0;
  if (hits_started_) adopt_hits();
  if (taken_.empty() || hits_started_) return left_;
  if (const Status launched = launch(routing, normed, 0); !launched) {
    lose(launched.error());
    taken_.clear();
    takes_part_ = false;
    return routing.calls;
  }
  residents_done_ = done_;
  return left_;
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
  started_ += hits_started_ ? n_residents_ : 0;
  vram_->end_visits();
  release_guests();
  return {};
}

// For all that was launched; what it took is learned on the way.
Status DeviceExperts::wait() {
  if (vram_->is_lost()) return {};
  if (n_residents_ != 0 || hits_started_) {
    OFFSTAGE_TRY(const bool exact, wait_for(residents_done_));
    const int64_t ns = parts_.clock.now_ns() - begun_ns_;
    const auto n = static_cast<uint32_t>(n_residents_);
    if (n != 0) value_.add_device(n, ns, exact);
    if (n != 0) meter_.add_device(layer_, n, ns, exact);
    if (hits_started_) OFFSTAGE_TRY_VOID(hit_list_.check(std::span(taken_).first(n)));
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
