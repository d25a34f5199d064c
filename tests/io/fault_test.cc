// The engine that fails by plan: what its text means, and that it does what it says.
#include "io/fault.h"

#include <gmock/gmock.h>

#include <cerrno>

#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::AlignedBuffer;
using testing::BoundedTest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempFile;

constexpr int64_t kMillisecond = 1'000'000;

TEST(FaultPlanTest, ReadsBackWhatItDescribes) {
  for (const char* text :
       {"seed=1", "seed=9;every=7,errno=5", "seed=1;pace=500000;nth=3,short=-1",
        "seed=2;file=1,range=4096+8192,from=2,until=9,p=0.25,times=1,once,errno=19,delay=2000000ns",
        "seed=3;never;delay=5ns;corrupt=flip;corrupt=zeros;corrupt=stale;corrupt=torn;"
        "corrupt=elsewhere"}) {
    const auto plan = parse_fault_plan(text);
    ASSERT_TRUE(plan.has_value()) << text << ": " << plan.error().message;
    EXPECT_EQ(describe_fault_plan(*plan), text);
  }
}

TEST(FaultPlanTest, ReadsWhatPeopleWrite) {
  const auto plan = parse_fault_plan(" every=7, errno=EIO ; pace=500M; nth=2,delay=10ms;");
  ASSERT_TRUE(plan.has_value());
  ASSERT_EQ(plan->rules.size(), 2u);
  EXPECT_EQ(plan->rules[0].every, 7u);
  EXPECT_EQ(plan->rules[0].err, EIO);
  EXPECT_EQ(plan->rules[1].delay_ns, 10 * kMillisecond);
  EXPECT_EQ(plan->pace_bytes_per_s, 500u << 20);
  EXPECT_TRUE(parse_fault_plan("")->rules.empty());
}

TEST(FaultPlanTest, NamesTheBadPart) {
  for (const char* text : {"every=0,errno=EIO",
                           "every=x,errno=EIO",
                           "errno=EFOO",
                           "errno=",
                           "errno=-5",
                           "p=2,never",
                           "p=,never",
                           "range=5,never",
                           "range=5+0,never",
                           "range=18446744073709551615+2,never",
                           "delay=5",
                           "delay=99999999999s",
                           "corrupt=well",
                           "frequently,never",
                           "every=7",
                           "=",
                           ",,=",
                           "never=1",
                           "file=-1,never",
                           "seed=x",
                           "pace=fast"}) {
    const auto plan = parse_fault_plan(text);
    ASSERT_FALSE(plan.has_value()) << text;
    EXPECT_EQ(plan.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(plan.error().message, HasSubstr("fault plan: '"));
  }
}

class FaultEngineTest : public BoundedTest {
 protected:
  FaultEngineTest() : file_(TempFile::random(64 * kSectorBytes)), buffer_(64 * kSectorBytes) {}

  FaultEngine& open(const char* text, uint32_t depth = 8) {
    IoEngineOptions options = {
        .paths = {file_.path()}, .kind = IoEngineKind::kThreads, .depth = depth};
    auto inner = open_io_engine(options, notices_);
    CHECK(inner.has_value());
    auto plan = parse_fault_plan(text);
    CHECK(plan.has_value());
    engine_ = std::make_unique<FaultEngine>(std::move(*inner), std::move(*plan), clock_);
    return *engine_;
  }

  // One read of `sectors` at sector `at`, waited for; its result.
  int32_t read(uint32_t at, uint32_t sectors = 1, int64_t timeout_ns = 5'000 * kMillisecond) {
    buffer_.poison();
    const ReadRequest request = {.tag = at,
                                 .offset = at * kSectorBytes,
                                 .buffer = buffer_.data(),
                                 .bytes = static_cast<uint32_t>(sectors * kSectorBytes)};
    CHECK_EQ(engine_->submit({&request, 1}), 1u);
    ReadCompletion done;
    if (engine_->reap({&done, 1}, timeout_ns) == 0) return INT32_MIN;
    CHECK_EQ(done.tag, at);
    return done.result;
  }
  size_t bytes_differing(uint32_t at, size_t bytes) const {
    size_t count = 0;
    for (size_t i = 0; i < bytes; ++i) {
      count += file_.bytes()[at * kSectorBytes + i] != buffer_.data()[i] ? 1 : 0;
    }
    return count;
  }

  SteadyClock clock_;
  Notices notices_;
  TempFile file_;
  AlignedBuffer buffer_;
  std::unique_ptr<FaultEngine> engine_;
};

TEST_F(FaultEngineTest, RefusesEveryNth) {
  const FaultEngine& engine = open("every=3,errno=EIO");
  EXPECT_EQ(engine.name(), "fault(threads)");
  std::vector<int32_t> results;
  for (uint32_t i = 0; i < 7; ++i) results.push_back(read(i));
  EXPECT_THAT(results, ElementsAre(4096, 4096, -EIO, 4096, 4096, -EIO, 4096));
  EXPECT_EQ(engine.fault_counters().requests, 7u);
  EXPECT_EQ(engine.fault_counters().injected[static_cast<size_t>(FaultKind::kErrno)], 2u);
}

TEST_F(FaultEngineTest, RefusesInARangeSoManyTimes) {
  open("file=0,range=8192+1,times=2,errno=ENODEV");
  EXPECT_EQ(read(1), 4096);
  EXPECT_EQ(read(1, 2), -ENODEV);
  EXPECT_EQ(read(2), -ENODEV);
  EXPECT_EQ(read(2), 4096);
}

TEST_F(FaultEngineTest, AnswersShortWithoutTheRest) {
  open("nth=1,short=511;nth=2,short=-1;nth=3,short=0");
  EXPECT_EQ(read(3, 2), 511);
  EXPECT_EQ(bytes_differing(3, 511), 0u);
  EXPECT_GT(bytes_differing(3, 8192), 7000u);
  EXPECT_EQ(read(3, 2), 8191);
  EXPECT_EQ(bytes_differing(3, 8191), 0u);
  EXPECT_EQ(read(3, 2), 0);
  EXPECT_EQ(read(3, 2), 8192);
}

TEST_F(FaultEngineTest, AltersBytes) {
  open(
      "nth=1,corrupt=flip;nth=2,corrupt=zeros;nth=3,corrupt=stale;nth=4,corrupt=torn;"
      "nth=5,corrupt=elsewhere");
  EXPECT_EQ(read(5, 2), 8192);
  EXPECT_EQ(bytes_differing(5, 8192), 1u);
  EXPECT_EQ(read(5, 2), 8192);
  EXPECT_EQ(buffer_.data()[100], std::byte{0});
  EXPECT_EQ(read(5, 2), 8192);
  EXPECT_EQ(buffer_.data()[100], std::byte{0xEE});
  EXPECT_EQ(read(5, 2), 8192);
  EXPECT_EQ(bytes_differing(5, 4096), 0u);
  EXPECT_EQ(buffer_.data()[4096 + 100], std::byte{0xEE});
  EXPECT_EQ(read(5, 2), 8192);
  EXPECT_GT(bytes_differing(5, 8192), 8000u);
  EXPECT_EQ(bytes_differing(3, 8192), 0u);
  EXPECT_EQ(read(5, 2), 8192);
  EXPECT_EQ(bytes_differing(5, 8192), 0u);
}

TEST_F(FaultEngineTest, DelaysAndReorders) {
  FaultEngine& engine = open("nth=1,delay=100ms");
  ReadRequest requests[2] = {{.tag = 1, .buffer = buffer_.data(), .bytes = 4096},
                             {.tag = 2, .buffer = buffer_.data() + 4096, .bytes = 4096}};
  const int64_t before = clock_.now_ns();
  ASSERT_EQ(engine.submit(requests), 2u);
  ReadCompletion done[2];
  ASSERT_EQ(engine.reap({done, 1}, 5'000 * kMillisecond), 1u);
  EXPECT_EQ(done[0].tag, 2u);
  ASSERT_EQ(engine.reap({done, 1}, 5'000 * kMillisecond), 1u);
  EXPECT_EQ(done[0].tag, 1u);
  EXPECT_GE(clock_.now_ns() - before, 100 * kMillisecond);
  EXPECT_GE(done[0].completed_ns - done[0].issued_ns, 100 * kMillisecond);
}

TEST_F(FaultEngineTest, NeverAnswersAndKeepsTheDepth) {
  FaultEngine& engine = open("nth=1,never", 2);
  EXPECT_EQ(read(1, 1, 20 * kMillisecond), INT32_MIN);
  EXPECT_EQ(read(2), 4096);
  ReadRequest requests[2] = {{.tag = 1, .buffer = buffer_.data(), .bytes = 4096},
                             {.tag = 2, .buffer = buffer_.data() + 4096, .bytes = 4096}};
  EXPECT_EQ(engine.submit(requests), 1u);
}

TEST_F(FaultEngineTest, TheSameSeedFailsTheSameReads) {
  std::vector<std::vector<int32_t>> runs;
  for (const char* text :
       {"seed=5;p=0.3,errno=EIO", "seed=5;p=0.3,errno=EIO", "seed=6;p=0.3,errno=EIO"}) {
    open(text);
    runs.emplace_back();
    for (uint32_t i = 0; i < 60; ++i) runs.back().push_back(read(i));
  }
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_NE(runs[0], runs[2]);
}

TEST_F(FaultEngineTest, PacesLikeADriveOfThatSpeed) {
  FaultEngine& engine = open("pace=1M");  // 64 sectors = a quarter of a second
  std::vector<ReadRequest> requests;
  for (uint64_t i = 0; i < 64; ++i) {
    requests.push_back({.tag = i,
                        .offset = i * kSectorBytes,
                        .buffer = buffer_.data() + i * kSectorBytes,
                        .bytes = kSectorBytes});
  }
  const int64_t before = clock_.now_ns();
  size_t submitted = 0, completed = 0;
  while (completed < 64) {
    submitted += engine.submit(std::span(requests).subspan(submitted));
    ReadCompletion done[8];
    const size_t n = engine.reap(done, 5'000 * kMillisecond);
    ASSERT_GT(n, 0u);
    completed += n;
  }
  const int64_t took = clock_.now_ns() - before;
  EXPECT_GE(took, 245 * kMillisecond);
  EXPECT_LT(took, 1'000 * kMillisecond);  // 250 and what a busy machine adds
  EXPECT_EQ(bytes_differing(0, 64 * kSectorBytes), 0u);
}

// Two drives serve a quarter of a second's bytes each at once, one drive one after the other. The
// clock stands still until the inner engine has read everything.
TEST_F(FaultEngineTest, PacesEveryDriveByItself) {
  for (const bool two_drives : {true, false}) {
    ManualClock clock;
    IoEngineOptions options = {.paths = {file_.path(), file_.path()},
                               .kind = IoEngineKind::kThreads};
    auto inner = open_io_engine(options, notices_);
    ASSERT_TRUE(inner.has_value());
    FaultEngine engine(std::move(*inner), *parse_fault_plan("pace=500K"), clock,
                       two_drives ? std::vector<uint32_t>{0, 1} : std::vector<uint32_t>{1, 1});
    EXPECT_EQ(engine.name(), "paced(threads)");
    constexpr uint32_t kBytes = 32 * kSectorBytes;  // 256 ms at 500 KiB/s
    const ReadRequest requests[] = {
        {.tag = 1, .file = 0, .buffer = buffer_.data(), .bytes = kBytes},
        {.tag = 2, .file = 1, .buffer = buffer_.data() + kBytes, .bytes = kBytes}};
    ASSERT_EQ(engine.submit(requests), 2u);
    ReadCompletion done[2];
    while (engine.counters().reads < 2) EXPECT_EQ(engine.reap(done, 0), 0u);
    clock.advance_ns(254 * kMillisecond);  // a burst of 1 ms is free
    EXPECT_EQ(engine.reap(done, 0), 0u);
    clock.advance_ns(2 * kMillisecond);
    EXPECT_EQ(engine.reap(done, 0), two_drives ? 2u : 1u);
    clock.advance_ns(256 * kMillisecond);
    EXPECT_EQ(engine.reap(done, 0), two_drives ? 0u : 1u);
  }
}

TEST_F(FaultEngineTest, InterruptReachesTheWaiter) {
  FaultEngine& engine = open("nth=1,delay=20s");
  engine.interrupt();
  const int64_t before = clock_.now_ns();
  EXPECT_EQ(read(1), INT32_MIN);
  EXPECT_LT(clock_.now_ns() - before, 4'000 * kMillisecond);
}

}  // namespace
}  // namespace offstage
