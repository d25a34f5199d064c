#include "base/run_delay.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

namespace offstage {

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

int64_t KernelRunDelay::read_total_ns() const {
  char text[80];  // three numbers of 64 bits
  const ssize_t n = file_ < 0 ? -1 : pread(file_, text, sizeof text - 1, 0);
  if (n <= 0) return -1;
  text[n] = '\0';
  return run_delay_in(text);
}

int64_t KernelRunDelay::since_last_ns() {
  if (file_ < 0) return 0;
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
