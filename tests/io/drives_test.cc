// Several drives under one scheduler: each has its own lanes and depth, so that what one does to
// its reads is nothing to the others; a striped extent is one job of all of them.
#include "io/drives.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "io/fault.h"
#include "io/read_scheduler.h"
#include "tests/io/gguf_files.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::AlignedBuffer;
using ::testing::AllOf;
using testing::BoundedTest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempFile;

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kSecond = 1'000 * kMillisecond;
constexpr int64_t kDeadlineNs = 800 * kMillisecond;  // long for a read that is answered at all
constexpr uint32_t kJobsMax = 16;
constexpr uint64_t kSlotBytes = 256 * 1024;
constexpr uint32_t kDriveDepth = 4;

TEST(DriveMapTest, GroupsByDeviceThroughLinksOrByFolder) {
  testing::TempFolder folder;
  for (const char* name : {"a", "b"}) testing::write_file(folder / name, {});
  const std::string link = folder / "link";
  ASSERT_EQ(symlink("/dev/null", link.c_str()), 0);
  const std::vector<std::string> paths = {folder / "a", folder / "b", link, "/proc/self/stat"};
  const auto by_device = group_by_drive(paths, DriveGrouping::kDevice);
  ASSERT_TRUE(by_device) << by_device.error().message;
  EXPECT_THAT(by_device->drive_of_file, ElementsAre(0, 0, 1, 2));
  EXPECT_EQ(by_device->n_drives(), 3u);
  const auto by_folder = group_by_drive(paths, DriveGrouping::kFolder);
  ASSERT_TRUE(by_folder);
  EXPECT_THAT(by_folder->drive_of_file, ElementsAre(0, 0, 0, 1));
  EXPECT_EQ(by_folder->names[1], "/proc/self");
}

TEST(DriveMapTest, NamesAFileThatIsGone) {
  const auto map = group_by_drive({"/nowhere/model.gguf"}, DriveGrouping::kDevice);
  ASSERT_FALSE(map);
  EXPECT_EQ(map.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(map.error().message, HasSubstr("/nowhere/model.gguf"));
}

class DrivesTest : public BoundedTest, public ::testing::WithParamInterface<IoEngineKind> {
 protected:
  DrivesTest()
      : files_{TempFile::random(1 << 20, 1), TempFile::random(1 << 20, 2),
               TempFile::random(1 << 20, 3)},
        memory_(kJobsMax * kSlotBytes) {}

  ReadScheduler& open(const std::string& faults, ReadSchedulerOptions options = {}) {
    scheduler_.reset();  // before the engine that it uses
    IoEngineOptions io;
    for (const TempFile& file : files_) io.paths.push_back(file.path());
    io.kind = GetParam();
    io.drive_of_file = {0, 1, 2};
    io.depth = 3 * kDriveDepth;
    io.buffers = {memory_.span()};
    auto inner = open_io_engine(io, notices_);
    CHECK(inner.has_value());
    engine_ = std::make_unique<FaultEngine>(std::move(*inner), *parse_fault_plan(faults), clock_);
    options.drive_of_file = io.drive_of_file;
    options.block_bytes = 16 * 1024;
    scheduler_ = std::make_unique<ReadScheduler>(*engine_, io.paths, clock_, options, kJobsMax);
    memory_.poison();
    return *scheduler_;
  }

  ReadJob job(uint64_t cookie, Extent extent, ReadLane lane = ReadLane::kDemand) {
    CHECK_LE(span_bytes(extent), kSlotBytes);
    return {.extent = extent,
            .buffer = memory_.data() + cookie * kSlotBytes,
            .cookie = cookie,
            .lane = lane};
  }
  static Extent striped(uint64_t offset, uint64_t bytes, uint64_t stripe_bytes) {
    return {0, offset, bytes, stripe_bytes};
  }

  std::map<uint64_t, ReadDone> reap_all() {
    std::map<uint64_t, ReadDone> results;
    const int64_t until = clock_.now_ns() + 30 * kSecond;
    while (scheduler_->unfinished() != 0 && clock_.now_ns() < until) {
      ReadDone out[3];
      const size_t n = scheduler_->reap(out, kSecond);
      for (size_t i = 0; i < n; ++i) results[out[i].cookie] = std::move(out[i]);
    }
    EXPECT_EQ(scheduler_->unfinished(), 0u);
    return results;
  }

  bool right_bytes(const ReadDone& done) const {
    bool right = true;
    for (uint32_t i = 0; i < stripe_count(done.extent); ++i) {
      const Extent part = stripe(done.extent, i);
      right &= std::memcmp(done.data + i * done.extent.stripe_bytes,
                           files_[part.file].bytes().data() + part.offset, part.bytes) == 0;
    }
    return right;
  }

  SteadyClock clock_;
  Notices notices_;
  TempFile files_[3];
  AlignedBuffer memory_;
  std::unique_ptr<FaultEngine> engine_;
  std::unique_ptr<ReadScheduler> scheduler_;
};

// More reads than its depth, none of them ever answered: the other drives deliver everything, and
// the stuck ones end at their deadline.
TEST_P(DrivesTest, AStalledDriveHoldsUpNobodyElse) {
  open("file=1,never", {.deadline_ns = kDeadlineNs});
  std::vector<ReadJob> jobs;
  for (uint64_t i = 0; i < 12; ++i) {
    const auto file = static_cast<uint32_t>(i < 6 ? 1 : i % 2 * 2);
    jobs.push_back(job(i, {file, i * 65'536 + 100, 60'000}));
  }
  jobs.push_back(job(12, striped(65'536, 180'000, 61'440)));
  scheduler_->start(jobs);
  const auto results = reap_all();
  for (const auto& [cookie, done] : results) {
    if (cookie >= 6 && cookie < 12) {
      EXPECT_TRUE(done.status) << done.status.error().message;
      EXPECT_TRUE(right_bytes(done)) << cookie;
      EXPECT_LT(done.completed_ns, results.at(0).completed_ns);
      EXPECT_EQ(done.drive, cookie % 2 * 2);
      continue;
    }
    ASSERT_FALSE(done.status);
    EXPECT_EQ(done.status.error().code, ErrorCode::kDeadline);
    EXPECT_THAT(done.status.error().message, HasSubstr(files_[1].path()));
  }
  EXPECT_THAT(results.at(12).status.error().message,
              HasSubstr(files_[1].path() + ": 61440 bytes at offset 65536 did not arrive"));
  const auto drives = scheduler_->drive_counters();
  EXPECT_EQ(drives[1].reads, 0u);
  EXPECT_EQ(drives[1].in_flight_max, kDriveDepth);
  EXPECT_GE(drives[1].busy_ns, kDeadlineNs);
  EXPECT_EQ(drives[0].in_flight_max, kDriveDepth);
}

TEST_P(DrivesTest, AnErringDriveFailsItsOwnReads) {
  open("file=2,errno=ENODEV");
  for (uint64_t i = 0; i < 6; ++i)
    scheduler_->start(job(i, {static_cast<uint32_t>(i % 3), i * 65'536, 60'000}));
  for (const auto& [cookie, done] : reap_all()) {
    EXPECT_EQ(done.status.has_value(), cookie % 3 != 2);
    if (done.status) {
      EXPECT_TRUE(right_bytes(done));
    } else {
      EXPECT_THAT(done.status.error().message,
                  AllOf(HasSubstr(files_[2].path()), HasSubstr("No such device")));
    }
  }
  const auto drives = scheduler_->drive_counters();
  EXPECT_EQ(drives[0].errors, 0u);
  EXPECT_EQ(drives[2].errors, scheduler_->counters().errors);
  EXPECT_GT(drives[2].errors, 0u);
}

// A drive's demand goes before its guesses, one of which is with it at a time.
TEST_P(DrivesTest, EachDriveHasBothLanes) {
  open("file=0,delay=50ms", {.prefetch_depth = 1});
  std::vector<ReadJob> jobs;
  for (uint64_t i = 0; i < 3; ++i)
    jobs.push_back(job(i, {0, i * 65'536, 16'384}, ReadLane::kPrefetch));
  jobs.push_back(job(3, {0, 700'000, 4'096}));
  jobs.push_back(job(4, {1, 0, 100'000}));
  scheduler_->start(jobs);
  auto results = reap_all();
  for (const auto& [cookie, done] : results) EXPECT_TRUE(right_bytes(done)) << cookie;
  EXPECT_EQ(results.at(4).drive, 1u);
  EXPECT_LT(results.at(3).completed_ns, results.at(2).completed_ns);
}

TEST_P(DrivesTest, ReadsStripedExtents) {
  open("every=5,times=3,short=4096; every=7,times=2,errno=EIO");
  const std::vector<Extent> extents = {
      striped(0, 180'000, 61'440),        // the last stripe ends within a sector
      striped(65'536, 8'192, 4'096),      // on two of three drives
      striped(131'072, 4'000, 4'096),     // on one
      {1, 5'000, 70'001},                 // beside plain ones
      striped(262'144, 196'608, 65'536),  // even
      {0, 655'360, 180'000, 61'440, 4},   // the second drive has its first stripe
  };
  for (uint64_t i = 0; i < extents.size(); ++i)
    scheduler_->start(job(i, extents[i], i == 4 ? ReadLane::kPrefetch : ReadLane::kDemand));
  const auto results = reap_all();
  ASSERT_EQ(results.size(), extents.size());
  for (const auto& [cookie, done] : results) {
    EXPECT_TRUE(done.status) << done.status.error().message;
    EXPECT_TRUE(right_bytes(done)) << cookie;
    EXPECT_EQ(done.extent, extents[cookie]);
  }
}

TEST_P(DrivesTest, AStripedReadNamesTheDriveThatFailsIt) {
  open("file=1,range=65536+4096,errno=EIO");
  scheduler_->start(job(0, striped(65'536, 180'000, 61'440)));
  scheduler_->start(job(1, striped(131'072, 180'000, 61'440)));
  const auto results = reap_all();
  ASSERT_FALSE(results.at(0).status);
  EXPECT_THAT(results.at(0).status.error().message,
              AllOf(HasSubstr(files_[1].path()), HasSubstr("at offset 65536 failed 4 times")));
  EXPECT_TRUE(results.at(0).buffer_free);
  EXPECT_TRUE(results.at(1).status);
  EXPECT_TRUE(right_bytes(results.at(1)));
}

TEST_P(DrivesTest, AStripeBeyondItsFileIsNamed) {
  open("");
  const uint64_t offset = (1 << 20) - 61'440;
  ASSERT_EQ(truncate(files_[2].path().c_str(), 1'000'000), 0);
  open("");
  const Status status = read_extent(*scheduler_, job(0, striped(offset, 180'000, 61'440)));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kTruncated);
  EXPECT_THAT(status.error().message, AllOf(HasSubstr(files_[2].path()), HasSubstr("1000000")));
}

// A striped guess that is called, and one that isn't.
TEST_P(DrivesTest, StripedPrefetchesArePromotedAndCancelled) {
  open("delay=20ms", {.prefetch_depth = 1});
  scheduler_->start(job(0, striped(0, 180'000, 61'440), ReadLane::kPrefetch));
  scheduler_->start(job(1, striped(262'144, 180'000, 61'440), ReadLane::kPrefetch));
  EXPECT_TRUE(scheduler_->promote(0));
  EXPECT_FALSE(scheduler_->promote(0));
  EXPECT_TRUE(scheduler_->cancel(1));
  const auto results = reap_all();
  EXPECT_TRUE(results.at(0).status);
  EXPECT_TRUE(right_bytes(results.at(0)));
  ASSERT_FALSE(results.at(1).status);
  EXPECT_EQ(results.at(1).status.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(scheduler_->quarantined(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Engines, DrivesTest,
                         ::testing::Values(IoEngineKind::kUring, IoEngineKind::kThreads),
                         [](const auto& info) {
                           return info.param == IoEngineKind::kUring ? "Uring" : "Threads";
                         });

}  // namespace
}  // namespace offstage
