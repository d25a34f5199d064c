#include "io/engine_priority.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace offstage {
namespace {

constexpr uint64_t kShortestSliceNs = 100'000;

// The kernel's struct sched_attr, as of its first version; <sched.h> has none.
struct SchedulingAttributes {
  uint32_t size = sizeof(SchedulingAttributes);
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0;  // of a fair thread: its time slice
  uint64_t deadline_ns = 0;
  uint64_t period_ns = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

constexpr pid_t kThisThread = 0;

}  // namespace

void ask_to_wake_promptly() {
  SchedulingAttributes now;
  if (syscall(SYS_sched_getattr, kThisThread, &now, sizeof now, 0u) != 0) return;
  if (now.policy != SCHED_OTHER) return;
  now.runtime_ns = kShortestSliceNs;
  (void)syscall(SYS_sched_setattr, kThisThread, &now, 0u);  // refused: as before
}

}  // namespace offstage
