// How long a thread was ready to run while its CPU was others', as the kernel counts it.
#pragma once

#include <cstdint>

namespace offstage {

class RunDelay {
 public:
  virtual ~RunDelay() = default;
  // Of the calling thread, since it called last; 0 at its first call, and where another thread
  // called in between. Grows when the thread has its CPU back.
  virtual int64_t since_last_ns() = 0;
};

// Tells, without asking the kernel, whether it has interrupted a thread. Linux empties a thread's
// rseq_cs when it takes the CPU from it, or a signal comes, outside of the section of code named
// there (linux/rseq.h); here that is a section where nobody ever is.
class InterruptionWatch {
 public:
  // Of the calling thread. False: it has no rseq area (Linux before 4.18, glibc before 2.35 or told
  // not to, a debugger that knows no rseq), and nothing is known.
  bool arm();
  // Was the calling thread interrupted since arm()? True too if another thread had called that.
  bool went_off() const;
  bool is_armed() const { return section_ != nullptr; }

 private:
  volatile uint64_t* section_ = nullptr;  // the thread's rseq_cs
};

// The second number of Linux's /proc/thread-self/schedstat, read only if the thread was interrupted
// since it was read last (else, without a watch, always: about a microsecond); nothing is
// allocated. For one thread at a time.
class KernelRunDelay final : public RunDelay {
 public:
  KernelRunDelay() { open_own(); }
  ~KernelRunDelay() override { close_file(); }
  KernelRunDelay(const KernelRunDelay&) = delete;
  KernelRunDelay& operator=(const KernelRunDelay&) = delete;

  int64_t since_last_ns() override;
  // False: this kernel doesn't count it, and every answer is 0.
  bool is_known() const { return file_ >= 0; }

 private:
  void open_own();
  void close_file();
  int64_t read_total_ns();

  InterruptionWatch watch_;
  int file_ = -1;
  int thread_ = 0;  // whose file it is
  int64_t seen_ns_ = 0;
};

// Out of a schedstat: "run_ns delay_ns slices"; -1 if it isn't one, or of a kernel that doesn't
// count (which writes zeros).
int64_t run_delay_in(const char* schedstat);

}  // namespace offstage
