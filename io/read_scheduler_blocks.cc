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
// Errors: 1, 4, 16 … ms, so that retries_max of them outlast a short hiccup of the drive.
constexpr int64_t error_backoff_ns(uint32_t failures) {
  return int64_t{1'000'000} << (2 * std::min(failures - 1, 4u));
}

}  // namespace

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

}  // namespace offstage
