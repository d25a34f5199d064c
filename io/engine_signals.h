// Engines' threads take no signals: Ctrl-C belongs to the thread that decides what it means, and a
// read interrupted for nothing is a syscall wasted.
#pragma once

#include <csignal>

namespace offstage {

// While it lives, the calling thread has all signals blocked, and the threads it starts inherit
// that for good. (Blocking inside the new thread would leave a gap at its start.)
class ScopedSignalBlock {
 public:
  ScopedSignalBlock() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~ScopedSignalBlock() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  ScopedSignalBlock(const ScopedSignalBlock&) = delete;
  ScopedSignalBlock& operator=(const ScopedSignalBlock&) = delete;

 private:
  sigset_t before_;
};

}  // namespace offstage
