// Jobs: from start() to the result that reap() hands out. Blocks: read_scheduler_blocks.cc.
#include "io/read_scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "io/engine_doorbell.h"
#include "io/read_scheduler_state.h"

namespace offstage {
namespace {

constexpr int64_t kNever = INT64_MAX;
constexpr int64_t kCloseWaitNs = 10'000'000'000;

uint32_t count_drives(const std::vector<uint32_t>& drive_of_file) {
  uint32_t n_drives = 1;
  for (const uint32_t drive : drive_of_file) n_drives = std::max(n_drives, drive + 1);
  return n_drives;
}

}  // namespace

ReadScheduler::State::State(IoEngine& engine_in, std::vector<std::string> paths_in,
                            const Clock& clock_in, ReadSchedulerOptions options_in,
                            uint32_t jobs_max)
    : engine(engine_in),
      paths(std::move(paths_in)),
      clock(clock_in),
      options(std::move(options_in)),
      drives(count_drives(options.drive_of_file), Drive(jobs_max)),
      depth(std::max(1u, engine_in.depth() / static_cast<uint32_t>(drives.size()))),
      // Twice the depth: blocks that wait for a back-off don't keep others from the drive.
      blocks_max(2 * depth),
      jobs(jobs_max),
      active(jobs_max),
      done(jobs_max),
      blocks(drives.size() * blocks_max),
      completions(engine_in.depth()) {
  CHECK(options.drive_of_file.empty() || options.drive_of_file.size() == paths.size());
  CHECK_GE(options.block_bytes, kSectorBytes);
  CHECK_LE(options.block_bytes, 1u << 30);
  CHECK_GT(options.deadline_ns, 0);
  CHECK_LT(options.deadline_ns, kNever / 2);  // so that no sum with a clock's time overflows
  CHECK_GT(jobs_max, 0u);
  for (uint32_t i = jobs_max; i-- > 0;) free_jobs.push_back(i);
  for (auto i = static_cast<uint32_t>(blocks.size()); i-- > 0;) free_blocks.push_back(i);
  for (Drive& drive : drives) drive.waiting.reserve(blocks_max);
  batch.reserve(drives.size() * depth);
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
  const uint64_t n_stripes = stripe_count(extent);
  CHECK_LE(n_stripes, kStripesMax);
  CHECK_LE(extent.file + n_stripes, paths.size());
  CHECK(extent.stripe_bytes == 0 ||
        (extent.offset % kSectorBytes == 0 && extent.stripe_bytes % kSectorBytes == 0));
  job.n_stripes = static_cast<uint32_t>(n_stripes);
  for (uint32_t i = 0; i < job.n_stripes && !job.failed; ++i) {
    const Extent part = stripe(extent, i);
    const uint64_t file_bytes = engine.file_bytes(part.file);
    const auto end = checked_add(part.offset, part.bytes);
    if (end && *end <= file_bytes) continue;
    fail(index, {ErrorCode::kTruncated,
                 fmt::format("{}: {} bytes at offset {} are needed, but the file has {} bytes",
                             paths[part.file], part.bytes, part.offset, file_bytes)});
  }
  if (!job.failed && extent.bytes != 0) {
    job.span_bytes = span_bytes(extent);
    // Blocks of equal size: a span one sector over block_bytes makes two halves, not a crumb.
    const uint64_t block_bytes_max = round_down(options.block_bytes, kSectorBytes);
    const uint64_t longest = span_bytes(stripe(extent, 0));
    const uint64_t count = (longest + block_bytes_max - 1) / block_bytes_max;
    job.block_bytes = round_up((longest + count - 1) / count, kSectorBytes);
    for (uint32_t i = 0; i < job.n_stripes; ++i) {
      // Two files of one drive: the job is in its lane once.
      JobList& lane = drives[drive_of(stripe_file(extent, i))].lane(request.lane);
      if (!lane.contains(index)) lane.push_back(index);
    }
  }
  finish_if_over(index, job.started_ns);
}

// ---- prefetches that turn out to be right or wrong ----

uint32_t ReadScheduler::State::prefetch_job(uint64_t cookie) const {
  for (uint32_t index = active.front(); index != JobList::kNone; index = active.next(index)) {
    const ReadJob& request = jobs[index].request;
    if (request.lane == ReadLane::kPrefetch && request.cookie == cookie) return index;
  }
  return JobList::kNone;
}

bool ReadScheduler::State::promote(uint64_t cookie) {
  const uint32_t index = prefetch_job(cookie);
  if (index == JobList::kNone) return false;
  Job& job = jobs[index];
  job.request.lane = ReadLane::kDemand;
  for (Drive& drive : drives) {
    if (!drive.lane(ReadLane::kPrefetch).contains(index)) continue;
    drive.lane(ReadLane::kPrefetch).remove(index);
    drive.lane(ReadLane::kDemand).push_back(index);
  }
  for (uint32_t i = 0; i < job.n_stripes; ++i) {
    Drive& drive = drives[drive_of(stripe_file(job.request.extent, i))];
    drive.in_flight_of(ReadLane::kPrefetch) -= job.stripes[i].in_flight;
    drive.in_flight_of(ReadLane::kDemand) += job.stripes[i].in_flight;
  }
  return true;
}

bool ReadScheduler::State::cancel(uint64_t cookie) {
  const uint32_t index = prefetch_job(cookie);
  if (index == JobList::kNone) return false;
  const Job& job = jobs[index];
  const bool all_asked_for = job.issued_bytes == job.span_bytes && job.waiting == 0;
  if (job.failed || all_asked_for) return true;
  ++counters.cancelled;
  const Extent& extent = job.request.extent;
  fail(index,
       {ErrorCode::kCancelled, fmt::format("{}: {} bytes at offset {}: no longer wanted",
                                           paths[extent.file], extent.bytes, extent.offset)});
  finish_if_over(index, clock.now_ns());
  return true;
}

// ---- the end of a job ----

void ReadScheduler::State::fail(uint32_t job_index, Error error) {
  Job& job = jobs[job_index];
  job.failed = true;
  job.status = tl::unexpected(std::move(error));
  for (Drive& drive : drives) {
    JobList& list = drive.lane(job.request.lane);
    if (list.contains(job_index)) list.remove(job_index);
  }
  if (job.waiting != 0) drop_waiting_of(job_index);
}

void ReadScheduler::State::drop_waiting_of(uint32_t job_index) {
  for (Drive& drive : drives)
    std::erase_if(drive.waiting, [&](uint32_t block_index) {
      if (blocks[block_index].job != job_index) return false;
      free_block(block_index);
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
    if (!job.failed) {
      const Extent extent = late_stripe(job);
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

Extent ReadScheduler::State::late_stripe(const Job& job) const {
  const Extent& extent = job.request.extent;
  for (uint32_t i = 0; i < job.n_stripes; ++i)
    if (job.stripes[i].in_flight != 0 ||
        job.stripes[i].issued_bytes < span_bytes(stripe(extent, i)))
      return stripe(extent, i);
  return stripe(extent, 0);  // its last block waits to be asked for again
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
                    .retries = job.retries,
                    .drive = job.last_drive,
                    .last_issued_ns = job.last_issued_ns};
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
  for (const Drive& drive : drives)
    for (const uint32_t block_index : drive.waiting) {
      // Those that are due already wait for depth: a completion will be the event.
      const int64_t at = blocks[block_index].not_before_ns;
      if (at > now_ns) next = std::min(next, at);
    }
  return next;
}

uint32_t ReadScheduler::State::total_in_flight() const {
  uint32_t total = 0;
  for (const Drive& drive : drives) total += drive.total_in_flight();
  return total;
}

// ---- the public face ----

ReadScheduler::ReadScheduler(IoEngine& engine, std::vector<std::string> paths, const Clock& clock,
                             ReadSchedulerOptions options, uint32_t jobs_max)
    : state_(
          std::make_unique<State>(engine, std::move(paths), clock, std::move(options), jobs_max)) {}

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

bool ReadScheduler::promote(uint64_t cookie) { return state_->promote(cookie); }

bool ReadScheduler::cancel(uint64_t cookie) { return state_->cancel(cookie); }

size_t ReadScheduler::reap(std::span<ReadDone> out, int64_t timeout_ns) {
  State& s = *state_;
  int64_t now_ns = s.clock.now_ns();
  const int64_t give_up_ns = give_up_time_ns(now_ns, timeout_ns);
  s.collect(0);
  while (true) {
    s.expire(now_ns);  // first: what is over its time isn't asked for once more
    s.issue(now_ns);
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

std::vector<DriveCounters> ReadScheduler::drive_counters() const {
  std::vector<DriveCounters> all;
  for (const State::Drive& drive : state_->drives) {
    all.push_back(drive.counters);
    if (drive.total_in_flight() != 0)
      all.back().busy_ns += state_->clock.now_ns() - drive.busy_since_ns;
  }
  return all;
}

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
