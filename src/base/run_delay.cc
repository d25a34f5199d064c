#include "base/run_delay.h"

#include <fcntl.h>
#include <sys/rseq.h>
#include <unistd.h>

#include <cstdlib>

namespace offstage {
namespace {

// A section of one byte, which is data. Whoever is interrupted there goes on at its abort_ip,
// before which Linux wants to find a number.
const struct rseq_cs* nowhere() {
  static const uint32_t kNeverReached[2] = {RSEQ_SIG, 0};
  static const struct rseq_cs kSection = {0, 0, reinterpret_cast<uintptr_t>(&kSection), 1,
                                          reinterpret_cast<uintptr_t>(&kNeverReached[1])};
  return &kSection;
}

// Null where the C library has registered none.
volatile uint64_t* section_of_this_thread() {
  if (__rseq_size == 0) return nullptr;
  auto* const area = reinterpret_cast<volatile struct rseq*>(
      static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
  if (static_cast<int32_t>(area->cpu_id) < 0) return nullptr;
  return reinterpret_cast<volatile uint64_t*>(&area->rseq_cs);
}

}  // namespace

bool InterruptionWatch::arm() {
  section_ = section_of_this_thread();
  if (section_ != nullptr) *section_ = reinterpret_cast<uintptr_t>(nowhere());
  return section_ != nullptr;
}

bool InterruptionWatch::went_off() const {
  return section_ == nullptr || section_ != section_of_this_thread() || *section_ == 0;
}

int64_t run_delay_in(const char* schedstat) {
  // Ran, delayed, times it got a CPU. Who asks got it once at least, though what it ran since may
  // not be counted yet.
  long long numbers[3] = {};
  for (long long& number : numbers) {
    char* end = nullptr;
    number = std::strtoll(schedstat, &end, 10);
    if (end == schedstat || number < 0) return -1;
    schedstat = end;
  }
  return numbers[2] == 0 ? -1 : int64_t{numbers[1]};
}

void KernelRunDelay::open_own() {
  thread_ = gettid();
  file_ = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  seen_ns_ = read_total_ns();
  if (seen_ns_ < 0) close_file();
}

void KernelRunDelay::close_file() {
  if (file_ >= 0) close(file_);
  file_ = -1;
}

// Watched from before it is read: what comes in between is looked at twice, not overlooked.
int64_t KernelRunDelay::read_total_ns() {
  if (file_ >= 0) watch_.arm();
  char text[80];  // three numbers of 64 bits
  const ssize_t n = file_ < 0 ? -1 : pread(file_, text, sizeof text - 1, 0);
  if (n <= 0) return -1;
  text[n] = '\0';
  return run_delay_in(text);
}

int64_t KernelRunDelay::since_last_ns() {
  if (file_ < 0 || !watch_.went_off()) return 0;
  if (gettid() != thread_) {
    close_file();
    open_own();
    return 0;
  }
  const int64_t total_ns = read_total_ns();
  if (total_ns < seen_ns_) return 0;  // unreadable: nothing is known of this time
  const int64_t since_ns = total_ns - seen_ns_;
  seen_ns_ = total_ns;
  return since_ns;
}

}  // namespace offstage
