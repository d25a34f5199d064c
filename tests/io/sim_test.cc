// The simulated engine: an engine like others, at times that can be computed.
#include "io/sim.h"

#include <gmock/gmock.h>

#include <cerrno>

#include "io/read_scheduler.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::AlignedBuffer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kMillisecond = 1'000'000;
constexpr size_t kFileBytes = 1'000'001;

class SimTest : public ::testing::Test {
 protected:
  SimTest() : bytes_(testing::random_bytes(kFileBytes, 3)), buffer_(kFileBytes) {}

  // Two files, each on a drive of its own, that need 100 us and 1 us for every KiB.
  SimEngine& open(uint32_t depth = 8, SimDrive first = {}, uint32_t channels = 32) {
    const SimDrive plain = {
        .channels = channels, .latency_ns = 100'000, .jitter_ns = 0, .bytes_per_s = 1'024'000'000};
    SimDrive drive = plain;
    drive.spells = first.spells;
    drive.channel_bytes_per_s = first.channel_bytes_per_s;
    drive.request_ns = first.request_ns;
    drive.answers_together = first.answers_together;
    clock_ = {};
    engine_ = std::make_unique<SimEngine>(
        SimOptions{{{bytes_, 0, 0}, {bytes_, 0, 1}}, {drive, plain}, depth, 1}, clock_);
    return *engine_;
  }
  ReadRequest request(uint64_t tag, uint64_t sector, uint32_t sectors = 1, uint32_t file = 0) {
    return {.tag = tag,
            .file = file,
            .offset = sector * kSectorBytes,
            .buffer = buffer_.data() + sector * kSectorBytes,
            .bytes = static_cast<uint32_t>(sectors * kSectorBytes)};
  }
  // Reaps all that is under way: tags in order of arrival.
  std::vector<uint64_t> reap_all() {
    std::vector<uint64_t> tags;
    ReadCompletion done;
    while (engine_->reap({&done, 1}, 100'000 * kMillisecond) == 1) {
      tags.push_back(done.tag);
      last_ = done;
    }
    return tags;
  }
  bool is_right(uint64_t sector, size_t bytes) const {
    const size_t at = sector * kSectorBytes;
    return std::memcmp(buffer_.data() + at, bytes_.data() + at, bytes) == 0;
  }

  std::vector<std::byte> bytes_;
  AlignedBuffer buffer_;
  ManualClock clock_;
  std::unique_ptr<SimEngine> engine_;
  ReadCompletion last_;
};

TEST_F(SimTest, ReadsTheRightBytesInTheDrivesTime) {
  SimEngine& engine = open();
  const ReadRequest read = request(7, 3, 25);
  ASSERT_EQ(engine.submit({&read, 1}), 1u);
  ReadCompletion done;
  EXPECT_EQ(engine.reap({&done, 1}, 0), 0u);
  EXPECT_EQ(clock_.now_ns(), 0);
  ASSERT_EQ(engine.reap({&done, 1}, kMillisecond), 1u);
  EXPECT_EQ(done.tag, 7u);
  EXPECT_EQ(done.result, 25 * 4096);
  EXPECT_EQ(done.completed_ns, 200'000);  // 100 KiB in 100 us, after the latency
  EXPECT_EQ(clock_.now_ns(), 200'000);
  EXPECT_TRUE(is_right(3, 25 * kSectorBytes));
  EXPECT_EQ(engine.counters().reads, 1u);
}

TEST_F(SimTest, TheEndOfAFileReadsShort) {
  SimEngine& engine = open();
  const uint64_t last = kFileBytes / kSectorBytes;
  const ReadRequest reads[] = {request(0, last), request(1, last, 1)};
  ASSERT_EQ(engine.submit({reads, 1}), 1u);
  EXPECT_THAT(reap_all(), ElementsAre(0u));
  EXPECT_EQ(last_.result, static_cast<int32_t>(kFileBytes % kSectorBytes));
  ReadRequest past = request(2, 0);
  past.offset = 2 * kFileBytes / kSectorBytes * kSectorBytes;
  ASSERT_EQ(engine.submit({&past, 1}), 1u);
  EXPECT_THAT(reap_all(), ElementsAre(2u));
  EXPECT_EQ(last_.result, 0);
}

TEST_F(SimTest, TakesNoMoreThanItsDepthUntilItIsReaped) {
  SimEngine& engine = open(2);
  const ReadRequest reads[] = {request(0, 0), request(1, 1), request(2, 2)};
  EXPECT_EQ(engine.submit(reads), 2u);
  clock_.advance_ns(kMillisecond);
  engine.land();
  EXPECT_EQ(engine.submit({&reads[2], 1}), 0u);
  EXPECT_THAT(reap_all(), ElementsAre(0u, 1u));
  EXPECT_EQ(engine.submit({&reads[2], 1}), 1u);
  EXPECT_EQ(engine.counters().in_flight_max, 2u);
}

// 200 KiB through a bus of 1 KiB a us; latency is hidden by depth and paid for without it.
TEST_F(SimTest, DepthReachesTheBusAndNoMore) {
  for (const uint32_t channels : {1u, 32u}) {
    SimEngine& engine = open(50, {}, channels);
    std::vector<ReadRequest> reads;
    for (uint64_t i = 0; i < 50; ++i) reads.push_back(request(i, i));
    ASSERT_EQ(engine.submit(reads), 50u);
    EXPECT_EQ(reap_all().size(), 50u);
    EXPECT_EQ(last_.completed_ns, channels == 1 ? 50 * 104'000 : 100'000 + 200'000);
  }
}

TEST_F(SimTest, OneReadAloneIsAsFastAsItsChannel) {
  for (const uint64_t n : {1u, 4u}) {
    SimEngine& engine = open(8, {.channel_bytes_per_s = 256'000'000});
    std::vector<ReadRequest> reads;
    for (uint64_t i = 0; i < n; ++i) reads.push_back(request(i, 25 * i, 25));
    ASSERT_EQ(engine.submit(reads), n);
    EXPECT_EQ(reap_all().size(), n);
    EXPECT_EQ(last_.completed_ns, 100'000 + 400'000);  // of 100 KiB; together the bus's speed
  }
}

// Eight reads of 4 KiB are as long on the bus as one of 32 KiB and seven requests.
TEST_F(SimTest, ShortReadsCostMoreThanTheirBytes) {
  SimEngine& engine = open(8, {.request_ns = 30'000});
  std::vector<ReadRequest> reads;
  for (uint64_t i = 0; i < 8; ++i) reads.push_back(request(i, i));
  ASSERT_EQ(engine.submit(reads), 8u);
  EXPECT_EQ(reap_all().size(), 8u);
  EXPECT_EQ(last_.completed_ns, 100'000 + 8 * (30'000 + 4'000));
}

// What comes while it is at work holds everything back, on that drive alone; what comes later
// doesn't.
TEST_F(SimTest, ADriveThatAnswersTogetherHasNothingLeft) {
  SimEngine& engine = open(8, {.answers_together = true});
  const std::vector<ReadRequest> reads = {request(0, 0), request(1, 1), request(2, 2, 1, 1)};
  ASSERT_EQ(engine.submit(reads), 3u);
  clock_.advance_ns(103'000);
  const ReadRequest late = request(3, 3);
  ASSERT_EQ(engine.submit({&late, 1}), 1u);
  ReadCompletion done;
  ASSERT_EQ(engine.reap({&done, 1}, kMillisecond), 1u);
  EXPECT_EQ(done.tag, 2u);  // the other drive's
  EXPECT_EQ(done.completed_ns, 104'000);
  EXPECT_THAT(reap_all(), ElementsAre(0u, 1u, 3u));
  EXPECT_EQ(last_.completed_ns, 103'000 + 104'000);
  const int64_t begin_ns = clock_.now_ns();
  const ReadRequest alone = request(4, 4);
  ASSERT_EQ(engine.submit({&alone, 1}), 1u);
  EXPECT_THAT(reap_all(), ElementsAre(4u));
  EXPECT_EQ(last_.completed_ns, begin_ns + 104'000);
}

TEST_F(SimTest, WritesWhenTheReadIsOverWhoeverLooks) {
  SimEngine& engine = open();
  const ReadRequest read = request(0, 0);
  ASSERT_EQ(engine.submit({&read, 1}), 1u);
  clock_.advance_ns(103'999);
  engine.land();
  EXPECT_EQ(buffer_.data()[5], std::byte{0xEE});
  clock_.advance_ns(1);
  engine.land();
  EXPECT_TRUE(is_right(0, kSectorBytes));
  EXPECT_THAT(reap_all(), ElementsAre(0u));
}

TEST_F(SimTest, WaitsInVirtualTimeOnlyAndCanBeInterrupted) {
  SimEngine& engine = open();
  ReadCompletion done;
  EXPECT_EQ(engine.reap({&done, 1}, 3'600'000 * kMillisecond), 0u);
  EXPECT_EQ(clock_.now_ns(), 3'600'000 * kMillisecond);
  engine.interrupt();
  EXPECT_EQ(engine.reap({&done, 1}, 0), 0u);
  EXPECT_EQ(engine.reap({&done, 1}, kMillisecond), 0u);
  EXPECT_EQ(clock_.now_ns(), 3'600'000 * kMillisecond);
  EXPECT_EQ(engine.reap({&done, 1}, kMillisecond), 0u);
  EXPECT_EQ(clock_.now_ns(), 3'600'001 * kMillisecond);
}

TEST_F(SimTest, JitterReordersAndTheSeedDecidesHow) {
  const auto order = [&](uint64_t seed) {
    ManualClock clock;
    SimEngine engine({{{bytes_}}, {{.jitter_ns = 500'000}}, 32, seed}, clock);
    std::vector<ReadRequest> reads;
    for (uint64_t i = 0; i < 32; ++i) reads.push_back(request(i, i));
    EXPECT_EQ(engine.submit(reads), 32u);
    std::vector<uint64_t> tags;
    ReadCompletion done;
    while (engine.reap({&done, 1}, 100 * kMillisecond) == 1) tags.push_back(done.tag);
    return tags;
  };
  const std::vector<uint64_t> tags = order(1);
  EXPECT_EQ(tags.size(), 32u);
  EXPECT_EQ(tags, order(1));
  EXPECT_NE(tags, order(2));
  EXPECT_FALSE(std::is_sorted(tags.begin(), tags.end()));
}

TEST_F(SimTest, AFileWithoutContentsTakesTimeOnly) {
  SimEngine engine({{{{}, 1 << 20, 0}}, {{}}, 4, 1}, clock_);
  EXPECT_EQ(engine.file_bytes(0), 1u << 20);
  const ReadRequest read = request(0, 0);
  ASSERT_EQ(engine.submit({&read, 1}), 1u);
  ReadCompletion done;
  ASSERT_EQ(engine.reap({&done, 1}, kMillisecond), 1u);
  EXPECT_EQ(done.result, 4096);
  EXPECT_EQ(buffer_.data()[0], std::byte{0xEE});
}

// ---- what befalls a whole drive, and what the scheduler makes of it ----

class SimDriveTest : public SimTest {
 protected:
  ReadScheduler& schedule(std::vector<SimSpell> spells, int64_t deadline_ns = 500 * kMillisecond) {
    reads_.reset();
    open(8, {.spells = std::move(spells)});
    reads_.emplace(*engine_, std::vector<std::string>{"/sim/a", "/sim/b"}, clock_,
                   ReadSchedulerOptions{.block_bytes = 16'384, .deadline_ns = deadline_ns}, 16);
    return *reads_;
  }
  // Starts 100 KB of each drive, six times over; results by drive.
  std::vector<ReadDone> burst() {
    std::vector<ReadJob> jobs;
    for (uint64_t i = 0; i < 12; ++i) {
      const Extent extent = {static_cast<uint32_t>(i % 2), i * 80'000, 70'000};
      memory_.emplace_back(span_bytes(extent));
      jobs.push_back({.extent = extent, .buffer = memory_.back().data(), .cookie = i});
    }
    reads_->start(jobs);
    std::vector<ReadDone> all;
    while (reads_->unfinished() != 0) {
      ReadDone done;
      if (reads_->reap({&done, 1}, 1'000 * kMillisecond) == 0) continue;
      if (done.status) {
        EXPECT_EQ(std::memcmp(done.data, bytes_.data() + done.extent.offset, done.extent.bytes), 0);
      }
      all.push_back(std::move(done));
    }
    return all;
  }
  static size_t count_right(const std::vector<ReadDone>& all, uint32_t file) {
    return static_cast<size_t>(std::count_if(all.begin(), all.end(), [&](const ReadDone& done) {
      return done.extent.file == file && done.status.has_value();
    }));
  }

  std::vector<AlignedBuffer> memory_;
  std::optional<ReadScheduler> reads_;
};

// Gone in the middle of a burst, back before the retries (1, 4, 16 ms apart) are used up.
TEST_F(SimDriveTest, AShortAbsenceIsRiddenOut) {
  schedule({{.begin_ns = 150'000, .end_ns = 10 * kMillisecond, .err = ENODEV}});
  const auto all = burst();
  EXPECT_EQ(count_right(all, 0), 6u);
  EXPECT_EQ(count_right(all, 1), 6u);
  EXPECT_GT(reads_->counters().errors, 0u);
}

TEST_F(SimDriveTest, AGoneDriveIsAnErrorTheOtherGoesOnAndItComesBack) {
  schedule({{.begin_ns = 150'000, .end_ns = 400 * kMillisecond, .err = ENODEV}});
  const auto all = burst();
  EXPECT_LT(count_right(all, 0), 6u);
  EXPECT_EQ(count_right(all, 1), 6u);
  for (const ReadDone& done : all) {
    if (done.status) continue;
    EXPECT_EQ(done.status.error().code, ErrorCode::kIo);
    EXPECT_THAT(done.status.error().message, HasSubstr("/sim/a: reading"));
    EXPECT_THAT(done.status.error().message, HasSubstr("No such device (errno 19)"));
    EXPECT_TRUE(done.buffer_free);
  }
  EXPECT_LT(clock_.now_ns(), 100 * kMillisecond);  // an answer is an answer: no deadline is waited
  clock_.advance_ns(400 * kMillisecond);
  const auto again = burst();
  EXPECT_EQ(count_right(again, 0), 6u);
  EXPECT_EQ(count_right(again, 1), 6u);
}

TEST_F(SimDriveTest, AHundredTimesSlowerIsLateButRightOrADeadline) {
  const SimSpell slow = {.begin_ns = 0, .end_ns = INT64_MAX, .slower = 100};
  schedule({slow});
  const auto patient = burst();
  EXPECT_EQ(count_right(patient, 0), 6u);
  EXPECT_EQ(count_right(patient, 1), 6u);
  schedule({slow}, 15 * kMillisecond);
  const auto strict = burst();
  EXPECT_LT(count_right(strict, 0), 6u);
  for (const ReadDone& done : strict) {
    if (done.status) continue;
    EXPECT_EQ(done.status.error().code, ErrorCode::kDeadline);
  }
}

}  // namespace
}  // namespace offstage
