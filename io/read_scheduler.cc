// A job goes kFree → kActive → kDone (its result waits for reap()) → kFree, or, when its deadline
// passed while blocks of it were with the engine, kDone → kQuarantined → kFree.
// A block is one engine read: with the engine (in flight), or waiting for depth or a back-off.
#include "io/read_scheduler.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "io/engine_doorbell.h"
#include "io/read_scheduler_list.h"

namespace offstage {
namespace {

constexpr int64_t kNever = INT64_MAX;
constexpr int64_t kCloseWaitNs = 10'000'000'000;

// "Try again" answers: at once, then 50 us doubling to 6.4 ms, until the deadline.
constexpr int64_t again_backoff_ns(uint32_t times) {
  return times == 0 ? 0 : int64_t{50'000} << std::min(times - 1, 7u);
}
// Errors: 1, 4, 16 … ms, so that retries_max of them outlast a short hiccup of the drive.
constexpr int64_t error_backoff_ns(uint32_t failures) {
  return int64_t{1'000'000} << (2 * std::min(failures - 1, 4u));
}

enum class JobState : uint8_t { kFree, kActive, kDone, kQuarantined };

struct Job {
  ReadJob request;
  JobState state = JobState::kFree;
  bool failed = false;     // status holds the first error; no more blocks are issued
  uint32_t in_flight = 0;  // blocks with the engine
  uint32_t waiting = 0;    // blocks in waiting_
  uint32_t retries = 0;
  uint64_t span_bytes = 0;
  uint64_t issued_bytes = 0;   // of the span, given to blocks so far
  uint64_t arrived_bytes = 0;  // of the span, in whole blocks
  uint64_t block_bytes = 0;
  int64_t started_ns = 0;
  int64_t issued_ns = 0;
  int64_t completed_ns = 0;
  Status status;
};

struct Block {
  uint32_t job = 0;
  uint32_t bytes = 0;     // whole sectors
  uint32_t needed = 0;    // up to the extent's end: the file may end within the last sector
  uint32_t got = 0;       // arrived from the block's start, whole sectors
  uint32_t failures = 0;  // errors, and answers without progress
  uint32_t agains = 0;    // EINTR, EAGAIN
  uint64_t begin = 0;     // in the job's span
  int64_t not_before_ns = 0;
};

}  // namespace

struct ReadScheduler::State {
  State(IoEngine& engine_in, std::vector<std::string> paths_in, const Clock& clock_in,
        ReadSchedulerOptions options_in, uint32_t jobs_max);

  void start(const ReadJob& request);
  void issue(int64_t now_ns);
  size_t collect(int64_t timeout_ns);
  void expire(int64_t now_ns);
  size_t deliver(std::span<ReadDone> out);
  int64_t next_event_ns(int64_t now_ns) const;

  void issue_waiting(ReadLane lane, int64_t now_ns);
  void issue_new(ReadLane lane);
  bool has_room(ReadLane lane) const;
  void push(uint32_t block_index);
  void submit_batch();

  void complete(const ReadCompletion& completion, int64_t now_ns);
  void judge(uint32_t block_index, int32_t result, int64_t now_ns);
  void retry(uint32_t block_index, int64_t not_before_ns);
  void no_progress(uint32_t block_index, int32_t result, int64_t now_ns);
  Error describe_failure(const Block& block, int32_t result) const;
  void fail(uint32_t job_index, Error error);
  void drop_waiting_of(uint32_t job_index);
  void finish(uint32_t job_index, int64_t now_ns);
  void finish_if_over(uint32_t job_index, int64_t now_ns);

  JobList& lane_list(ReadLane lane) { return lanes[lane == ReadLane::kDemand ? 0 : 1]; }
  uint32_t& lane_in_flight(ReadLane lane) { return in_flight[lane == ReadLane::kDemand ? 0 : 1]; }
  uint32_t total_in_flight() const { return in_flight[0] + in_flight[1]; }

  IoEngine& engine;
  const std::vector<std::string> paths;
  const Clock& clock;
  const ReadSchedulerOptions options;
  const uint32_t depth;

  std::vector<Job> jobs;
  std::vector<uint32_t> free_jobs;
  JobList lanes[2];  // jobs with span left to issue, by lane
  JobList active;    // in order of start(), which is the order of deadlines
  JobList done;      // finished, to be handed out
  size_t quarantined = 0;
  std::vector<uint64_t> released;

  std::vector<Block> blocks;  // its number is the engine's tag
  std::vector<uint32_t> free_blocks;
  std::vector<uint32_t> waiting;  // blocks to be asked for again
  uint32_t in_flight[2] = {0, 0};

  std::vector<ReadRequest> batch;
  std::vector<ReadCompletion> completions;
  ReadCounters counters;
};

ReadScheduler::State::State(IoEngine& engine_in, std::vector<std::string> paths_in,
                            const Clock& clock_in, ReadSchedulerOptions options_in,
                            uint32_t jobs_max)
    : engine(engine_in),
      paths(std::move(paths_in)),
      clock(clock_in),
      options(options_in),
      depth(engine_in.depth()),
      jobs(jobs_max),
      lanes{JobList(jobs_max), JobList(jobs_max)},
      active(jobs_max),
      done(jobs_max),
      // Twice the depth: blocks that wait for a back-off don't keep others from the drive.
      blocks(size_t{2} * depth),
      completions(depth) {
  CHECK_GE(options.block_bytes, kSectorBytes);
  CHECK_LE(options.block_bytes, 1u << 30);
  CHECK_GT(options.deadline_ns, 0);
  CHECK_LT(options.deadline_ns, kNever / 2);  // so that no sum with a clock's time overflows
  CHECK_GT(jobs_max, 0u);
  for (uint32_t i = jobs_max; i-- > 0;) free_jobs.push_back(i);
  for (auto i = static_cast<uint32_t>(blocks.size()); i-- > 0;) free_blocks.push_back(i);
  waiting.reserve(blocks.size());
  batch.reserve(depth);
  released.reserve(jobs_max);
}

void ReadScheduler::State::start(const ReadJob& request) {
  CHECK(!free_jobs.empty());
  CHECK_LT(request.extent.file, paths.size());
  CHECK_EQ(reinterpret_cast<uintptr_t>(request.buffer) % kSectorBytes, 0u);
  const uint32_t index = free_jobs.back();
  free_jobs.pop_back();
  Job& job = jobs[index];
  job = {};
  job.request = request;
  job.state = JobState::kActive;
  job.started_ns = clock.now_ns();
  active.push_back(index);
  ++counters.jobs;

  const Extent& extent = request.extent;
  const uint64_t file_bytes = engine.file_bytes(extent.file);
  const auto end = checked_add(extent.offset, extent.bytes);
  if (!end || *end > file_bytes) {
    fail(index, {ErrorCode::kTruncated,
                 fmt::format("{}: {} bytes at offset {} are needed, but the file has {} bytes",
                             paths[extent.file], extent.bytes, extent.offset, file_bytes)});
  } else if (extent.bytes != 0) {
    job.span_bytes = span_bytes(extent);
    // Blocks of equal size: a span one sector over block_bytes makes two halves, not a crumb.
    const uint64_t block_bytes_max = round_down(options.block_bytes, kSectorBytes);
    const uint64_t count = (job.span_bytes + block_bytes_max - 1) / block_bytes_max;
    job.block_bytes = round_up((job.span_bytes + count - 1) / count, kSectorBytes);
    lane_list(request.lane).push_back(index);
  }
  finish_if_over(index, job.started_ns);
}

// ---- towards the engine ----

void ReadScheduler::State::issue(int64_t now_ns) {
  for (const ReadLane lane : {ReadLane::kDemand, ReadLane::kPrefetch}) {
    issue_waiting(lane, now_ns);
    issue_new(lane);
  }
  submit_batch();
}

bool ReadScheduler::State::has_room(ReadLane lane) const {
  if (total_in_flight() >= depth) return false;
  return lane == ReadLane::kDemand || options.prefetch_depth == 0 ||
         in_flight[1] < options.prefetch_depth;
}

void ReadScheduler::State::issue_waiting(ReadLane lane, int64_t now_ns) {
  for (size_t i = 0; i < waiting.size() && has_room(lane);) {
    const Block& block = blocks[waiting[i]];
    if (jobs[block.job].request.lane != lane || block.not_before_ns > now_ns) {
      ++i;
      continue;
    }
    --jobs[block.job].waiting;
    push(waiting[i]);
    waiting.erase(waiting.begin() + static_cast<ptrdiff_t>(i));
  }
}

void ReadScheduler::State::issue_new(ReadLane lane) {
  JobList& list = lane_list(lane);
  while (!list.empty() && has_room(lane) && !free_blocks.empty()) {
    const uint32_t index = list.front();
    Job& job = jobs[index];
    const uint32_t block_index = free_blocks.back();
    free_blocks.pop_back();
    const uint64_t begin = job.issued_bytes;
    const uint64_t bytes = std::min(job.block_bytes, job.span_bytes - begin);
    const uint64_t extent_end = span_head(job.request.extent) + job.request.extent.bytes;
    blocks[block_index] = {.job = index,
                           .bytes = static_cast<uint32_t>(bytes),
                           .needed = static_cast<uint32_t>(std::min(bytes, extent_end - begin)),
                           .begin = begin};
    job.issued_bytes += bytes;
    if (job.issued_bytes == job.span_bytes) list.remove(index);
    push(block_index);
  }
}

void ReadScheduler::State::push(uint32_t block_index) {
  const Block& block = blocks[block_index];
  Job& job = jobs[block.job];
  const uint64_t at = block.begin + block.got;
  batch.push_back({.tag = block_index,
                   .file = job.request.extent.file,
                   .offset = span_offset(job.request.extent) + at,
                   .buffer = job.request.buffer + at,
                   .bytes = block.bytes - block.got});
  ++job.in_flight;
  ++lane_in_flight(job.request.lane);
}

void ReadScheduler::State::submit_batch() {
  if (batch.empty()) return;
  const size_t taken = engine.submit(batch);
  // An engine that takes fewer than its depth has other users, or reads that never end.
  for (size_t i = taken; i < batch.size(); ++i) {
    const auto block_index = static_cast<uint32_t>(batch[i].tag);
    Job& job = jobs[blocks[block_index].job];
    --job.in_flight;
    --lane_in_flight(job.request.lane);
    ++job.waiting;
    blocks[block_index].not_before_ns = 0;
    waiting.push_back(block_index);
  }
  batch.clear();
}

// ---- from the engine ----

size_t ReadScheduler::State::collect(int64_t timeout_ns) {
  const size_t count = engine.reap(completions, timeout_ns);
  const int64_t now_ns = clock.now_ns();
  for (size_t i = 0; i < count; ++i) complete(completions[i], now_ns);
  return count;
}

void ReadScheduler::State::complete(const ReadCompletion& completion, int64_t now_ns) {
  const auto block_index = static_cast<uint32_t>(completion.tag);
  CHECK_LT(completion.tag, blocks.size());
  const uint32_t job_index = blocks[block_index].job;
  Job& job = jobs[job_index];
  CHECK_GT(job.in_flight, 0u);
  --job.in_flight;
  --lane_in_flight(job.request.lane);
  if (completion.result > 0) counters.bytes_read += static_cast<uint64_t>(completion.result);
  if (job.issued_ns == 0) job.issued_ns = completion.issued_ns;
  job.issued_ns = std::min(job.issued_ns, completion.issued_ns);
  if (job.state == JobState::kActive && !job.failed) {
    judge(block_index, completion.result, now_ns);
  } else {
    free_blocks.push_back(block_index);
  }
  finish_if_over(job_index, completion.completed_ns);
  if (job.state == JobState::kQuarantined && job.in_flight == 0) {
    released.push_back(job.request.cookie);
    job.state = JobState::kFree;
    free_jobs.push_back(job_index);
    --quarantined;
  }
}

// What each answer of the drive means for a block of a job that still wants it.
void ReadScheduler::State::judge(uint32_t block_index, int32_t result, int64_t now_ns) {
  Block& block = blocks[block_index];
  if (result == -EINTR || result == -EAGAIN) {
    return retry(block_index, now_ns + again_backoff_ns(block.agains++));
  }
  if (result < 0) return no_progress(block_index, result, now_ns);
  CHECK_LE(static_cast<uint32_t>(result), block.bytes - block.got);
  const uint32_t got = block.got + static_cast<uint32_t>(result);
  if (got >= block.needed) {
    jobs[block.job].arrived_bytes += block.bytes;
    free_blocks.push_back(block_index);
    return;
  }
  // Short. A direct read goes on at a sector's start, so the torn sector is read again.
  const auto whole = static_cast<uint32_t>(round_down(got, kSectorBytes));
  if (whole == block.got) return no_progress(block_index, result, now_ns);
  block.got = whole;
  retry(block_index, now_ns);
}

void ReadScheduler::State::retry(uint32_t block_index, int64_t not_before_ns) {
  Job& job = jobs[blocks[block_index].job];
  blocks[block_index].not_before_ns = not_before_ns;
  waiting.push_back(block_index);
  ++job.waiting;
  ++job.retries;
  ++counters.retries;
}

void ReadScheduler::State::no_progress(uint32_t block_index, int32_t result, int64_t now_ns) {
  Block& block = blocks[block_index];
  if (result < 0) ++counters.errors;
  if (block.failures < options.retries_max) {
    ++block.failures;
    return retry(block_index, now_ns + error_backoff_ns(block.failures));
  }
  const uint32_t job_index = block.job;
  Error error = describe_failure(block, result);
  free_blocks.push_back(block_index);
  fail(job_index, std::move(error));
}

Error ReadScheduler::State::describe_failure(const Block& block, int32_t result) const {
  const Extent& extent = jobs[block.job].request.extent;
  const uint64_t offset = span_offset(extent) + block.begin + block.got;
  if (result < 0) {
    return {ErrorCode::kIo,
            fmt::format("{}: reading {} bytes at offset {} failed {} times: {} (errno {})",
                        paths[extent.file], block.bytes - block.got, offset, block.failures + 1,
                        std::strerror(-result), -result)};
  }
  return {ErrorCode::kTruncated,
          fmt::format("{}: {} bytes at offset {} are needed, the file gives {} ({} times): it was "
                      "{} bytes long when opened",
                      paths[extent.file], block.needed - block.got, offset, result,
                      block.failures + 1, engine.file_bytes(extent.file))};
}

// ---- the end of a job ----

void ReadScheduler::State::fail(uint32_t job_index, Error error) {
  Job& job = jobs[job_index];
  job.failed = true;
  job.status = tl::unexpected(std::move(error));
  JobList& list = lane_list(job.request.lane);
  if (list.contains(job_index)) list.remove(job_index);
  drop_waiting_of(job_index);
}

void ReadScheduler::State::drop_waiting_of(uint32_t job_index) {
  std::erase_if(waiting, [&](uint32_t block_index) {
    if (blocks[block_index].job != job_index) return false;
    free_blocks.push_back(block_index);
    return true;
  });
  jobs[job_index].waiting = 0;
}

void ReadScheduler::State::finish_if_over(uint32_t job_index, int64_t now_ns) {
  const Job& job = jobs[job_index];
  const bool issued = job.failed || job.issued_bytes == job.span_bytes;
  if (job.state == JobState::kActive && issued && job.in_flight == 0 && job.waiting == 0) {
    finish(job_index, now_ns);
  }
}

void ReadScheduler::State::finish(uint32_t job_index, int64_t now_ns) {
  Job& job = jobs[job_index];
  job.state = JobState::kDone;
  job.completed_ns = now_ns;
  active.remove(job_index);
  done.push_back(job_index);
}

void ReadScheduler::State::expire(int64_t now_ns) {
  while (!active.empty()) {
    const uint32_t index = active.front();
    Job& job = jobs[index];
    if (now_ns - job.started_ns < options.deadline_ns) return;
    ++counters.deadline_misses;
    const Extent& extent = job.request.extent;
    if (!job.failed) {
      fail(index, {ErrorCode::kDeadline,
                   fmt::format("{}: {} bytes at offset {} did not arrive within {} ms ({} of {} "
                               "bytes did, {} reads are still with the drive)",
                               paths[extent.file], extent.bytes, extent.offset,
                               options.deadline_ns / 1'000'000, job.arrived_bytes, job.span_bytes,
                               job.in_flight)});
    }
    finish(index, now_ns);
  }
}

size_t ReadScheduler::State::deliver(std::span<ReadDone> out) {
  size_t count = 0;
  while (count < out.size() && !done.empty()) {
    const uint32_t index = done.front();
    done.remove(index);
    Job& job = jobs[index];
    const bool buffer_free = job.in_flight == 0;
    out[count++] = {.cookie = job.request.cookie,
                    .status = std::move(job.status),
                    .buffer_free = buffer_free,
                    .data = job.request.buffer + span_head(job.request.extent),
                    .extent = job.request.extent,
                    .started_ns = job.started_ns,
                    .issued_ns = job.issued_ns,
                    .completed_ns = job.completed_ns,
                    .retries = job.retries};
    job.state = buffer_free ? JobState::kFree : JobState::kQuarantined;
    if (buffer_free) {
      free_jobs.push_back(index);
    } else {
      ++quarantined;
    }
  }
  return count;
}

int64_t ReadScheduler::State::next_event_ns(int64_t now_ns) const {
  int64_t next = kNever;
  if (!active.empty()) next = jobs[active.front()].started_ns + options.deadline_ns;
  for (const uint32_t block_index : waiting) {
    // Those that are due already wait for depth: a completion will be the event.
    const int64_t at = blocks[block_index].not_before_ns;
    if (at > now_ns) next = std::min(next, at);
  }
  return next;
}

// ---- the public face ----

ReadScheduler::ReadScheduler(IoEngine& engine, std::vector<std::string> paths, const Clock& clock,
                             ReadSchedulerOptions options, uint32_t jobs_max)
    : state_(std::make_unique<State>(engine, std::move(paths), clock, options, jobs_max)) {}

ReadScheduler::~ReadScheduler() {
  State& s = *state_;
  const int64_t until_ns = s.clock.now_ns() + std::min(s.options.deadline_ns, kCloseWaitNs);
  // Twice nothing: the first may have been an interruption that nobody had waited for.
  for (int nothing = 0; s.total_in_flight() != 0 && nothing < 2;) {
    const int64_t left_ns = until_ns - s.clock.now_ns();
    if (left_ns <= 0) break;
    nothing += s.collect(left_ns) == 0 ? 1 : 0;
  }
}

void ReadScheduler::start(const ReadJob& job) { start(std::span(&job, 1)); }

void ReadScheduler::start(std::span<const ReadJob> jobs) {
  for (const ReadJob& job : jobs) state_->start(job);
  state_->issue(state_->clock.now_ns());
}

size_t ReadScheduler::reap(std::span<ReadDone> out, int64_t timeout_ns) {
  State& s = *state_;
  int64_t now_ns = s.clock.now_ns();
  const int64_t give_up_ns = give_up_time_ns(now_ns, timeout_ns);
  s.collect(0);
  while (true) {
    s.issue(now_ns);
    s.expire(now_ns);
    if (!s.done.empty() || out.empty()) return s.deliver(out);
    if (s.active.empty() || now_ns >= give_up_ns) return 0;
    const int64_t wake_ns = std::min(give_up_ns, s.next_event_ns(now_ns));
    const size_t collected = wake_ns > now_ns ? s.collect(wake_ns - now_ns) : 0;
    now_ns = s.clock.now_ns();
    // Nothing came and the time isn't over: somebody interrupted the wait.
    if (collected == 0 && now_ns < wake_ns) return 0;
  }
}

std::vector<uint64_t> ReadScheduler::take_released() { return std::exchange(state_->released, {}); }

size_t ReadScheduler::unfinished() const {
  const State& s = *state_;
  return s.jobs.size() - s.free_jobs.size() - s.quarantined;
}

size_t ReadScheduler::quarantined() const { return state_->quarantined; }

const ReadCounters& ReadScheduler::counters() const { return state_->counters; }

Status read_extent(ReadScheduler& scheduler, const ReadJob& job) {
  CHECK_EQ(scheduler.unfinished(), 0u);
  scheduler.start(job);
  ReadDone done;
  // Bounded by the deadline; an interruption is the caller's to notice afterwards.
  while (scheduler.reap({&done, 1}, kNever) == 0) {
  }
  return std::move(done.status);
}

}  // namespace offstage
