#include "io/engine_doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

namespace offstage {

void Doorbell::ring() {
  if (state_.exchange(kRung) != kAsleep) return;
  const int saved = errno;  // the interrupted code of a signal handler may be looking at it
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&state_), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr,
          0);
  errno = saved;
}

void Doorbell::wait(int64_t timeout_ns) {
  uint32_t expected = kQuiet;
  if (state_.compare_exchange_strong(expected, kAsleep) && timeout_ns > 0) {
    const timespec timeout = {.tv_sec = timeout_ns / 1'000'000'000,
                              .tv_nsec = timeout_ns % 1'000'000'000};
    // Every return means "look again": woken, timed out, a signal, or rung before the sleep began.
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&state_), FUTEX_WAIT_PRIVATE, uint32_t{kAsleep},
            &timeout, nullptr, 0);
  }
  // Read-modify-write, not a store: it takes over what the ringer wrote before ring().
  state_.exchange(kQuiet);
}

}  // namespace offstage
