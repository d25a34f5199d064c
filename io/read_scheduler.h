// Reads of whole extents, made reliable: the logic between the RAM tier and an io engine.
//
// A job is one extent (an expert's matrix, a dense tensor) into one buffer that holds its
// sector-rounded span. The scheduler splits it into blocks the drive likes, keeps each drive's
// depth full (demand jobs before prefetch jobs, within a lane in order of start()), resumes short
// reads, retries EINTR/EAGAIN, retries EIO and other errors at most `retries_max` times, and gives
// every job a deadline. A job that outlives its deadline is finished as kDeadline, but its buffer
// stays untouchable (quarantined) until the last of its blocks has completed: `buffer_free` says
// so, and take_released() answers later. Nothing here looks at bytes: hashing is the tier's work.
//
// Every drive has its own lanes, its own depth (an equal share of the engine's) and its own blocks,
// so a drive that is slow, stalled or gone never takes another's place at the engine: reads of the
// others go on, and its own end at their deadline. A striped extent is one job of several drives.
//
// Threads: one owner thread. The clock is the caller's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "io/engine.h"
#include "io/extent.h"

namespace offstage {

enum class ReadLane : uint8_t { kDemand, kPrefetch };

struct ReadJob {
  Extent extent;
  std::byte* buffer = nullptr;  // kSectorBytes-aligned, ≥ span_bytes(extent)
  uint64_t cookie = 0;          // the caller's; comes back in ReadDone
  ReadLane lane = ReadLane::kDemand;
};

struct ReadDone {
  uint64_t cookie = 0;
  Status status;                    // kIo, kTruncated, kDeadline: message names path, offset, bytes
  bool buffer_free = true;          // false: quarantined, see ReadScheduler::take_released()
  const std::byte* data = nullptr;  // the extent's first byte in the buffer
  Extent extent;
  int64_t started_ns = 0;    // start() was called
  int64_t issued_ns = 0;     // its first block went to the kernel
  int64_t completed_ns = 0;  // its last block was answered
  uint32_t retries = 0;      // blocks asked for again (short, EINTR, EIO …)
  // Of the block that was answered last: whoever waited for this read waited for that drive, until
  // last_issued_ns for its queue, from then on for its service.
  uint32_t drive = 0;
  int64_t last_issued_ns = 0;
};

struct ReadSchedulerOptions {
  // By file: the drive it lies on, counted from 0 (io/drives.h). Empty: all on one.
  std::vector<uint32_t> drive_of_file = {};
  uint32_t block_bytes = 1u << 20;  // largest single read
  uint32_t retries_max = 3;         // per block, for errors that may pass
  int64_t deadline_ns = 30'000'000'000;
  // Blocks of prefetch jobs in flight at most on a drive, so that a demand read finds its queue
  // short.
  uint32_t prefetch_depth = 0;  // 0: the drive's depth
};

struct ReadCounters {
  uint64_t jobs = 0;
  uint64_t bytes_read = 0;  // what the drive delivered, rounding and retries included
  uint64_t retries = 0;
  uint64_t errors = 0;
  uint64_t deadline_misses = 0;
  uint64_t cancelled = 0;  // prefetches given up before all of them was asked for
};

// One drive's share of it.
struct DriveCounters {
  uint64_t bytes = 0;
  uint64_t reads = 0;   // blocks answered
  uint64_t errors = 0;  // of them with an errno that isn't "try again"
  uint32_t in_flight_max = 0;
  int64_t busy_ns = 0;  // time with at least one block at the drive, as the owner thread saw it
};

class ReadScheduler {
 public:
  ReadScheduler(IoEngine& engine, std::vector<std::string> paths, const Clock& clock,
                ReadSchedulerOptions options, uint32_t jobs_max);
  // Waits for blocks that the engine still has, at most the deadline or 10 s.
  ~ReadScheduler();

  void start(const ReadJob& job);             // at most jobs_max unfinished and quarantined (CHECK)
  void start(std::span<const ReadJob> jobs);  // together: one hand-over to the engine

  // A prefetch whose bytes are now called: what of it isn't with the drive yet goes behind the
  // demand reads that were started before. True if an unfinished prefetch has that cookie.
  bool promote(uint64_t cookie);
  // A prefetch that nobody will want: what isn't with the drive yet is never asked for. Its job
  // still comes back through reap(), as kCancelled or with all its bytes, when the drive has let go
  // of its buffer. True if an unfinished prefetch has that cookie (a demand read is never given
  // up).
  bool cancel(uint64_t cookie);

  // Moves finished jobs to `out`; waits up to `timeout_ns` for the first if any is unfinished. An
  // empty `out` only takes the engine's answers and asks it for more: in between other work.
  size_t reap(std::span<ReadDone> out, int64_t timeout_ns);

  // Cookies of jobs that came back with buffer_free = false and whose last block has since
  // completed: their buffers may be used again. Filled by reap().
  std::vector<uint64_t> take_released();

  size_t unfinished() const;   // started and not yet handed out by reap()
  size_t quarantined() const;  // handed out with buffer_free = false and not yet released
  const ReadCounters& counters() const;
  std::vector<DriveCounters> drive_counters() const;  // by drive

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// start() one job, wait for it: for loading dense tensors and for tests. No other job may be
// unfinished. After kDeadline the buffer may still be written to: see take_released().
Status read_extent(ReadScheduler& scheduler, const ReadJob& job);

}  // namespace offstage
