// Promise 4: every nanosecond of the decode thread belongs to exactly one cause.
//
// A timer is always inside one cause; enter() closes the current one at the same reading of the
// clock that opens the next, so the parts sum to the whole by construction and nothing is found by
// subtraction. Owned by the decode thread; not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/clock.h"

namespace offstage {

enum class Cause : uint8_t {
  kAttention,  // norms, projections, rotary, attention, KV writes
  kRouter,     // router logits, top-k, grouping of rows by expert
  kExperts,    // expert and shared-expert FFNs, their sum
  kOutput,     // final norm and logits
  kWaitDrive,  // no expert ready: asleep until a read completes
  kHash,       // holding what was read against the index
  kCache,      // residency bookkeeping, starting reads
  kSample,     // sampler
  kLookahead,  // guessing the next layer's experts
  kCaller,     // what the caller did with the token before: text, output
  kRecord,     // writing down what the token before cost
  kOther,      // what nobody claimed
};
inline constexpr size_t kCauseCount = 12;

// Published in JSON; never renamed.
constexpr std::string_view cause_name(Cause cause) {
  constexpr std::array<std::string_view, kCauseCount> kNames = {
      "attention", "router", "experts",   "output", "wait_drive", "hash",
      "cache",     "sample", "lookahead", "caller", "record",     "other"};
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
  explicit CauseTimer(const Clock& clock) : clock_(clock), since_ns_(clock.now_ns()) {}

  // Returns the reading that closes one cause and opens the next.
  int64_t enter(Cause cause) {
    const int64_t now = clock_.now_ns();
    times_.ns[static_cast<size_t>(cause_)] += now - since_ns_;
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
  const Clock& clock_;
  int64_t since_ns_;
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
