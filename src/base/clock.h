// Time as an interface, so that the same code runs on the wall clock and in a simulator.
#pragma once

#include <cstdint>

namespace offstage {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t now_ns() const = 0;  // monotonic; the epoch is arbitrary
};

class SteadyClock final : public Clock {
 public:
  int64_t now_ns() const override;
};

// Moved by hand; for tests and simulation. Not thread-safe.
class ManualClock final : public Clock {
 public:
  int64_t now_ns() const override { return now_ns_; }
  void advance_ns(int64_t ns) { now_ns_ += ns; }

 private:
  int64_t now_ns_ = 0;
};

}  // namespace offstage
