#include "cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "cpu/topology.h"
#include "cpu/topology_numa.h"

namespace offstage {
namespace {

class ThreadPoolOf : public testing::TestWithParam<uint32_t> {
 protected:
  Notices notices_;
};

TEST_P(ThreadPoolOf, EveryIndexOnceInChunksOfAtLeastTheGrain) {
  ThreadPool pool(GetParam(), notices_);
  ASSERT_EQ(pool.size(), GetParam());
  for (uint32_t n : {0u, 1u, 2u, 3u, 16u, 17u, 100u, 1000u, 4099u}) {
    for (uint32_t grain : {0u, 1u, 3u, 16u, 64u, 5000u}) {
      std::vector<std::atomic<int>> hits(n);
      std::atomic<uint32_t> short_chunks{0}, misaligned{0}, worker_max{0};
      pool.parallel_for(n, grain, [&](uint32_t begin, uint32_t end, uint32_t worker) {
        if (end - begin < grain && end != n) ++short_chunks;
        if (grain != 0 && begin % grain != 0) ++misaligned;
        uint32_t seen = worker_max.load();
        while (worker > seen && !worker_max.compare_exchange_weak(seen, worker)) {
        }
        for (uint32_t i = begin; i < end; ++i) ++hits[i];
      });
      for (uint32_t i = 0; i < n; ++i) ASSERT_EQ(hits[i].load(), 1) << "index " << i;
      EXPECT_EQ(short_chunks.load(), 0u);
      EXPECT_EQ(misaligned.load(), 0u);
      EXPECT_LT(worker_max.load(), pool.size());
    }
  }
}

// What a worker computed lies in its spans, and nothing is recorded unasked.
TEST_P(ThreadPoolOf, SpansHoldWhatEachWorkerDid) {
  constexpr int kJobs = 40;
  ThreadPool pool(GetParam(), notices_);
  EXPECT_EQ(pool.spans(0), nullptr);
  uint8_t job = 0;
  pool.record_spans(kJobs, [&] { return job; });
  const SteadyClock clock;
  std::vector<std::set<uint8_t>> took(GetParam());  // [worker]: jobs
  const int64_t begin_ns = clock.now_ns();
  for (; job < kJobs; ++job)
    pool.parallel_for(64, job % 2 == 0 ? 1 : 64,
                      [&](uint32_t, uint32_t, uint32_t worker) { took[worker].insert(job); });
  const int64_t end_ns = clock.now_ns();
  for (uint32_t worker = 0; worker < pool.size(); ++worker) {
    const Ring<WorkerSpan>& spans = *pool.spans(worker);
    ASSERT_EQ(spans.size(), took[worker].size());
    int64_t last_ns = begin_ns;
    auto expected = took[worker].begin();
    for (size_t i = 0; i < spans.size(); ++i) {
      EXPECT_EQ(spans[i].tag, *expected++);
      EXPECT_GE(spans[i].begin_ns, last_ns);
      EXPECT_GE(spans[i].end_ns, spans[i].begin_ns);
      last_ns = spans[i].end_ns;
    }
    EXPECT_LE(last_ns, end_ns);
  }
  pool.clear_spans();
  EXPECT_EQ(pool.spans(0)->size(), 0u);
}

// Plain memory written by one call is read by the next, from whichever worker.
TEST_P(ThreadPoolOf, CallsFollowOneAnother) {
  ThreadPool pool(GetParam(), notices_);
  std::vector<uint64_t> values(512, 1);
  for (int round = 0; round < 2000; ++round) {
    pool.parallel_for(512, 8, [&](uint32_t begin, uint32_t end, uint32_t) {
      for (uint32_t i = begin; i < end; ++i) values[i] *= 2;
    });
    pool.parallel_for(512, 8, [&](uint32_t begin, uint32_t end, uint32_t) {
      for (uint32_t i = begin; i < end; ++i) values[511 - i] -= 1;
    });
  }
  for (uint64_t value : values) ASSERT_EQ(value, 1u);
}

TEST_P(ThreadPoolOf, WorksAfterSleeping) {
  ThreadPool pool(GetParam(), notices_);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<uint32_t> sum{0};
    pool.parallel_for(100, 1, [&](uint32_t begin, uint32_t end, uint32_t) { sum += end - begin; });
    ASSERT_EQ(sum.load(), 100u);
  }
}

TEST_P(ThreadPoolOf, EachWorkerIsOneThread) {
  ThreadPool pool(GetParam(), notices_);
  std::vector<std::thread::id> ids(pool.size());
  std::atomic<int> swapped{0};
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(64, 1, [&](uint32_t, uint32_t, uint32_t worker) {
      const auto self = std::this_thread::get_id();
      if (ids[worker] == std::thread::id{}) ids[worker] = self;
      if (ids[worker] != self) ++swapped;
    });
  }
  EXPECT_EQ(swapped.load(), 0);
  // Spinning workers may have taken every chunk before the caller came to it.
  if (ids[0] != std::thread::id{}) {
    EXPECT_EQ(ids[0], std::this_thread::get_id()) << "the caller is worker 0";
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolOf, testing::Values(1, 2, 3, 8));

TEST(ThreadPool, DefaultIsTheAllowedCores) {
  const Topology topology = read_topology();
  ASSERT_FALSE(topology.core_processors.empty());
  Notices notices;
  ThreadPool pool(0, notices);
  auto expected = static_cast<uint32_t>(topology.core_processors.size());
  if (topology.quota_cores != 0) expected = std::min(expected, topology.quota_cores);
  EXPECT_EQ(pool.size(), expected);
}

TEST(ThreadPool, RespectsTheAffinityMask) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  const Topology all = read_topology();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(all.core_processors.back(), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  const Topology restricted = read_topology();
  Notices notices;
  const uint32_t size = ThreadPool(0, notices).size();
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(restricted.core_processors, std::vector<uint32_t>{all.core_processors.back()});
  EXPECT_EQ(size, 1u);
}

TEST(ThreadPool, MoreThreadsThanCoresIsSaid) {
  const auto n_cores = static_cast<uint32_t>(read_topology().core_processors.size());
  Notices notices;
  ThreadPool pool(n_cores + 1, notices);
  ASSERT_EQ(notices.list().size(), 1u);
  EXPECT_EQ(notices.list()[0].subject, "threads");
}

TEST(ThreadPool, IdleWorkersUseNoProcessor) {
  Notices notices;
  ThreadPool pool(4, notices);
  pool.parallel_for(64, 1, [](uint32_t, uint32_t, uint32_t) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  getrusage(RUSAGE_SELF, &after);
  const auto microseconds = [](const rusage& r) {
    return (r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1'000'000 + r.ru_utime.tv_usec +
           r.ru_stime.tv_usec;
  };
  EXPECT_LT(microseconds(after) - microseconds(before), 20'000);
}

// Between its chunks the caller, and nobody else, does what was asked.
TEST(ThreadPoolTest, TheCallerIsFreeBetweenItsChunks) {
  for (const uint32_t threads : {1u, 2u, 3u}) {
    Notices notices;
    ThreadPool pool(threads, notices);
    uint32_t times = 0;
    const auto caller = std::this_thread::get_id();
    pool.set_between_chunks([&] {
      EXPECT_EQ(std::this_thread::get_id(), caller);
      ++times;
    });
    std::vector<std::atomic<uint32_t>> seen(1000);
    std::atomic<uint32_t> by_caller{0};
    pool.parallel_for(1000, 1, [&](uint32_t begin, uint32_t end, uint32_t worker) {
      if (worker == 0) ++by_caller;
      for (uint32_t i = begin; i < end; ++i) ++seen[i];
    });
    EXPECT_EQ(times, by_caller);
    EXPECT_GE(times, threads == 1 ? 4u : 0u);
    for (const auto& n : seen) EXPECT_EQ(n, 1u);
    pool.parallel_for(1, 4, [](uint32_t, uint32_t, uint32_t) {});
    EXPECT_EQ(times, by_caller + 1);
  }
}

TEST(NumaTest, ActsOrSaysWhyNot) {
  Notices notices;
  EXPECT_TRUE(apply_numa(Numa::kOff, notices));
  EXPECT_TRUE(notices.list().empty());
  EXPECT_TRUE(apply_numa(Numa::kNumactl, notices));  // changes nothing, wherever it runs
  ASSERT_EQ(notices.list().size(), 1u);
  EXPECT_EQ(notices.list()[0].subject, "numa");
  EXPECT_NE(notices.list()[0].text.find("node"), std::string::npos);
}

}  // namespace
}  // namespace offstage
