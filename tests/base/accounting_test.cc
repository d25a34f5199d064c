// What reports are made of: percentiles, causes of time, notices, errors' codes.
#include <gmock/gmock.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/cause_timer.h"
#include "base/check.h"
#include "base/histogram.h"
#include "base/notices.h"
#include "base/result.h"
#include "base/rng.h"

namespace offstage {
namespace {

TEST(SamplesTest, PercentilesAreMeasuredValues) {
  Samples samples(1000);
  for (int64_t i = 100; i >= 1; --i) samples.add(i);
  EXPECT_EQ(samples.percentile(0), 1);
  EXPECT_EQ(samples.percentile(1), 1);
  EXPECT_EQ(samples.percentile(50), 50);
  EXPECT_EQ(samples.percentile(50.1), 51);
  EXPECT_EQ(samples.percentile(95), 95);
  EXPECT_EQ(samples.percentile(99), 99);
  EXPECT_EQ(samples.percentile(100), 100);
  EXPECT_EQ(samples.max(), 100);
  EXPECT_EQ(samples.sum(), 5050);
  EXPECT_EQ(samples.count(), 100u);
}

TEST(SamplesTest, NearestRankOfAnySet) {
  Rng rng(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<int64_t> values(1 + rng.below(40));
    Samples samples(64);
    for (int64_t& value : values) samples.add(value = static_cast<int64_t>(rng.below(100)) - 50);
    for (double p = 0; p <= 100; p += 2.5) {
      // The smallest value such that at least p per cent are no larger.
      std::vector<int64_t> sorted = values;
      std::sort(sorted.begin(), sorted.end());
      const auto smallest = std::find_if(sorted.begin(), sorted.end(), [&](int64_t candidate) {
        const auto n = std::count_if(sorted.begin(), sorted.end(),
                                     [&](int64_t value) { return value <= candidate; });
        return static_cast<double>(n) * 100 >= p * static_cast<double>(sorted.size()) - 1e-9;
      });
      EXPECT_EQ(samples.percentile(p), *smallest) << p << " of " << sorted.size();
    }
  }
}

TEST(SamplesTest, OldOnesLeaveTheRingButNotTheTotals) {
  Samples samples(4);
  EXPECT_EQ(samples.percentile(50), 0);
  EXPECT_EQ(samples.max(), 0);
  for (const int64_t value : {1000, 1, 2, 3, 4}) samples.add(value);
  EXPECT_EQ(samples.percentile(100), 4);
  EXPECT_EQ(samples.percentile(0), 1);
  EXPECT_EQ(samples.max(), 1000);
  EXPECT_EQ(samples.count(), 5u);
  EXPECT_EQ(samples.sum(), 1010);
  Samples negative(2);
  negative.add(-5);
  EXPECT_EQ(negative.max(), -5);
}

TEST(CauseTimerTest, PartsSumToTheWholeExactly) {
  ManualClock clock;
  CauseTimer timer(clock);
  Rng rng(1);
  int64_t whole = 0;
  std::array<int64_t, kCauseCount> expected = {};
  for (int i = 0; i < 1000; ++i) {
    const auto cause = static_cast<Cause>(rng.below(kCauseCount));
    const auto ns = static_cast<int64_t>(rng.below(1'000'000));
    timer.enter(cause);
    clock.advance_ns(ns);
    expected[static_cast<size_t>(cause)] += ns;
    whole += ns;
  }
  const CauseTimes times = timer.take();
  EXPECT_EQ(times.total_ns(), whole);
  EXPECT_EQ(times.ns, expected);
}

TEST(CauseTimerTest, ScopesReturnToTheCauseBefore) {
  ManualClock clock;
  CauseTimer timer(clock);
  timer.enter(Cause::kExperts);
  clock.advance_ns(1);
  {
    const CauseScope wait(timer, Cause::kWaitDrive);
    clock.advance_ns(10);
    {
      const CauseScope hash(timer, Cause::kHash);
      clock.advance_ns(100);
    }
    EXPECT_EQ(timer.cause(), Cause::kWaitDrive);
    clock.advance_ns(20);
  }
  EXPECT_EQ(timer.cause(), Cause::kExperts);
  clock.advance_ns(2);
  const CauseTimes times = timer.take();
  EXPECT_EQ(times[Cause::kExperts], 3);
  EXPECT_EQ(times[Cause::kWaitDrive], 30);
  EXPECT_EQ(times[Cause::kHash], 100);
  EXPECT_EQ(times.total_ns(), 133);
}

TEST(CauseTimerTest, TakingStartsAnewInTheSameCause) {
  ManualClock clock;
  CauseTimer timer(clock);
  timer.enter(Cause::kRouter);
  clock.advance_ns(5);
  CauseTimes sum = timer.take();
  clock.advance_ns(7);
  const CauseTimes second = timer.take();
  EXPECT_EQ(second[Cause::kRouter], 7);
  sum += second;
  EXPECT_EQ(sum.total_ns(), 12);
  EXPECT_EQ(timer.take().total_ns(), 0);
}

// What a test says others took of the CPU since the last look.
class GivenDelay final : public RunDelay {
 public:
  int64_t since_last_ns() override {
    ++looks;
    return std::exchange(next_ns, 0);
  }
  int64_t next_ns = 0;
  int looks = 0;
};

TEST(CauseTimerTest, TimeWithoutACpuIsACauseOfItsOwn) {
  constexpr int64_t kLong = 4 * CauseTimer::kLookEveryNs;
  ManualClock clock;
  GivenDelay delay;
  CauseTimer timer(clock, &delay);
  timer.enter(Cause::kExperts);
  clock.advance_ns(kLong);
  delay.next_ns = kLong - 10;
  EXPECT_EQ(timer.enter(Cause::kCaller), kLong);
  clock.advance_ns(kLong);  // asleep by its own will: the kernel counts no delay
  timer.enter(Cause::kOther);
  const CauseTimes times = timer.take();
  EXPECT_EQ(times[Cause::kExperts], 10);
  EXPECT_EQ(times[Cause::kDescheduled], kLong - 10);
  EXPECT_EQ(times[Cause::kCaller], kLong);
  EXPECT_EQ(times.total_ns(), 2 * kLong);
}

// Whoever is in a cause for a short time isn't worth a look; and what may have been taken from it
// isn't charged to the one that is looked at.
TEST(CauseTimerTest, NoMoreIsTakenFromACauseThanSurelyWasIts) {
  ManualClock clock;
  GivenDelay delay;
  CauseTimer timer(clock, &delay);
  timer.enter(Cause::kRouter);
  clock.advance_ns(CauseTimer::kLookEveryNs - 1);
  timer.enter(Cause::kExperts);
  EXPECT_EQ(delay.looks, 0);
  clock.advance_ns(1000);
  delay.next_ns = CauseTimer::kLookEveryNs + 99;
  timer.enter(Cause::kCache);
  EXPECT_EQ(delay.looks, 1);
  EXPECT_EQ(timer.times()[Cause::kRouter], CauseTimer::kLookEveryNs - 1);
  EXPECT_EQ(timer.times()[Cause::kDescheduled], 100);
  EXPECT_EQ(timer.times()[Cause::kExperts], 900);
  clock.advance_ns(CauseTimer::kLookEveryNs);
  delay.next_ns = 1 << 30;  // never more than there was
  timer.enter(Cause::kWaitDrive);
  EXPECT_EQ(timer.times()[Cause::kDescheduled], 100 + CauseTimer::kLookEveryNs);
  EXPECT_EQ(timer.times()[Cause::kCache], 0);
  // A wait's time is its read's; and the next cause isn't charged with the wait's delay.
  clock.advance_ns(CauseTimer::kLookEveryNs);
  delay.next_ns = 50;
  timer.enter(Cause::kExperts);
  clock.advance_ns(CauseTimer::kLookEveryNs);
  timer.enter(Cause::kOther);
  const CauseTimes times = timer.take();
  EXPECT_EQ(times[Cause::kWaitDrive], CauseTimer::kLookEveryNs);
  EXPECT_EQ(times[Cause::kExperts], 900 + CauseTimer::kLookEveryNs);
  EXPECT_EQ(times.total_ns(), clock.now_ns());
}

TEST(CauseTimerTest, TheSteadyClockLosesNothingEither) {
  const SteadyClock clock;
  const int64_t before = clock.now_ns();
  CauseTimer timer(clock);
  for (int i = 0; i < 1000; ++i) timer.enter(static_cast<Cause>(i % kCauseCount));
  const int64_t total = timer.take().total_ns();
  EXPECT_LE(total, clock.now_ns() - before);
  EXPECT_GT(total, 0);
}

TEST(CauseTimerTest, EveryCauseHasItsOwnName) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kCauseCount; ++i) names.insert(cause_name(static_cast<Cause>(i)));
  EXPECT_EQ(names.size(), kCauseCount);
  EXPECT_FALSE(names.contains(""));
}

TEST(NoticesTest, SaysEachThingOnceInOrder) {
  Notices notices;
  notices.add("direct_io", "a");
  notices.add("io_engine", "a");
  notices.add("direct_io", "a");
  notices.add("direct_io", "b");
  const auto list = notices.list();
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0].subject, "direct_io");
  EXPECT_EQ(list[1].subject, "io_engine");
  EXPECT_EQ(list[2].text, "b");
}

TEST(NoticesTest, TakesFromManyThreads) {
  Notices notices;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) notices.add("subject", std::to_string(i));
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(notices.list().size(), 100u);
}

TEST(ResultTest, CodesHaveStableNames) {
  std::set<std::string_view> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kCancelled); ++code)
    names.insert(error_code_name(static_cast<ErrorCode>(code)));
  EXPECT_EQ(names.size(), 12u);
  EXPECT_EQ(error_code_name(ErrorCode::kHashMismatch), "hash_mismatch");
  EXPECT_EQ(error_code_of_errno(ENOENT), ErrorCode::kNotFound);
  EXPECT_EQ(error_code_of_errno(EACCES), ErrorCode::kPermission);
  EXPECT_EQ(error_code_of_errno(ENOMEM), ErrorCode::kOutOfMemory);
  EXPECT_EQ(error_code_of_errno(EIO), ErrorCode::kIo);
}

TEST(ResultTest, TryPassesTheFirstErrorOn) {
  const auto twice = [](Result<int> first) -> Result<int> {
    OFFSTAGE_TRY(const int value, first);
    OFFSTAGE_TRY_VOID(value > 9 ? Status(make_error(ErrorCode::kBudget, "{} is much", value))
                                : Status());
    return 2 * value;
  };
  EXPECT_EQ(*twice(4), 8);
  EXPECT_EQ(twice(10).error().message, "10 is much");
  EXPECT_EQ(twice(make_error(ErrorCode::kIo, "no")).error().code, ErrorCode::kIo);
}

TEST(CheckDeathTest, PrintsTheOperands) {
  const int a = 3, b = 4;
  CHECK_LT(a, b);
  EXPECT_DEATH(CHECK_GT(a, b), "a > b.*3 vs 4");
  EXPECT_DEATH(CHECK(a == b), "a == b");
}

}  // namespace
}  // namespace offstage
