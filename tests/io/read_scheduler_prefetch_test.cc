// Prefetches that turn out right (promoted) or wrong (cancelled), with one read at a time, so that
// the order in which the drive is asked shows in the order of completion.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "io/fault.h"
#include "io/read_scheduler.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::AlignedBuffer;
using testing::BoundedTest;
using testing::TempFile;

constexpr uint32_t kBlockBytes = 16 * 1024;
constexpr uint64_t kJobBytes = 4 * kBlockBytes;
constexpr uint32_t kJobsMax = 8;

class ReadSchedulerPrefetchTest : public BoundedTest {
 protected:
  ReadSchedulerPrefetchTest()
      : file_(TempFile::random(kJobsMax * kJobBytes, 3)), memory_(kJobsMax * kJobBytes) {
    const IoEngineOptions options = {
        .paths = {file_.path()}, .kind = IoEngineKind::kThreads, .depth = 1};
    auto engine = open_io_engine(options, notices_);
    CHECK(engine.has_value());
    engine_ = std::move(*engine);
    scheduler_.emplace(*engine_, options.paths, clock_,
                       ReadSchedulerOptions{.block_bytes = kBlockBytes}, kJobsMax);
  }

  ReadJob job(uint64_t cookie, ReadLane lane) {
    return {.extent = {0, cookie * kJobBytes, kJobBytes},
            .buffer = memory_.data() + cookie * kJobBytes,
            .cookie = cookie,
            .lane = lane};
  }
  void start_prefetches(uint64_t n) {
    std::vector<ReadJob> jobs;
    for (uint64_t i = 0; i < n; ++i) jobs.push_back(job(i, ReadLane::kPrefetch));
    scheduler_->start(jobs);
  }

  // In order of completion; the bytes of what completed are compared with the file.
  std::vector<ReadDone> reap_all() {
    std::vector<ReadDone> all;
    while (scheduler_->unfinished() != 0) {
      ReadDone out[kJobsMax];
      const size_t n = scheduler_->reap(out, 10'000'000'000);
      EXPECT_NE(n, 0u);
      for (size_t i = 0; i < n; ++i) {
        EXPECT_TRUE(out[i].buffer_free);
        const bool right =
            !out[i].status || std::memcmp(out[i].data, file_.bytes().data() + out[i].extent.offset,
                                          out[i].extent.bytes) == 0;
        EXPECT_TRUE(right) << "job " << out[i].cookie;
        all.push_back(std::move(out[i]));
      }
    }
    return all;
  }
  std::vector<uint64_t> reap_cookies() {
    std::vector<uint64_t> cookies;
    for (const ReadDone& done : reap_all()) cookies.push_back(done.cookie);
    return cookies;
  }

  SteadyClock clock_;
  Notices notices_;
  TempFile file_;
  AlignedBuffer memory_;
  std::unique_ptr<IoEngine> engine_;
  std::optional<ReadScheduler> scheduler_;
};

TEST_F(ReadSchedulerPrefetchTest, APromotedOneOvertakesTheOthers) {
  start_prefetches(4);
  EXPECT_TRUE(scheduler_->promote(2));
  EXPECT_EQ(reap_cookies(), (std::vector<uint64_t>{2, 0, 1, 3}));
}

TEST_F(ReadSchedulerPrefetchTest, APromotedOneStandsBehindEarlierDemand) {
  start_prefetches(2);
  scheduler_->start(job(2, ReadLane::kDemand));
  EXPECT_TRUE(scheduler_->promote(0));
  scheduler_->start(job(3, ReadLane::kDemand));
  EXPECT_EQ(reap_cookies(), (std::vector<uint64_t>{2, 0, 3, 1}));
}

TEST_F(ReadSchedulerPrefetchTest, ACancelledOneIsNotReadToItsEnd) {
  start_prefetches(3);
  EXPECT_TRUE(scheduler_->cancel(0));  // its first block is with the drive
  EXPECT_TRUE(scheduler_->cancel(1));  // nothing of it is
  for (const ReadDone& done : reap_all()) {
    if (done.cookie == 2) {
      EXPECT_TRUE(done.status);
      continue;
    }
    ASSERT_FALSE(done.status);
    EXPECT_EQ(done.status.error().code, ErrorCode::kCancelled);
  }
  EXPECT_EQ(scheduler_->counters().bytes_read, kJobBytes + kBlockBytes);
  EXPECT_EQ(scheduler_->counters().cancelled, 2u);
}

TEST_F(ReadSchedulerPrefetchTest, DemandIsNeverGivenUp) {
  scheduler_->start(job(0, ReadLane::kDemand));
  EXPECT_FALSE(scheduler_->cancel(0));
  EXPECT_FALSE(scheduler_->promote(0));
  EXPECT_FALSE(scheduler_->cancel(7));
  scheduler_->start(job(1, ReadLane::kPrefetch));
  EXPECT_TRUE(scheduler_->promote(1));
  EXPECT_FALSE(scheduler_->cancel(1));  // promoted: somebody waits for it
  for (const ReadDone& done : reap_all()) EXPECT_TRUE(done.status);
}

// A caller with no time for results keeps the drive busy all the same.
TEST_F(ReadSchedulerPrefetchTest, ReapingNothingAsksForWhatIsNext) {
  start_prefetches(kJobsMax);
  const int64_t until = clock_.now_ns() + 30'000'000'000;
  while (scheduler_->counters().bytes_read < kJobsMax * kJobBytes && clock_.now_ns() < until) {
    EXPECT_EQ(scheduler_->reap({}, 0), 0u);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(scheduler_->unfinished(), kJobsMax);
  EXPECT_EQ(reap_all().size(), kJobsMax);
}

}  // namespace
}  // namespace offstage
