// The reliable half of io, over real engines that fail by plan (RELIABILITY: completion faults).
#include "io/read_scheduler.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <new>
#include <thread>

#include "io/fault.h"
#include "tests/io/temp_file.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define OFFSTAGE_COUNT_ALLOCATIONS 1
namespace {
thread_local uint64_t allocations = 0;
}
// Not inlined: g++ would see malloc's memory given to delete and warn.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  void* p = std::malloc(bytes == 0 ? 1 : bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }
#endif

namespace offstage {
namespace {

using testing::AlignedBuffer;
using ::testing::AllOf;
using testing::BoundedTest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFile;

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMillisecond;
constexpr size_t kFileBytes = 3'000'001;  // ends within a sector
constexpr uint32_t kJobsMax = 32;

struct Setting {
  std::string name;
  IoEngineKind kind;
  DirectIo direct;
  uint32_t depth;
  uint32_t block_bytes;
};

class ReadSchedulerTest : public BoundedTest, public ::testing::WithParamInterface<Setting> {
 protected:
  ReadSchedulerTest()
      : files_{TempFile::random(kFileBytes, 1), TempFile::random(kFileBytes, 2)},
        memory_(kJobsMax * kSlotBytes) {}

  // An engine that fails by `faults`, and a scheduler above it.
  ReadScheduler& open(const std::string& faults, ReadSchedulerOptions options = {}) {
    scheduler_.reset();  // before the engine that it uses
    const IoEngineOptions engine_options = {.paths = {files_[0].path(), files_[1].path()},
                                            .kind = GetParam().kind,
                                            .direct = GetParam().direct,
                                            .depth = GetParam().depth,
                                            .buffers = {memory_.span()}};
    auto inner = open_io_engine(engine_options, notices_);
    CHECK(inner.has_value());
    auto plan = parse_fault_plan(faults);
    CHECK(plan.has_value());
    engine_ = std::make_unique<FaultEngine>(std::move(*inner), std::move(*plan), clock_);
    options.block_bytes = GetParam().block_bytes;
    scheduler_ =
        std::make_unique<ReadScheduler>(*engine_, engine_options.paths, clock_, options, kJobsMax);
    return *scheduler_;
  }

  ReadJob job(uint64_t cookie, Extent extent, ReadLane lane = ReadLane::kDemand) {
    CHECK_LE(span_bytes(extent), kSlotBytes);
    return {.extent = extent,
            .buffer = memory_.data() + cookie * kSlotBytes,
            .cookie = cookie,
            .lane = lane};
  }

  // Reaps until no job is unfinished, at most 30 s; results by cookie, order in `order_`.
  std::map<uint64_t, ReadDone> reap_all() {
    std::map<uint64_t, ReadDone> results;
    const int64_t until = clock_.now_ns() + 30 * kSecond;
    while (scheduler_->unfinished() != 0 && clock_.now_ns() < until) {
      ReadDone out[3];
      const size_t n = scheduler_->reap(out, kSecond);
      for (size_t i = 0; i < n; ++i) {
        order_.push_back(out[i].cookie);
        results[out[i].cookie] = std::move(out[i]);
      }
    }
    EXPECT_EQ(scheduler_->unfinished(), 0u);
    return results;
  }

  bool right_bytes(const ReadDone& done) const {
    const auto& file = files_[done.extent.file].bytes();
    return std::memcmp(done.data, file.data() + done.extent.offset, done.extent.bytes) == 0;
  }

  // A spread of extents: unaligned, one byte, whole sectors, the very end of the file.
  void start_mixture() {
    for (uint64_t i = 0; i < 12; ++i) {
      const auto lane = i % 3 == 2 ? ReadLane::kPrefetch : ReadLane::kDemand;
      scheduler_->start(job(i, mixture()[i], lane));
    }
  }
  static const std::vector<Extent>& mixture() {
    static const std::vector<Extent> extents = {{0, 0, 4096},         {1, 1, 4094},
                                                {0, 4095, 2},         {1, 8192, 65'536},
                                                {0, 100'001, 99'999}, {1, 2'900'000, 100'001},
                                                {0, 3'000'000, 1},    {1, 12'288, 4096},
                                                {0, 777, 120'000},    {1, 1'000'000, 120'000},
                                                {0, 500'000, 0},      {1, 2'999'999, 2}};
    return extents;
  }

  void expect_mixture_right(const std::map<uint64_t, ReadDone>& results) {
    ASSERT_EQ(results.size(), mixture().size());
    for (const auto& [cookie, done] : results) {
      EXPECT_TRUE(done.status.has_value()) << done.status.error().message;
      EXPECT_TRUE(done.buffer_free);
      EXPECT_EQ(done.extent, mixture()[cookie]);
      EXPECT_TRUE(right_bytes(done)) << "job " << cookie;
    }
  }

  static constexpr size_t kSlotBytes = 128 * 1024;
  SteadyClock clock_;
  Notices notices_;
  TempFile files_[2];
  AlignedBuffer memory_;
  std::unique_ptr<FaultEngine> engine_;
  std::unique_ptr<ReadScheduler> scheduler_;
  std::vector<uint64_t> order_;
};

TEST_P(ReadSchedulerTest, ReadsExtentsExactly) {
  open("");
  memory_.poison();
  const int64_t before = clock_.now_ns();
  start_mixture();
  const auto results = reap_all();
  expect_mixture_right(results);
  for (const auto& [cookie, done] : results) {
    EXPECT_GE(done.started_ns, before);
    EXPECT_GE(done.completed_ns, done.started_ns);
    if (done.extent.bytes != 0) {
      EXPECT_GE(done.issued_ns, done.started_ns);
    }
  }
  EXPECT_EQ(scheduler_->counters().jobs, 12u);
  EXPECT_EQ(scheduler_->counters().retries, 0u);
  if (GetParam().depth == 1 || GetParam().kind == IoEngineKind::kUring) {
    EXPECT_EQ(engine_->counters().in_flight_max > 1, GetParam().depth > 1);
  }
}

// I6: what the drive gets over changes nothing above.
TEST_P(ReadSchedulerTest, RecoversFromWhatPasses) {
  // At most three of each error, so that no block can meet more than its retries allow.
  for (const char* faults :
       {"nth=1,errno=EIO", "every=4,times=3,errno=EIO", "every=3,errno=EAGAIN",
        "every=2,errno=EINTR", "from=1,until=20,errno=EAGAIN", "every=5,times=3,errno=ECANCELED",
        "from=2,until=4,errno=ENODEV", "every=4,times=3,short=0", "every=4,times=3,short=1",
        "every=4,times=3,short=511", "every=3,times=3,short=-1", "every=2,times=3,short=4096",
        "every=3,short=5000,range=16384+100000,times=3", "every=3,delay=10ms", "p=0.5,delay=3ms",
        "nth=1,delay=200ms", "pace=100M"}) {
    SCOPED_TRACE(faults);
    open(faults);
    memory_.poison();
    start_mixture();
    expect_mixture_right(reap_all());
    const FaultCounters& counters = engine_->fault_counters();
    const auto injected = counters.injected[static_cast<size_t>(FaultKind::kErrno)] +
                          counters.injected[static_cast<size_t>(FaultKind::kShort)];
    const auto& rules = engine_->plan().rules;
    if (!rules.empty() && rules[0].kind != FaultKind::kNone) {
      EXPECT_GT(injected, 0u);
      // 4096 of 4096 bytes isn't short.
      if (GetParam().block_bytes > 8192) {
        EXPECT_GT(scheduler_->counters().retries, 0u);
      }
    }
  }
}

// I1, I7: an error that stays names everything, and the others don't notice.
TEST_P(ReadSchedulerTest, ReportsWhatStays) {
  open("file=1,range=8192+4096,errno=EIO");
  start_mixture();
  auto results = reap_all();
  for (const auto& [cookie, done] : results) {
    const Extent& e = done.extent;
    const bool touched = e.file == 1 && span_offset(e) < 12'288 &&
                         span_offset(e) + span_bytes(e) > 8192 && e.bytes != 0;
    EXPECT_EQ(done.status.has_value(), !touched) << "job " << cookie;
    EXPECT_TRUE(done.buffer_free);
    EXPECT_TRUE(touched || right_bytes(done));
  }
  const Error& error = results.at(3).status.error();
  EXPECT_EQ(error.code, ErrorCode::kIo);
  EXPECT_THAT(error.message,
              AllOf(HasSubstr(files_[1].path()), HasSubstr("at offset 8192 failed 4 times"),
                    HasSubstr("Input/output error (errno 5)")));
  EXPECT_EQ(results.at(3).retries, 3u);
  EXPECT_EQ(scheduler_->counters().errors, 4u);
}

TEST_P(ReadSchedulerTest, EndlessTryAgainEndsAtTheDeadline) {
  for (const char* faults : {"errno=EAGAIN", "errno=EINTR"}) {
    open(faults, {.deadline_ns = 100 * kMillisecond});
    const int64_t before = clock_.now_ns();
    const Status status = read_extent(*scheduler_, job(0, {0, 0, 100'000}));
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::kDeadline);
    EXPECT_GE(clock_.now_ns() - before, 100 * kMillisecond);
    EXPECT_EQ(scheduler_->quarantined(), 0u);
    // The back-off kept it from spinning: at most 2 + log2(6.4 ms / 50 us) + 100 / 6.4 per block.
    const uint64_t blocks = (102'400 + GetParam().block_bytes - 1) / GetParam().block_bytes;
    EXPECT_LE(engine_->fault_counters().requests, blocks * 30);
  }
}

TEST_P(ReadSchedulerTest, EndlessShortReadsAreATruncatedFile) {
  for (const char* faults : {"short=0", "short=511"}) {
    open(faults);
    const Status status = read_extent(*scheduler_, job(0, {0, 4096, 100'000}));
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::kTruncated);
    EXPECT_THAT(status.error().message, HasSubstr(files_[0].path()));
  }
}

TEST_P(ReadSchedulerTest, ShortReadsWithProgressNeverGiveUp) {
  open("short=4097");  // one sector of progress at a time, for every read of more than two
  EXPECT_TRUE(read_extent(*scheduler_, job(0, {0, 100, 120'000})).has_value());
  EXPECT_EQ(std::memcmp(memory_.data() + 100, files_[0].bytes().data() + 100, 120'000), 0);
}

TEST_P(ReadSchedulerTest, SaysWhenTheFileIsTooShort) {
  open("");
  for (const Extent extent : {Extent{0, 3'000'000, 2}, Extent{0, 4'000'000, 1},
                              Extent{1, 0, kFileBytes + 1}, Extent{0, UINT64_MAX - 5, 10}}) {
    ReadJob request = job(0, {0, 0, 1});
    request.extent = extent;
    const Status status = read_extent(*scheduler_, request);
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::kTruncated);
    EXPECT_THAT(status.error().message, HasSubstr("3000001"));
  }
  EXPECT_EQ(engine_->fault_counters().requests, 0u);
}

TEST_P(ReadSchedulerTest, SaysWhenTheFileWasCutWhileOpen) {
  open("");
  ASSERT_EQ(truncate(files_[0].path().c_str(), 50'000), 0);
  const Status status = read_extent(*scheduler_, job(0, {0, 0, 100'000}));
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code, ErrorCode::kTruncated);
  EXPECT_THAT(status.error().message, HasSubstr("3000001 bytes long when opened"));
  EXPECT_TRUE(read_extent(*scheduler_, job(1, {0, 40'000, 10'000})).has_value());
}

TEST_P(ReadSchedulerTest, NeverAnsweredIsADeadlineAndAQuarantine) {
  open("nth=1,never", {.deadline_ns = 150 * kMillisecond});
  scheduler_->start(job(0, {0, 0, 4096}));
  if (GetParam().depth > 1) {
    scheduler_->start(job(1, {0, 8192, 4096}));  // others go on
    ReadDone done;
    ASSERT_EQ(scheduler_->reap({&done, 1}, 10 * kSecond), 1u);
    EXPECT_EQ(done.cookie, 1u);
    EXPECT_TRUE(done.status.has_value());
  }
  const auto results = reap_all();
  const ReadDone& stuck = results.at(0);
  ASSERT_FALSE(stuck.status.has_value());
  EXPECT_EQ(stuck.status.error().code, ErrorCode::kDeadline);
  EXPECT_THAT(stuck.status.error().message,
              AllOf(HasSubstr(files_[0].path()), HasSubstr("4096 bytes at offset 0"),
                    HasSubstr("150 ms"), HasSubstr("1 reads are still with the drive")));
  EXPECT_FALSE(stuck.buffer_free);
  EXPECT_EQ(scheduler_->quarantined(), 1u);
  EXPECT_EQ(scheduler_->counters().deadline_misses, 1u);
  ReadDone none;
  EXPECT_EQ(scheduler_->reap({&none, 1}, 0), 0u);
  EXPECT_THAT(scheduler_->take_released(), IsEmpty());
}

// The read that comes after its deadline still writes: only its completion frees the buffer.
TEST_P(ReadSchedulerTest, LateReadKeepsItsBufferInQuarantine) {
  open("nth=1,delay=400ms", {.deadline_ns = 100 * kMillisecond});
  memory_.poison();
  scheduler_->start(job(5, {0, 0, 4096}));
  const auto results = reap_all();
  ASSERT_FALSE(results.at(5).status.has_value());
  EXPECT_EQ(results.at(5).status.error().code, ErrorCode::kDeadline);
  EXPECT_FALSE(results.at(5).buffer_free);
  const std::byte* buffer = memory_.data() + 5 * kSlotBytes;
  EXPECT_EQ(buffer[17], std::byte{0xEE});
  const int64_t until = clock_.now_ns() + 10 * kSecond;
  std::vector<uint64_t> released;
  while (released.empty() && clock_.now_ns() < until) {
    ReadDone none;
    EXPECT_EQ(scheduler_->reap({&none, 1}, kMillisecond), 0u);
    released = scheduler_->take_released();
  }
  EXPECT_THAT(released, ElementsAre(5u));
  EXPECT_EQ(std::memcmp(buffer, files_[0].bytes().data(), 4096), 0);  // it did write
  EXPECT_EQ(scheduler_->quarantined(), 0u);
  EXPECT_THAT(scheduler_->take_released(), IsEmpty());
}

TEST_P(ReadSchedulerTest, NoHangWhenEveryReadIsStuck) {
  open("never", {.deadline_ns = 200 * kMillisecond});
  const int64_t before = clock_.now_ns();
  start_mixture();
  const auto results = reap_all();
  EXPECT_LT(clock_.now_ns() - before, 10 * kSecond);
  for (const auto& [cookie, done] : results) {
    EXPECT_EQ(done.status.has_value(), done.extent.bytes == 0);
  }
  scheduler_.reset();
  engine_.reset();
  EXPECT_LT(clock_.now_ns() - before, 20 * kSecond);
}

TEST_P(ReadSchedulerTest, DemandGoesBeforePrefetch) {
  open("delay=2ms", {.prefetch_depth = 1});
  std::vector<ReadJob> jobs;
  for (uint64_t i = 0; i < 4; ++i)
    jobs.push_back(job(i, {0, i * 200'000, 120'000}, ReadLane::kPrefetch));
  for (uint64_t i = 4; i < 8; ++i) jobs.push_back(job(i, {1, i * 200'000, 120'000}));
  scheduler_->start(jobs);
  for (const auto& [cookie, done] : reap_all()) EXPECT_TRUE(right_bytes(done)) << cookie;
  if (GetParam().depth > 8) return;  // all of them fit into the drive's queue
  // The last demand job may overlap with the first prefetch; otherwise demand is first.
  for (size_t i = 0; i < 3; ++i) EXPECT_GE(order_.at(i), 4u);
}

// Where more than one read is under way at a time.
class ReadSchedulerSideBySideTest : public ReadSchedulerTest {};

TEST_P(ReadSchedulerSideBySideTest, ASlowFileHoldsUpNobodyElse) {
  open("file=1,delay=300ms");
  scheduler_->start(job(0, {1, 0, 4096}));
  scheduler_->start(job(1, {0, 0, 100'000}));
  reap_all();
  EXPECT_THAT(order_, ElementsAre(1u, 0u));
}

TEST_P(ReadSchedulerTest, ReturnsWhenThereIsNothingToWaitForOrSomebodyInterrupts) {
  open("delay=500ms");
  ReadDone done;
  const int64_t before = clock_.now_ns();
  EXPECT_EQ(scheduler_->reap({&done, 1}, 30 * kSecond), 0u);
  EXPECT_LT(clock_.now_ns() - before, kSecond);
  scheduler_->start(job(0, {0, 0, 4096}));
  EXPECT_EQ(scheduler_->reap({&done, 1}, 5 * kMillisecond), 0u);
  engine_->interrupt();
  EXPECT_EQ(scheduler_->reap({&done, 1}, 30 * kSecond), 0u);
  EXPECT_LT(clock_.now_ns() - before, 450 * kMillisecond);
  EXPECT_EQ(reap_all().size(), 1u);
}

// Seeds of mixed faults: every job ends, right or explicit.
TEST_P(ReadSchedulerTest, EveryJobEndsUnderMixedFaults) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const std::string faults = fmt::format(
        "seed={};p=0.08,errno=EIO;p=0.08,errno=EAGAIN;p=0.08,short=4096;p=0.05,short=1;"
        "p=0.05,delay=2ms;p=0.002,never;p=0.05,errno=EINTR",
        seed);
    SCOPED_TRACE(faults);
    open(faults, {.deadline_ns = 300 * kMillisecond});
    memory_.poison();
    start_mixture();
    const auto results = reap_all();
    ASSERT_EQ(results.size(), mixture().size());
    for (const auto& [cookie, done] : results) {
      if (done.status.has_value()) {
        EXPECT_TRUE(done.buffer_free);
        EXPECT_TRUE(right_bytes(done)) << "job " << cookie;
      }
    }
  }
}

#ifdef OFFSTAGE_COUNT_ALLOCATIONS  // sanitizers allocate for themselves
TEST_P(ReadSchedulerTest, AllocatesNothingInSteadyState) {
  open("every=5,times=200,errno=EAGAIN");
  std::vector<ReadDone> out(kJobsMax);
  const auto round = [&] {
    for (uint64_t i = 0; i < 12; ++i) scheduler_->start(job(i, mixture()[i]));
    for (size_t done = 0; done < 12;) done += scheduler_->reap(out, kSecond);
  };
  round();
  const uint64_t before = allocations;
  for (int i = 0; i < 20; ++i) round();
  EXPECT_EQ(allocations, before);
}
#endif

const auto kDeep = ::testing::Values(
    Setting{"UringDirect", IoEngineKind::kUring, DirectIo::kOn, 32, 1 << 20},
    Setting{"UringDirectSmall", IoEngineKind::kUring, DirectIo::kOn, 8, 16 * 1024},
    Setting{"ThreadsDirect", IoEngineKind::kThreads, DirectIo::kOn, 16, 32 * 1024},
    Setting{"ThreadsBuffered", IoEngineKind::kThreads, DirectIo::kOff, 4, 64 * 1024});
const auto kOneByOne = ::testing::Values(
    Setting{"UringDepth1Sector", IoEngineKind::kUring, DirectIo::kOn, 1, 4096},
    Setting{"ThreadsDepth1Sector", IoEngineKind::kThreads, DirectIo::kOff, 1, 4096});
const auto kName = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Deep, ReadSchedulerTest, kDeep, kName);
INSTANTIATE_TEST_SUITE_P(OneByOne, ReadSchedulerTest, kOneByOne, kName);
INSTANTIATE_TEST_SUITE_P(Deep, ReadSchedulerSideBySideTest, kDeep, kName);

}  // namespace
}  // namespace offstage
