// The scheduler's inside: jobs, blocks and the steps between them. For read_scheduler*.cc only.
//
// A job goes kFree → kActive → kDone (its result waits for reap()) → kFree, or, when its deadline
// passed while blocks of it were with the engine, kDone → kQuarantined → kFree.
// A block is one engine read: with the engine (in flight), or waiting for depth or a back-off. It
// belongs to one stripe of its job, and so to one drive; a plain extent is one stripe.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/read_scheduler.h"
#include "io/read_scheduler_list.h"

namespace offstage {

struct ReadScheduler::State {
  enum class JobState : uint8_t { kFree, kActive, kDone, kQuarantined };

  struct Stripe {
    uint64_t issued_bytes = 0;  // of its span, given to blocks so far
    uint32_t in_flight = 0;     // blocks with the engine
  };

  struct Job {
    ReadJob request;
    JobState state = JobState::kFree;
    bool failed = false;     // status holds the first error; no more blocks are issued
    uint32_t in_flight = 0;  // blocks with the engine
    uint32_t waiting = 0;    // blocks in a drive's `waiting`
    uint32_t retries = 0;
    uint32_t n_stripes = 0;
    std::array<Stripe, kStripesMax> stripes;
    uint64_t span_bytes = 0;
    uint64_t issued_bytes = 0;   // of the span, given to blocks so far
    uint64_t arrived_bytes = 0;  // of the span, in whole blocks
    uint64_t block_bytes = 0;
    int64_t started_ns = 0;
    int64_t issued_ns = 0;
    int64_t completed_ns = 0;
    uint32_t last_drive = 0;  // of the block answered last
    int64_t last_issued_ns = 0;
    Status status;
  };

  struct Block {
    uint32_t job = 0;
    uint32_t stripe = 0;
    uint32_t drive = 0;
    uint32_t bytes = 0;     // whole sectors
    uint32_t needed = 0;    // up to the extent's end: the file may end within the last sector
    uint32_t got = 0;       // arrived from the block's start, whole sectors
    uint32_t failures = 0;  // errors, and answers without progress
    uint32_t agains = 0;    // EINTR, EAGAIN
    uint64_t begin = 0;     // in the stripe's span
    int64_t not_before_ns = 0;
  };

  static constexpr int64_t kIdle = -1;  // no time of a clock
  struct Drive {
    explicit Drive(uint32_t jobs_max) : lanes{JobList(jobs_max), JobList(jobs_max)} {}
    JobList& lane(ReadLane which) { return lanes[which == ReadLane::kDemand ? 0 : 1]; }
    uint32_t& in_flight_of(ReadLane which) { return in_flight[which == ReadLane::kDemand ? 0 : 1]; }
    uint32_t total_in_flight() const { return in_flight[0] + in_flight[1]; }

    JobList lanes[2];               // jobs with bytes of this drive left to ask for, by lane
    std::vector<uint32_t> waiting;  // blocks to be asked for again
    uint32_t in_flight[2] = {0, 0};
    uint32_t blocks_used = 0;
    int64_t busy_since_ns = kIdle;
    DriveCounters counters;
  };

  State(IoEngine& engine_in, std::vector<std::string> paths_in, const Clock& clock_in,
        ReadSchedulerOptions options_in, uint32_t jobs_max);

  void start(const ReadJob& request);
  bool promote(uint64_t cookie);
  bool cancel(uint64_t cookie);
  uint32_t prefetch_job(uint64_t cookie) const;  // JobList::kNone: there is none
  void issue(int64_t now_ns);
  size_t collect(int64_t timeout_ns);
  void expire(int64_t now_ns);
  size_t deliver(std::span<ReadDone> out);
  int64_t next_event_ns(int64_t now_ns) const;

  void issue_waiting(Drive& drive, ReadLane lane, int64_t now_ns);
  void issue_new(Drive& drive, ReadLane lane);
  bool has_room(const Drive& drive, ReadLane lane) const;
  uint32_t stripe_to_issue(const Job& job, const Drive& drive) const;  // n_stripes: none
  uint32_t take_block(Drive& drive, uint32_t job_index, uint32_t stripe_index);
  void free_block(uint32_t block_index);
  void push(uint32_t block_index);
  void submit_batch(int64_t now_ns);
  void count_answer(const Block& block, const ReadCompletion& completion);

  void complete(const ReadCompletion& completion, int64_t now_ns);
  void judge(uint32_t block_index, int32_t result, int64_t now_ns);
  void retry(uint32_t block_index, int64_t not_before_ns);
  void no_progress(uint32_t block_index, int32_t result, int64_t now_ns);
  Error describe_failure(const Block& block, int32_t result) const;
  void fail(uint32_t job_index, Error error);
  void drop_waiting_of(uint32_t job_index);
  void finish(uint32_t job_index, int64_t now_ns);
  void finish_if_over(uint32_t job_index, int64_t now_ns);

  uint32_t total_in_flight() const;
  uint32_t drive_of(uint32_t file) const {
    return options.drive_of_file.empty() ? 0 : options.drive_of_file[file];
  }
  Extent late_stripe(const Job& job) const;  // the first of which something is missing

  IoEngine& engine;
  const std::vector<std::string> paths;
  const Clock& clock;
  const ReadSchedulerOptions options;

  std::vector<Drive> drives;
  const uint32_t depth;       // of each drive
  const uint32_t blocks_max;  // of each drive

  std::vector<Job> jobs;
  std::vector<uint32_t> free_jobs;
  JobList active;  // in order of start(), which is the order of deadlines
  JobList done;    // finished, to be handed out
  size_t quarantined = 0;
  std::vector<uint64_t> released;

  std::vector<Block> blocks;  // its number is the engine's tag
  std::vector<uint32_t> free_blocks;

  std::vector<ReadRequest> batch;
  std::vector<ReadCompletion> completions;
  ReadCounters counters;
};

}  // namespace offstage
