// One conformance suite over every engine, direct and buffered: the contract of io/engine.h.
#include "io/engine.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "base/clock.h"
#include "io/fault.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::AlignedBuffer;
using testing::BoundedTest;
using testing::TempFile;

constexpr int64_t kSecond = 1'000'000'000;

struct EngineForm {
  std::string name;
  IoEngineKind kind;
  DirectIo direct;
  bool registered;
  bool faultless_decorator;
};

class EngineTest : public BoundedTest, public ::testing::WithParamInterface<EngineForm> {
 protected:
  std::unique_ptr<IoEngine> open(std::vector<std::string> paths, uint32_t depth,
                                 std::vector<std::span<std::byte>> buffers = {}) {
    IoEngineOptions options = {.paths = std::move(paths),
                               .kind = GetParam().kind,
                               .direct = GetParam().direct,
                               .depth = depth};
    if (GetParam().registered) options.buffers = std::move(buffers);
    auto engine = open_io_engine(options, notices_);
    CHECK(engine.has_value());
    if (!GetParam().faultless_decorator) return std::move(*engine);
    return std::make_unique<FaultEngine>(std::move(*engine), FaultPlan{}, clock_);
  }

  // Reaps until `count` completions came, or fails after 20 s.
  std::map<uint64_t, ReadCompletion> reap_all(IoEngine& engine, size_t count) {
    std::map<uint64_t, ReadCompletion> by_tag;
    const int64_t until = clock_.now_ns() + 20 * kSecond;
    while (by_tag.size() < count && clock_.now_ns() < until) {
      ReadCompletion out[7];
      const size_t n = engine.reap(out, kSecond);
      for (size_t i = 0; i < n; ++i) by_tag[out[i].tag] = out[i];
    }
    EXPECT_EQ(by_tag.size(), count);
    return by_tag;
  }

  SteadyClock clock_;
  Notices notices_;
};

TEST_P(EngineTest, ProvesWhichOneRuns) {
  const TempFile file = TempFile::random(100'000);
  AlignedBuffer buffer(1 << 20);
  const auto engine = open({file.path()}, 8, {buffer.span()});
  const std::string expected = GetParam().kind == IoEngineKind::kUring ? "uring" : "threads";
  EXPECT_THAT(std::string(engine->name()), ::testing::HasSubstr(expected));
  EXPECT_EQ(engine->direct_io(0), GetParam().direct == DirectIo::kOn);
  EXPECT_EQ(engine->file_bytes(0), 100'000u);
  EXPECT_EQ(engine->depth(), 8u);
  EXPECT_THAT(notices_.list(), ::testing::IsEmpty());  // asked for and got: nothing to announce
}

TEST_P(EngineTest, ReadsTheRightBytesOfTheRightFile) {
  const TempFile files[] = {TempFile::random(1 << 20, 1), TempFile::random(1 << 20, 2)};
  AlignedBuffer buffer(64 * kSectorBytes);
  const auto engine = open({files[0].path(), files[1].path()}, 64, {buffer.span()});
  std::vector<ReadRequest> requests;
  for (uint32_t i = 0; i < 64; ++i) {
    requests.push_back({.tag = 1000 + i,
                        .file = i % 2,
                        .offset = (i * 37 % 256) * kSectorBytes,
                        .buffer = buffer.data() + i * kSectorBytes,
                        .bytes = kSectorBytes});
  }
  const int64_t before = clock_.now_ns();
  ASSERT_EQ(engine->submit(requests), 64u);
  const auto done = reap_all(*engine, 64);
  for (const ReadRequest& request : requests) {
    const ReadCompletion& completion = done.at(request.tag);
    ASSERT_EQ(completion.result, static_cast<int32_t>(kSectorBytes));
    EXPECT_GE(completion.issued_ns, before);
    EXPECT_GE(completion.completed_ns, completion.issued_ns);
    EXPECT_EQ(std::memcmp(request.buffer, files[request.file].bytes().data() + request.offset,
                          kSectorBytes),
              0);
  }
  EXPECT_EQ(engine->counters().reads, 64u);
  const bool fixed = GetParam().registered && GetParam().kind == IoEngineKind::kUring;
  EXPECT_EQ(engine->counters().fixed_reads, fixed ? 64u : 0u);
}

TEST_P(EngineTest, ReadsTheUnalignedTailShort) {
  for (const size_t bytes :
       {size_t{1}, size_t{511}, size_t{4095}, size_t{4096}, size_t{4097}, size_t{100'000}}) {
    SCOPED_TRACE(bytes);
    const TempFile file = TempFile::random(bytes);
    AlignedBuffer buffer(128 * 1024);
    const auto engine = open({file.path()}, 4, {buffer.span()});
    const ReadRequest requests[] = {
        {.tag = 1, .offset = 0, .buffer = buffer.data(), .bytes = 128 * 1024}};
    ASSERT_EQ(engine->submit(requests), 1u);
    EXPECT_EQ(reap_all(*engine, 1).at(1).result, static_cast<int32_t>(bytes));
    EXPECT_EQ(std::memcmp(buffer.data(), file.bytes().data(), bytes), 0);
  }
}

TEST_P(EngineTest, ReadsNothingPastTheEnd) {
  const TempFile file = TempFile::random(10'000);
  AlignedBuffer buffer(kSectorBytes);
  const auto engine = open({file.path()}, 1, {buffer.span()});
  const ReadRequest requests[] = {
      {.tag = 1, .offset = 1 << 20, .buffer = buffer.data(), .bytes = kSectorBytes}};
  ASSERT_EQ(engine->submit(requests), 1u);
  EXPECT_EQ(reap_all(*engine, 1).at(1).result, 0);
}

TEST_P(EngineTest, TakesNoMoreThanItsDepth) {
  const TempFile file = TempFile::random(1 << 20);
  AlignedBuffer buffer(16 * kSectorBytes);
  const auto engine = open({file.path()}, 5, {buffer.span()});
  std::vector<ReadRequest> requests;
  for (uint64_t i = 0; i < 16; ++i) {
    requests.push_back({.tag = i,
                        .offset = i * kSectorBytes,
                        .buffer = buffer.data() + i * kSectorBytes,
                        .bytes = kSectorBytes});
  }
  EXPECT_EQ(engine->submit(requests), 5u);
  EXPECT_EQ(engine->submit(requests), 0u);  // depth is given back by reap(), not by completion
  reap_all(*engine, 5);
  EXPECT_EQ(engine->submit(std::span(requests).subspan(5)), 5u);
  reap_all(*engine, 5);
  EXPECT_LE(engine->counters().in_flight_max, 5u);
}

TEST_P(EngineTest, ReallyReadsAtDepth) {
  const TempFile file = TempFile::random(32 << 20);
  AlignedBuffer buffer(32 << 20);
  const auto engine = open({file.path()}, 32, {buffer.span()});
  std::vector<ReadRequest> requests;
  for (uint64_t i = 0; i < 32; ++i) {
    const uint64_t at = i << 20;
    requests.push_back({.tag = i, .offset = at, .buffer = buffer.data() + at, .bytes = 1 << 20});
  }
  const uint64_t calls_before = engine->counters().submit_calls;
  ASSERT_EQ(engine->submit(requests), 32u);
  reap_all(*engine, 32);
  EXPECT_EQ(std::memcmp(buffer.data(), file.bytes().data(), 32 << 20), 0);
  if (GetParam().kind == IoEngineKind::kUring) {
    EXPECT_GT(engine->counters().in_flight_max, 1u);
    // The io thread may wake in the middle of the burst, not once per request.
    EXPECT_LE(engine->counters().submit_calls - calls_before, 8u);
  } else if (GetParam().direct == DirectIo::kOn) {
    EXPECT_GT(engine->counters().in_flight_max, 1u);
  }
}

TEST_P(EngineTest, SurvivesManyRounds) {
  const TempFile file = TempFile::random(1 << 20);
  AlignedBuffer buffer(8 * kSectorBytes);
  const auto engine = open({file.path()}, 8, {buffer.span()});
  Rng rng(7);
  std::vector<uint64_t> offset_of(8);
  std::vector<uint64_t> idle = {0, 1, 2, 3, 4, 5, 6, 7};
  size_t completed = 0;
  while (completed < 3000) {
    while (!idle.empty()) {
      const uint64_t slot = idle.back();
      offset_of[slot] = rng.below(256) * kSectorBytes;
      const ReadRequest request = {.tag = slot,
                                   .offset = offset_of[slot],
                                   .buffer = buffer.data() + slot * kSectorBytes,
                                   .bytes = kSectorBytes};
      ASSERT_EQ(engine->submit({&request, 1}), 1u);
      idle.pop_back();
    }
    ReadCompletion out[8];
    const size_t n = engine->reap(out, 10 * kSecond);
    ASSERT_GT(n, 0u) << "a completion was lost after " << completed;
    for (size_t i = 0; i < n; ++i) {
      const uint64_t slot = out[i].tag;
      ASSERT_EQ(out[i].result, static_cast<int32_t>(kSectorBytes));
      ASSERT_EQ(std::memcmp(buffer.data() + slot * kSectorBytes,
                            file.bytes().data() + offset_of[slot], kSectorBytes),
                0);
      idle.push_back(slot);
    }
    completed += n;
  }
}

TEST_P(EngineTest, ReapWaitsAsLongAsAskedAndNotLonger) {
  const TempFile file = TempFile::random(4096);
  const auto engine = open({file.path()}, 2);
  ReadCompletion out[2];
  int64_t before = clock_.now_ns();
  EXPECT_EQ(engine->reap(out, 0), 0u);
  EXPECT_LT(clock_.now_ns() - before, kSecond / 10);
  before = clock_.now_ns();
  EXPECT_EQ(engine->reap(out, kSecond / 20), 0u);
  EXPECT_GE(clock_.now_ns() - before, kSecond / 20);
  EXPECT_LT(clock_.now_ns() - before, 10 * kSecond);
}

TEST_P(EngineTest, InterruptWakesOneReap) {
  const TempFile file = TempFile::random(4096);
  const auto engine = open({file.path()}, 2);
  ReadCompletion out[2];
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    engine->interrupt();
  });
  const int64_t before = clock_.now_ns();
  EXPECT_EQ(engine->reap(out, 30 * kSecond), 0u);
  EXPECT_LT(clock_.now_ns() - before, 20 * kSecond);
  other.join();
  engine->interrupt();                  // nobody waits: kept for the next one that does
  EXPECT_EQ(engine->reap(out, 0), 0u);  // this one doesn't
  EXPECT_EQ(engine->reap(out, 30 * kSecond), 0u);
  EXPECT_LT(clock_.now_ns() - before, 20 * kSecond);
  EXPECT_EQ(engine->reap(out, kSecond / 50), 0u);
}

TEST_P(EngineTest, ClosesWithReadsInFlight) {
  const TempFile file = TempFile::random(32 << 20);
  AlignedBuffer buffer(32 << 20);
  for (int round = 0; round < 5; ++round) {
    const auto engine = open({file.path()}, 32, {buffer.span()});
    std::vector<ReadRequest> requests;
    for (uint64_t i = 0; i < 32; ++i) {
      const uint64_t at = i << 20;
      requests.push_back({.tag = i, .offset = at, .buffer = buffer.data() + at, .bytes = 1 << 20});
    }
    ASSERT_EQ(engine->submit(requests), 32u);
  }
}

std::vector<EngineForm> all_forms() {
  std::vector<EngineForm> forms;
  for (const DirectIo direct : {DirectIo::kOn, DirectIo::kOff}) {
    const std::string suffix = direct == DirectIo::kOn ? "Direct" : "Buffered";
    forms.push_back({"UringRegistered" + suffix, IoEngineKind::kUring, direct, true, false});
    forms.push_back({"Uring" + suffix, IoEngineKind::kUring, direct, false, false});
    forms.push_back({"Threads" + suffix, IoEngineKind::kThreads, direct, false, false});
    forms.push_back({"FaultUring" + suffix, IoEngineKind::kUring, direct, true, true});
    forms.push_back({"FaultThreads" + suffix, IoEngineKind::kThreads, direct, false, true});
  }
  return forms;
}

INSTANTIATE_TEST_SUITE_P(All, EngineTest, ::testing::ValuesIn(all_forms()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace offstage
