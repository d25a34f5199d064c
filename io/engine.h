// The seam to the drive: asynchronous reads, nothing cleverer.
//
// An engine takes aligned reads down and gives completions up. It doesn't retry, resume short
// reads, hash or time out: that is the ReadScheduler's work above the seam (read_scheduler.h), so
// that every form of engine runs under the same production logic:
//   uring    io_uring, O_DIRECT, registered buffers, one sleeping completion thread
//   threads  a pool of pread threads; the shipped fallback
//   fault    a decorator that injects failures by plan, over any of them
//   sim      in memory, under a virtual clock (sim.h): for tests and predictions, never opened here
// Threads: one thread (the scheduler's owner) calls submit() and reap(); an engine's own threads
// stay inside. A buffer belongs to the engine from submit() until its completion was reaped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/notices.h"
#include "base/result.h"

namespace offstage {

struct ReadRequest {
  uint64_t tag = 0;             // comes back in the completion
  uint32_t file = 0;            // index into IoEngineOptions::paths
  uint64_t offset = 0;          // multiple of kSectorBytes
  std::byte* buffer = nullptr;  // multiple of kSectorBytes
  uint32_t bytes = 0;           // multiple of kSectorBytes; past the end of file reads short
};

struct ReadCompletion {
  uint64_t tag = 0;
  int32_t result = 0;        // bytes read (0 at end of file), or −errno
  int64_t issued_ns = 0;     // given to the kernel
  int64_t completed_ns = 0;  // the kernel's answer was seen
};

enum class IoEngineKind { kAuto, kUring, kThreads };
enum class DirectIo { kAuto, kOn, kOff };

struct IoEngineOptions {
  std::vector<std::string> paths = {};
  IoEngineKind kind = IoEngineKind::kAuto;  // auto: uring, else threads, announced
  DirectIo direct = DirectIo::kAuto;        // auto: O_DIRECT, else buffered, announced per file
  uint32_t depth = 32;                      // reads in flight at most, over all files
  // By file: its drive (drives.h); empty: all on one. uring serves them all with one ring, since
  // the scheduler bounds what each drive has of it; threads has a pool for each.
  std::vector<uint32_t> drive_of_file = {};
  // Memory that most reads go to; registered with the kernel where it allows (announced if not).
  std::vector<std::span<std::byte>> buffers = {};
};

// Facts about an engine's work so far: what reports say and tests prove.
struct IoEngineCounters {
  uint64_t reads = 0;          // completed
  uint64_t fixed_reads = 0;    // of them into registered memory
  uint64_t submit_calls = 0;   // syscalls that gave reads to the kernel
  uint32_t in_flight_max = 0;  // most reads that the kernel had at once
};

class IoEngine {
 public:
  // Waits for the reads that the kernel still has (uring: at most 10 s, then leaves the ring to
  // the kernel): after it, buffers are the caller's again.
  virtual ~IoEngine() = default;

  virtual std::string_view name() const = 0;             // "uring", "threads", "fault(uring)"
  virtual bool direct_io(uint32_t file) const = 0;       // proven by a real read at open
  virtual uint64_t file_bytes(uint32_t file) const = 0;  // at open
  virtual uint32_t depth() const = 0;
  virtual IoEngineCounters counters() const { return {}; }  // any thread

  // Takes as many requests, from the front, as there is depth for; returns how many.
  virtual size_t submit(std::span<const ReadRequest> requests) = 0;

  // Moves completions to `out`, waiting (asleep, no polling) until there is at least one or
  // `timeout_ns` has passed (0: only what is there). Returns how many.
  virtual size_t reap(std::span<ReadCompletion> out, int64_t timeout_ns) = 0;

  // Wakes a waiting reap() of another thread, or makes the next waiting one return at once; once.
  // Async-signal-safe. (A reap() of timeout 0 neither waits nor uses the interruption up.)
  virtual void interrupt() = 0;
};

// Opens the files and the engine asked for. `on` or a named engine that isn't possible is an error;
// `auto` falls back and says so (subjects "io_engine", "direct_io", "io_buffers").
Result<std::unique_ptr<IoEngine>> open_io_engine(const IoEngineOptions& options, Notices& notices);

}  // namespace offstage
