// One io_uring with its registrations, and what each errno of io_uring_enter means to us.
//
// In: open files, the memory that reads go to. Everything here belongs to one thread, the one that
// called set_up() (SINGLE_ISSUER and DEFER_TASKRUN ask for that). Files and memory outlive it.
#pragma once

#include <liburing.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "io/engine.h"
#include "io/file.h"

namespace offstage {

enum class EnterOutcome {
  kEntered,  // the kernel took what there was; completions may be there
  kBackOff,  // the kernel lacks memory for more: wait for completions or a little, then again
  kDead,     // this ring won't read any more; dead_errno() says why
};

class UringRing {
 public:
  static constexpr uint64_t kWakeKey = UINT64_MAX - 1;
  static_assert(kWakeKey != LIBURING_UDATA_TIMEOUT);  // liburing's own, dropped in drain()
  static constexpr int64_t kNoTimeout = -1;

  UringRing() = default;
  UringRing(const UringRing&) = delete;
  UringRing& operator=(const UringRing&) = delete;
  ~UringRing();

  // Sets up and proves a ring for `depth` reads and one wake-up. Announces what it does without
  // (subjects "io_buffers", "io_files"). Errors carry the errno's text.
  Status set_up(uint32_t depth, std::span<const ReadFile> files,
                std::span<const std::span<std::byte>> buffers, Notices& notices);

  // Queue for the next enter(); there is always room for `depth` reads and one wake-up. push_read
  // returns true if the read goes to registered memory.
  bool push_read(const ReadRequest& request, uint64_t key);
  void push_wake(int event_fd);  // completes with kWakeKey once the eventfd was written

  // Submits what was pushed and sleeps until there is a completion, one syscall for both;
  // `timeout_ns` bounds the sleep (kernels before 5.11 ignore it).
  EnterOutcome enter(bool wait, int64_t timeout_ns = kNoTimeout);

  // Pushed but not taken by the kernel. take_back() forgets the oldest of them, returns its key.
  uint32_t unsubmitted() const { return io_uring_sq_ready(&ring_); }
  uint64_t take_back();

  // handle(key, result) for every completion that is there.
  template <typename Handler>
  size_t drain(Handler&& handle) {
    io_uring_cqe* cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      ++count;
      if (cqe->user_data != LIBURING_UDATA_TIMEOUT) handle(uint64_t{cqe->user_data}, cqe->res);
    }
    io_uring_cq_advance(&ring_, count);
    return count;
  }

  int dead_errno() const { return dead_errno_; }

 private:
  struct Piece {
    const std::byte* begin;
    size_t bytes;
  };
  Status create(uint32_t entries);
  Status prove();
  void register_files(std::span<const ReadFile> files, Notices& notices);
  void register_buffers(std::span<const std::span<std::byte>> buffers, Notices& notices);
  std::optional<uint32_t> piece_of(const std::byte* begin, size_t bytes) const;
  EnterOutcome outcome_of(int err);

  io_uring ring_ = {};
  bool created_ = false;
  bool files_registered_ = false;
  bool has_timeouts_ = false;
  int dead_errno_ = 0;
  uint64_t wake_count_ = 0;  // where the eventfd's counter is read to
  std::vector<int> fds_;
  std::vector<Piece> pieces_;  // sorted by address; the position is the kernel's buffer index
};

}  // namespace offstage
