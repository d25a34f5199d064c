// Experts that VRAM hasn't got and that the device computes all the same, after a copy.
#include <algorithm>
#include <utility>

#include "runtime/device_experts.h"

namespace offstage {
namespace {

// Where every expert of every batch is copied, one of so many batches leaves one to the CPU, to see
// what that takes by now.
constexpr uint32_t kLookAgain = 64;

}  // namespace

std::span<const ReadyExpert> DeviceExperts::place(const Routing& routing, const float* normed,
                                                  std::span<const ReadyExpert> ready) {
  if (in_chunk_) return place_chunk(ready);
  if (!takes_part_ || vram_->is_lost()) return ready;
  const CauseScope scope(parts_.timer, Cause::kPcie);
  note_reads(ready, scope.entered_ns());
  here_.assign(ready.begin(), ready.end());
  // Those first that are the most work, and then those that may be worth staying there.
  const std::span<const double> expected = value_.calls_expected(layer_);
  const auto worth = [&](const ReadyExpert& of) {
    const uint32_t e = of.expert.value;
    return std::pair(routing.first[e + 1] - routing.first[e], expected[e]);
  };
  const auto n = static_cast<uint32_t>(ready.size());
  for (uint32_t left = copies_of(n, scope.entered_ns()); left > 0; --left) {
    const auto next =
        std::max_element(here_.begin(), here_.end(),
                         [&](const auto& a, const auto& b) { return worth(a) < worth(b); });
    const uint32_t e = next->expert.value;
    if (!copy_and_launch(routing, normed, next->expert)) break;
    ++(at_hand_[e] ? placed_.ram_copied : placed_.drive_copied);
    here_.erase(next);
  }
  vram_->end_burst();
  for (const ReadyExpert& stays : here_)
    ++(at_hand_[stays.expert.value] ? placed_.ram_cpu : placed_.drive_cpu);
  return here_;
}

// What came from the drive. When all of it has, the drive's time per expert is known: exactly, if
// somebody slept for the last one.
void DeviceExperts::note_reads(std::span<const ReadyExpert> ready, int64_t now_ns) {
  const int64_t waited_ns = parts_.timer.times()[Cause::kWaitDrive];
  uint32_t n_read = 0;
  for (const ReadyExpert& expert : ready) n_read += at_hand_[expert.expert.value] ? 0 : 1;
  still_to_read_ -= n_read;
  if (n_read != 0 && still_to_read_ == 0)
    meter_.add_drive(to_read_, now_ns - begun_ns_, waited_ns > waited_ns_);
  waited_ns_ = waited_ns;
}

uint32_t DeviceExperts::copies_of(uint32_t n, int64_t now_ns) {
  if (options_.placement == Placement::kCpu) return 0;
  if (options_.placement == Placement::kCopy) return n;
  const PlacementCosts costs = {meter_.cpu_ns(layer_), vram_->copy_ns(layer_),
                                meter_.device_ns(layer_)};
  const auto from_now = [&](int64_t at_ns) { return std::max<int64_t>(0, at_ns - now_ns); };
  PlacementQueues queues;
  queues.bus_ns = from_now(vram_->bus_free_ns());
  if (in_flight_)
    queues.device_ns = from_now(begun_ns_ + static_cast<int64_t>(taken_.size()) * costs.device_ns);
  if (still_to_read_ != 0)
    queues.drive_ns = from_now(begun_ns_ + int64_t{to_read_} * meter_.drive_ns());
  const uint32_t copies = experts_to_copy(n, costs, queues);
  const bool looks = copies == n && n != 0 && ++all_copied_ % kLookAgain == 0;
  return looks ? n - 1 : copies;
}

// True: the device will compute it. An expert that stays is held in RAM until its arrival is seen,
// a guest until the event is over.
bool DeviceExperts::copy_and_launch(const Routing& routing, const float* normed, ExpertId expert) {
  const std::optional<ExpertBytes> bytes = parts_.ram.hold(layer_, expert);
  if (!bytes) return false;
  const Visit visit =
      vram_->visit(layer_, expert, *bytes,
                   options_.promote == Promote::kOff ? std::span<const double>()
                                                     : value_.calls_expected(layer_));
  if (visit == Visit::kRefused || visit == Visit::kLost) {
    parts_.ram.release(layer_, expert);
    if (visit == Visit::kLost) release_all();
    return false;
  }
  (visit == Visit::kStays ? held_ : guests_).push_back({layer_, expert});
  const uint32_t e = expert.value;
  taken_.push_back({expert, routing.first[e + 1] - routing.first[e]});
  const Status launched = launch(routing, normed, taken_.size() - 1);
  if (launched) return true;
  taken_.pop_back();
  lose(launched.error());
  return false;
}

}  // namespace offstage
