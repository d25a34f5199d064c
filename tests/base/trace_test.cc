#include "base/trace.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <set>
#include <thread>

#include "base/process_load.h"
#include "base/rng.h"
#include "base/run_delay.h"

namespace offstage {
namespace {

ReadRecord read_of(uint32_t expert, int64_t started, int64_t issued, int64_t completed,
                   uint8_t drive = 0) {
  ReadRecord read;
  read.expert = expert;
  read.drive = drive;
  read.bytes = 4096;
  read.started_ns = started;
  read.issued_ns = issued;
  read.last_issued_ns = issued;
  read.completed_ns = completed;
  return read;
}

void missed(Trace& trace, const std::vector<uint32_t>& files) { trace.missed(files); }

TEST(BusyTimeTest, IsTheLengthOfTheUnion) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    Rng rng(seed);
    BusyTime busy;
    std::set<int64_t> covered;
    int64_t now = 0;
    for (int i = 0; i < 300; ++i) {
      now += static_cast<int64_t>(rng.below(12));
      const int64_t begin = std::max<int64_t>(0, now - static_cast<int64_t>(rng.below(30)));
      const int64_t end = now + static_cast<int64_t>(rng.below(6));
      busy.add(begin, end);
      for (int64_t t = begin; t < end; ++t) covered.insert(t);
    }
    EXPECT_EQ(busy.total_ns(), static_cast<int64_t>(covered.size())) << "seed " << seed;
  }
}

TEST(BusyTimeTest, LongRunsOfGapsAreCountedOnce) {
  BusyTime busy;
  for (int64_t i = 0; i < 1000; ++i) busy.add(10 * i, 10 * i + 3);
  EXPECT_EQ(busy.total_ns(), 3000);
  busy.add(9990, 10000);  // 3 of it are known
  EXPECT_EQ(busy.total_ns(), 3007);
}

TEST(TraceTest, NamesTheLayerThatWaitedLongestAndItsLongestRead) {
  ManualClock clock;
  CauseTimer timer(clock);
  Trace trace({.first_moe_layer = 1, .drive_of_file = {0, 1}}, timer);
  trace.take(0);
  trace.begin_layer(3, 1000);
  missed(trace, {1});
  trace.waited(0, 50, 2, nullptr);
  trace.begin_layer(4, 2000);
  missed(trace, {0});
  missed(trace, {1});
  missed(trace, {1});
  const ReadRecord first = read_of(7, 0, 10, 60, 1), second = read_of(9, 5, 15, 400, 1);
  trace.arrived(first, 6);
  trace.delivered(first.drive, first.bytes, first.issued_ns, first.completed_ns);
  trace.waited(0, 40, 5, &first);
  trace.arrived(second, 4);
  trace.delivered(second.drive, second.bytes, second.issued_ns, second.completed_ns);
  trace.waited(100, 400, 4, &second);
  trace.begin_layer(5, 2500);
  trace.end_layers(4000);
  const TokenTrace token = trace.take(1);
  EXPECT_EQ(token.waiting.layer, 4u);
  EXPECT_EQ(token.waiting.token, 0u);
  EXPECT_EQ(token.waiting.wait_ns, 340);
  EXPECT_EQ(token.waiting.wall_ns, 500);
  EXPECT_EQ(token.waiting.depth_max, 5u);
  EXPECT_EQ(token.waiting.all_misses(), 3u);
  EXPECT_EQ(token.waiting.misses[1], 2u);
  EXPECT_EQ(token.waiting.longest.expert, 9u);
  EXPECT_EQ(token.waiting.longest_ns, 300);
  EXPECT_EQ(token.waiting.longest.queued_ns(), 10);
  EXPECT_EQ(token.waiting.longest.service_ns(), 385);
  EXPECT_EQ(token.slowest_layer, 5u);
  EXPECT_EQ(token.slowest_layer_ns, 1500);
  EXPECT_EQ(token.depth_max, 6u);
  EXPECT_EQ(token.drive_bytes[1], 8192u);
  EXPECT_EQ(trace.drive_busy_ns(1), 390);  // from 10 to 400
  EXPECT_EQ(trace.drive_bytes(0), 0u);
  EXPECT_EQ(trace.layers().size(), 0u);  // level: token
  EXPECT_EQ(trace.take(2).waiting.layer, kNoLayer);
}

TEST(TraceTest, AStripedMissIsOfAllItsDrives) {
  ManualClock clock;
  CauseTimer timer(clock);
  Trace trace({.drive_of_file = {0, 1, 2, 1}}, timer);
  trace.take(0);
  trace.begin_layer(3, 1000);
  missed(trace, {1, 2});
  missed(trace, {0, 1});
  missed(trace, {1, 3});  // two files of one drive
  missed(trace, {});      // of nowhere that is known: the first drive's
  const ReadRecord read = read_of(7, 0, 10, 60, 1);
  trace.waited(0, 50, 2, &read);
  trace.end_layers(2000);
  const LayerRecord layer = trace.take(1).waiting;
  EXPECT_EQ(layer.all_misses(), 4u);
  EXPECT_EQ(layer.striped_misses, 2u);
  EXPECT_EQ(layer.striped_over, 0b111);
  EXPECT_EQ(layer.misses[0], 1u);
  EXPECT_EQ(layer.misses[1], 1u);
  EXPECT_EQ(layer.misses[2], 0u);
}

TEST(TraceTest, ASleepIsSplitByWhatItsReadWasDoing) {
  ManualClock clock;
  CauseTimer timer(clock);
  Trace trace({.drive_of_file = {0, 1}}, timer);
  trace.take(0);
  const ReadRecord read = read_of(7, 0, 130, 180, 1);  // queued until 130, with the drive until 180
  trace.waited(100, 200, 1, &read);                    // 30 queued, 50 in service, 20 to wake
  trace.waited(150, 170, 1, &read);                    // all of it in service: it came a bit later
  trace.waited(185, 190, 1, &read);                    // it was there: nobody let the thread wake
  trace.waited(300, 400, 1, nullptr);                  // no read ended this one
  const TokenTrace token = trace.take(1);
  EXPECT_EQ(token.waits[1].queued_ns, 30);
  EXPECT_EQ(token.waits[1].service_ns, 50 + 20);
  EXPECT_EQ(token.waits[1].woken_ns, 20 + 5);
  EXPECT_EQ(token.waits[0].service_ns, 0);
}

TEST(TraceTest, DeeperLevelsKeepTheLastLayersAndReads) {
  ManualClock clock;
  CauseTimer timer(clock);
  Trace trace({.level = RecordLevel::kRead, .layers_max = 3, .reads_max = 2}, timer);
  trace.take(0);
  for (uint32_t layer = 0; layer < 4; ++layer) {
    trace.begin_layer(layer, timer.enter(Cause::kAttention));
    clock.advance_ns(100);
    timer.enter(Cause::kWaitDrive);
    clock.advance_ns(10 * layer);
    trace.arrived(read_of(layer, 0, 1, 2), 1);
  }
  trace.end_layers(timer.enter(Cause::kOutput));
  ASSERT_EQ(trace.layers().size(), 3u);
  EXPECT_EQ(trace.layers().dropped(), 1u);
  const LayerSample& last = trace.layers()[2];
  EXPECT_EQ(last.record.layer, 3u);
  EXPECT_EQ(last.causes[Cause::kAttention], 100);
  EXPECT_EQ(last.causes[Cause::kWaitDrive], 30);
  EXPECT_EQ(last.record.wall_ns, last.causes.total_ns());
  ASSERT_EQ(trace.reads().size(), 2u);
  EXPECT_EQ(trace.reads()[0].expert, 2u);
  EXPECT_EQ(trace.reads()[1].expert, 3u);
}

TEST(ProcessLoadTest, KnowsBothSpellingsOfThrottling) {
  EXPECT_EQ(throttled_ns_in("nr_throttled 3\nthrottled_time 1234\n"), 1234);
  EXPECT_EQ(throttled_ns_in("usage_usec 9\nthrottled_usec 12\nburst_usec 0\n"), 12000);
  EXPECT_EQ(throttled_ns_in("usage_usec 9\n"), 0);
}

TEST(ProcessLoadTest, StolenTimeIsTheEighthColumn) {
  const HostTime time = host_time_in("cpu  10 1 20 400 5 2 3 9 7 0\ncpu0 5 0 9 99 1 1 1 4 0 0\n");
  EXPECT_EQ(time.stolen, 9u);
  EXPECT_EQ(time.total, 450u);                          // a guest's 7 are among the user's 10
  EXPECT_EQ(host_time_in("cpu 1 2 3 4\n").stolen, 0u);  // of a kernel that doesn't count it
  for (const char* other : {"", "cpu0 1 2 3 4 5 6 7 8", "intr 5"})
    EXPECT_EQ(host_time_in(other).total, 0u) << other;
}

TEST(RunDelayTest, IsTheSecondNumber) {
  EXPECT_EQ(run_delay_in("224022 689332 3\n"), 689332);
  EXPECT_EQ(run_delay_in("0 0 1\n"), 0);
  for (const char* other : {"", "0 0 0\n", "7", "7 8\n", "seven 8 9", "7 -8 9"})
    EXPECT_EQ(run_delay_in(other), -1) << other;
}

// Two threads on one CPU, both with work: each waits while the other runs.
TEST(RunDelayTest, TheKernelCountsItByThread) {
  KernelRunDelay delay;
  if (!delay.is_known()) GTEST_SKIP() << "this kernel doesn't count it";
  EXPECT_GE(delay.since_last_ns(), 0);
  std::thread([&] { EXPECT_EQ(delay.since_last_ns(), 0); }).join();
  EXPECT_EQ(delay.since_last_ns(), 0);  // the other thread's time isn't this one's, nor the reverse
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  std::atomic<bool> over = false;
  std::thread other([&] {  // on the same CPU: affinity is inherited
    while (!over) {
    }
  });
  int64_t waited_ns = 0;
  for (int i = 0; i < 10'000'000 && waited_ns == 0; ++i) waited_ns = delay.since_last_ns();
  over = true;
  other.join();
  EXPECT_GT(waited_ns, 0);
  EXPECT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

// A signal does what losing the CPU does.
TEST(InterruptionWatchTest, GoesOffWhenItsThreadIsInterrupted) {
  InterruptionWatch watch;
  EXPECT_TRUE(watch.went_off());  // nothing is known yet
  if (!watch.arm()) GTEST_SKIP() << "this thread has no rseq area";
  std::thread([&] { EXPECT_TRUE(watch.went_off()); }).join();  // it wasn't armed for that one
  bool quiet = false;
  for (int i = 0; i < 1000 && !quiet; ++i) {
    watch.arm();
    quiet = !watch.went_off();
  }
  EXPECT_TRUE(quiet);
  watch.arm();
  std::signal(SIGUSR1, [](int) {});
  std::raise(SIGUSR1);
  std::signal(SIGUSR1, SIG_DFL);
  EXPECT_TRUE(watch.went_off());
  watch.arm();
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(watch.went_off());
}

TEST(ProcessLoadTest, CpuTimeGrowsWithWork) {
  Notices notices;
  const LoadProbe probe(notices);
  const ProcessLoad before = probe.read();
  volatile uint64_t sum = 0;
  for (int i = 0; i < 2'000'000; ++i) sum = sum + static_cast<uint64_t>(i);
  EXPECT_GT((probe.read() - before).cpu_ns, 100'000);
  EXPECT_EQ(notices.list().size(), probe.sees_throttling() ? 0u : 1u);
}

}  // namespace
}  // namespace offstage
