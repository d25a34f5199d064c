// Promise 4: every nanosecond of the decode thread belongs to exactly one cause.
//
// A timer is always inside one cause; enter() closes the current one at the same reading of the
// clock that opens the next, so the parts sum to the whole by construction and nothing is found by
// subtraction. Time in which the thread was ready and others had its CPU isn't the cause's that it
// was in: the kernel counts it, and it is a cause of its own. Owned by the decode thread; not
// thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "base/clock.h"
#include "base/run_delay.h"

namespace offstage {

enum class Cause : uint8_t {
  kAttention,    // embedding, norms, projections, rotary, attention, KV pages and writes
  kRouter,       // router logits, top-k, grouping of rows by expert
  kExperts,      // expert and shared-expert FFNs, their sum
  kOutput,       // final norm and logits
  kWaitDrive,    // no expert ready: asleep until a read completes
  kHash,         // holding what was read against the index
  kCache,        // residency bookkeeping, starting reads
  kSample,       // which token comes next: sampler, whether to stop, the next forward's rows
  kLookahead,    // guessing the next layer's experts
  kGpu,          // handing rows over to the device, and waiting for what it computes
  kPcie,         // bringing experts to the device's memory
  kCaller,       // what the caller did with the token before: text, output
  kRecord,       // writing down what the token before cost, and its routing
  kDescheduled,  // ready to run, while others had the CPU
  kOther,        // what nobody claimed: nothing inside a generation
};
inline constexpr size_t kCauseCount = 15;

// Published in JSON; never renamed.
constexpr std::string_view cause_name(Cause cause) {
  constexpr std::array<std::string_view, kCauseCount> kNames = {
      "attention", "router", "experts", "output", "wait_drive", "hash",        "cache", "sample",
      "lookahead", "gpu",    "pcie",    "caller", "record",     "descheduled", "other"};
  return kNames[static_cast<size_t>(cause)];
}

struct CauseTimes {
  std::array<int64_t, kCauseCount> ns = {};

  int64_t operator[](Cause cause) const { return ns[static_cast<size_t>(cause)]; }
  int64_t total_ns() const {
    int64_t total = 0;
    for (const int64_t part : ns) total += part;
    return total;
  }
  CauseTimes& operator+=(const CauseTimes& other) {
    for (size_t i = 0; i < kCauseCount; ++i) ns[i] += other.ns[i];
    return *this;
  }
};

class CauseTimer {
 public:
  // How often the kernel is asked at most: it takes under a microsecond, so this costs less than
  // 0.4 % of the time; and a thread that loses its CPU loses it for longer as a rule.
  static constexpr int64_t kLookEveryNs = 250'000;

  // Without `run_delay` nothing is charged to kDescheduled.
  explicit CauseTimer(const Clock& clock, RunDelay* run_delay = nullptr)
      : clock_(clock),
        run_delay_(run_delay),
        since_ns_(clock.now_ns()),
        looked_ns_(run_delay == nullptr ? kNever : since_ns_) {}

  // Returns the reading that closes one cause and opens the next.
  int64_t enter(Cause cause) {
    const int64_t now = clock_.now_ns();
    int64_t spent_ns = now - since_ns_;
    if (now - looked_ns_ >= kLookEveryNs) [[unlikely]]
      spent_ns -= look(spent_ns, now);
    times_.ns[static_cast<size_t>(cause_)] += spent_ns;
    since_ns_ = now;
    cause_ = cause;
    return now;
  }
  Cause cause() const { return cause_; }
  int64_t since_ns() const { return since_ns_; }  // when the current cause was entered
  // Collected since the last take(), up to the last enter().
  const CauseTimes& times() const { return times_; }

  // Closes the current cause, returns what was collected since the last take(), starts anew in the
  // same cause.
  CauseTimes take() {
    enter(cause_);
    const CauseTimes taken = times_;
    times_ = {};
    return taken;
  }

 private:
  // So late that no look is ever due.
  static constexpr int64_t kNever = INT64_MAX / 2;

  // What of the cause that ends now, after `spent_ns`, the thread spent ready and without a CPU.
  // Never too much: of the delay since the last look, as much as fits into the causes that came
  // before this one may be theirs. A wait for a drive keeps all its time, which is charged to the
  // read that ended it; what of it the thread only took to wake up is in the trace (DriveWait).
  int64_t look(int64_t spent_ns, int64_t now) {
    const int64_t delay_ns = run_delay_->since_last_ns();
    const int64_t before_ns = since_ns_ - looked_ns_;
    looked_ns_ = now;
    if (cause_ == Cause::kWaitDrive) return 0;
    const int64_t taken_ns = std::clamp<int64_t>(delay_ns - before_ns, 0, spent_ns);
    times_.ns[static_cast<size_t>(Cause::kDescheduled)] += taken_ns;
    return taken_ns;
  }

  const Clock& clock_;
  RunDelay* run_delay_;
  int64_t since_ns_;
  int64_t looked_ns_;
  Cause cause_ = Cause::kOther;
  CauseTimes times_;
};

// Enters a cause for a scope and returns to the one before.
class CauseScope {
 public:
  CauseScope(CauseTimer& timer, Cause cause)
      : timer_(timer), before_(timer.cause()), entered_ns_(timer.enter(cause)) {}
  ~CauseScope() { timer_.enter(before_); }
  CauseScope(const CauseScope&) = delete;
  CauseScope& operator=(const CauseScope&) = delete;
  int64_t entered_ns() const { return entered_ns_; }

 private:
  CauseTimer& timer_;
  Cause before_;
  int64_t entered_ns_;
};

}  // namespace offstage
