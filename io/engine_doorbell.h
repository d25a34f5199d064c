// A bell for one sleeper: wakes the thread that waits for completions.
//
// A futex word and nothing else, so that ring() may be called from a signal handler and costs no
// syscall while nobody sleeps. A ring that finds nobody asleep is kept until the next wait(), so
// the order "look into the queue, then wait()" loses nothing.
#pragma once

#include <atomic>
#include <cstdint>

namespace offstage {

// now + timeout, for timeouts that mean "for ever" too.
constexpr int64_t give_up_time_ns(int64_t now_ns, int64_t timeout_ns) {
  return timeout_ns > INT64_MAX - now_ns ? INT64_MAX : now_ns + timeout_ns;
}

class Doorbell {
 public:
  // Any thread, any number of them; async-signal-safe.
  void ring();

  // One thread at a time. Returns after a ring() since the last return, at the latest after
  // `timeout_ns` (rounded up by the kernel's timer), sometimes for no reason: the caller looks.
  void wait(int64_t timeout_ns);

 private:
  enum : uint32_t { kQuiet = 0, kAsleep = 1, kRung = 2 };
  std::atomic<uint32_t> state_{kQuiet};
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
};

}  // namespace offstage
