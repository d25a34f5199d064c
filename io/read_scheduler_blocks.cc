// Blocks: cut from jobs, given to the engine, judged when its answer comes.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "io/read_scheduler_state.h"

namespace offstage {
namespace {

// "Try again" answers: at once, then 50 us doubling to 6.4 ms, until the deadline.
constexpr int64_t again_backoff_ns(uint32_t times) {
  return times == 0 ? 0 : int64_t{50'000} << std::min(times - 1, 7u);
}
constexpr bool is_again(int32_t result) { return result == -EINTR || result == -EAGAIN; }
// Errors: 1, 4, 16 … ms, so that retries_max of them outlast a short hiccup of the drive.
constexpr int64_t error_backoff_ns(uint32_t failures) {
  return int64_t{1'000'000} << (2 * std::min(failures - 1, 4u));
}

}  // namespace

// ---- towards the engine ----

void ReadScheduler::State::issue(int64_t now_ns) {
  for (Drive& drive : drives)
    for (const ReadLane lane : {ReadLane::kDemand, ReadLane::kPrefetch}) {
      issue_waiting(drive, lane, now_ns);
      issue_new(drive, lane);
    }
  submit_batch(now_ns);
}

bool ReadScheduler::State::has_room(const Drive& drive, ReadLane lane) const {
  if (drive.total_in_flight() >= depth) return false;
  return lane == ReadLane::kDemand || options.prefetch_depth == 0 ||
         drive.in_flight[1] < options.prefetch_depth;
}

void ReadScheduler::State::issue_waiting(Drive& drive, ReadLane lane, int64_t now_ns) {
  for (size_t i = 0; i < drive.waiting.size() && has_room(drive, lane);) {
    const uint32_t block_index = drive.waiting[i];
    const Block& block = blocks[block_index];
    if (jobs[block.job].request.lane != lane || block.not_before_ns > now_ns) {
      ++i;
      continue;
    }
    --jobs[block.job].waiting;
    push(block_index);
    drive.waiting.erase(drive.waiting.begin() + static_cast<ptrdiff_t>(i));
  }
}

void ReadScheduler::State::issue_new(Drive& drive, ReadLane lane) {
  JobList& list = drive.lane(lane);
  while (!list.empty() && has_room(drive, lane) && drive.blocks_used < blocks_max) {
    const uint32_t index = list.front();
    const uint32_t block_index = take_block(drive, index, stripe_to_issue(jobs[index], drive));
    if (stripe_to_issue(jobs[index], drive) == jobs[index].n_stripes) list.remove(index);
    push(block_index);
  }
}

uint32_t ReadScheduler::State::stripe_to_issue(const Job& job, const Drive& drive) const {
  const Extent& extent = job.request.extent;
  uint32_t i = 0;
  while (i < job.n_stripes && (&drives[drive_of(stripe_file(extent, i))] != &drive ||
                               job.stripes[i].issued_bytes == span_bytes(stripe(extent, i))))
    ++i;
  return i;
}

// The next block of that stripe.
uint32_t ReadScheduler::State::take_block(Drive& drive, uint32_t job_index, uint32_t stripe_index) {
  Job& job = jobs[job_index];
  CHECK_LT(stripe_index, job.n_stripes);
  const Extent part = stripe(job.request.extent, stripe_index);
  const uint64_t begin = job.stripes[stripe_index].issued_bytes;
  const uint64_t bytes = std::min(job.block_bytes, span_bytes(part) - begin);
  const uint64_t part_end = span_head(part) + part.bytes;
  const uint32_t block_index = free_blocks.back();
  free_blocks.pop_back();
  ++drive.blocks_used;
  blocks[block_index] = {.job = job_index,
                         .stripe = stripe_index,
                         .drive = drive_of(part.file),
                         .bytes = static_cast<uint32_t>(bytes),
                         .needed = static_cast<uint32_t>(std::min(bytes, part_end - begin)),
                         .begin = begin};
  job.stripes[stripe_index].issued_bytes += bytes;
  job.issued_bytes += bytes;
  return block_index;
}

void ReadScheduler::State::free_block(uint32_t block_index) {
  --drives[blocks[block_index].drive].blocks_used;
  free_blocks.push_back(block_index);
}

void ReadScheduler::State::push(uint32_t block_index) {
  const Block& block = blocks[block_index];
  Job& job = jobs[block.job];
  const Extent& extent = job.request.extent;
  const uint64_t at = block.begin + block.got;
  batch.push_back({.tag = block_index,
                   .file = stripe_file(extent, block.stripe),
                   .offset = span_offset(extent) + at,
                   .buffer = job.request.buffer + block.stripe * extent.stripe_bytes + at,
                   .bytes = block.bytes - block.got});
  ++job.in_flight;
  ++job.stripes[block.stripe].in_flight;
  ++drives[block.drive].in_flight_of(job.request.lane);
}

void ReadScheduler::State::submit_batch(int64_t now_ns) {
  if (batch.empty()) return;
  const size_t taken = engine.submit(batch);
  // An engine that takes fewer than its depth has other users, or reads that never end.
  for (size_t i = taken; i < batch.size(); ++i) {
    const auto block_index = static_cast<uint32_t>(batch[i].tag);
    Block& block = blocks[block_index];
    Job& job = jobs[block.job];
    --job.in_flight;
    --job.stripes[block.stripe].in_flight;
    --drives[block.drive].in_flight_of(job.request.lane);
    ++job.waiting;
    block.not_before_ns = 0;
    drives[block.drive].waiting.push_back(block_index);
  }
  batch.clear();
  for (Drive& drive : drives) {
    const uint32_t in_flight = drive.total_in_flight();
    if (in_flight != 0 && drive.busy_since_ns == kIdle) drive.busy_since_ns = now_ns;
    drive.counters.in_flight_max = std::max(drive.counters.in_flight_max, in_flight);
  }
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
  --job.stripes[blocks[block_index].stripe].in_flight;
  count_answer(blocks[block_index], completion);
  if (job.issued_ns == 0) job.issued_ns = completion.issued_ns;
  job.issued_ns = std::min(job.issued_ns, completion.issued_ns);
  job.last_drive = blocks[block_index].drive;
  job.last_issued_ns = completion.issued_ns;
  if (job.state == JobState::kActive && !job.failed) {
    judge(block_index, completion.result, now_ns);
  } else {
    free_block(block_index);
  }
  finish_if_over(job_index, completion.completed_ns);
  if (job.state == JobState::kQuarantined && job.in_flight == 0) {
    released.push_back(job.request.cookie);
    job.state = JobState::kFree;
    free_jobs.push_back(job_index);
    --quarantined;
  }
}

void ReadScheduler::State::count_answer(const Block& block, const ReadCompletion& completion) {
  Drive& drive = drives[block.drive];
  --drive.in_flight_of(jobs[block.job].request.lane);
  ++drive.counters.reads;
  if (completion.result > 0) {
    drive.counters.bytes += static_cast<uint64_t>(completion.result);
    counters.bytes_read += static_cast<uint64_t>(completion.result);
  } else if (completion.result < 0 && !is_again(completion.result)) {
    ++drive.counters.errors;
    ++counters.errors;
  }
  if (drive.total_in_flight() != 0) return;
  drive.counters.busy_ns += std::max<int64_t>(completion.completed_ns - drive.busy_since_ns, 0);
  drive.busy_since_ns = kIdle;
}

// What each answer of the drive means for a block of a job that still wants it.
void ReadScheduler::State::judge(uint32_t block_index, int32_t result, int64_t now_ns) {
  Block& block = blocks[block_index];
  if (is_again(result)) {
    return retry(block_index, now_ns + again_backoff_ns(block.agains++));
  }
  if (result < 0) return no_progress(block_index, result, now_ns);
  CHECK_LE(static_cast<uint32_t>(result), block.bytes - block.got);
  const uint32_t got = block.got + static_cast<uint32_t>(result);
  if (got >= block.needed) {
    jobs[block.job].arrived_bytes += block.bytes;
    return free_block(block_index);
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
  drives[blocks[block_index].drive].waiting.push_back(block_index);
  ++job.waiting;
  ++job.retries;
  ++counters.retries;
}

void ReadScheduler::State::no_progress(uint32_t block_index, int32_t result, int64_t now_ns) {
  Block& block = blocks[block_index];
  if (block.failures < options.retries_max) {
    ++block.failures;
    return retry(block_index, now_ns + error_backoff_ns(block.failures));
  }
  const uint32_t job_index = block.job;
  Error error = describe_failure(block, result);
  free_block(block_index);
  fail(job_index, std::move(error));
}

Error ReadScheduler::State::describe_failure(const Block& block, int32_t result) const {
  const Extent extent = stripe(jobs[block.job].request.extent, block.stripe);
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

}  // namespace offstage
