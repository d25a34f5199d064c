// The probe on drives of known nature and a clock that only they move; and what is kept of it.
#include "io/drive_probe.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <set>

#include "io/drive_profile.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::AlignedBuffer;
using ::testing::HasSubstr;
using testing::TempFile;

constexpr uint64_t kMiB = 1ull << 20;

// Every read takes `latency_ns`, `channels` of them side by side; together no more than the wire.
struct Nature {
  int64_t latency_ns = 1'000'000;
  uint32_t channels = 16;
  double wire_bytes_per_s = 1e9;
  bool answers = true;
  int32_t fails_with = 0;
};

class ModelDrive final : public IoEngine {
 public:
  ModelDrive(Nature nature, ManualClock& clock, uint64_t bytes, uint32_t depth)
      : nature_(nature), clock_(clock), bytes_(bytes), depth_(depth), channels_(nature.channels) {}

  std::string_view name() const override { return "model"; }
  bool direct_io(uint32_t) const override { return true; }
  uint64_t file_bytes(uint32_t) const override { return bytes_; }
  uint32_t depth() const override { return depth_; }
  void interrupt() override {}

  size_t submit(std::span<const ReadRequest> requests) override {
    for (const ReadRequest& request : requests) {
      EXPECT_LE(request.offset + request.bytes, bytes_);
      EXPECT_EQ(request.offset % 4096, 0u);
      EXPECT_TRUE(buffers_.insert(request.buffer).second) << "two reads into one buffer";
      auto channel = std::min_element(channels_.begin(), channels_.end());
      const int64_t begin_ns = std::max(*channel, clock_.now_ns());
      const auto wire_ns = static_cast<int64_t>(request.bytes * 1e9 / nature_.wire_bytes_per_s);
      wire_free_ns_ = std::max(wire_free_ns_, begin_ns) + wire_ns;
      *channel = std::max(begin_ns + nature_.latency_ns, wire_free_ns_);
      flights_.push_back({request, *channel});
      bytes_asked_ += request.bytes;
    }
    EXPECT_LE(flights_.size(), depth_);
    return requests.size();
  }

  size_t reap(std::span<ReadCompletion> out, int64_t timeout_ns) override {
    if (!nature_.answers || flights_.empty()) {
      clock_.advance_ns(timeout_ns);
      return 0;
    }
    const auto first =
        std::min_element(flights_.begin(), flights_.end(),
                         [](const Flight& a, const Flight& b) { return a.done_ns < b.done_ns; });
    clock_.advance_ns(std::max<int64_t>(first->done_ns - clock_.now_ns(), 0));
    out[0] = {.tag = first->request.tag,
              .result = nature_.fails_with != 0 ? nature_.fails_with
                                                : static_cast<int32_t>(first->request.bytes)};
    buffers_.erase(first->request.buffer);
    flights_.erase(first);
    return 1;
  }

  uint64_t bytes_asked() const { return bytes_asked_; }

 private:
  struct Flight {
    ReadRequest request;
    int64_t done_ns = 0;
  };
  const Nature nature_;
  ManualClock& clock_;
  const uint64_t bytes_;
  const uint32_t depth_;
  std::vector<int64_t> channels_;
  int64_t wire_free_ns_ = 0;
  std::deque<Flight> flights_;
  std::set<std::byte*> buffers_;
  uint64_t bytes_asked_ = 0;
};

class DriveProbeTest : public ::testing::Test {
 protected:
  Result<DriveProfile> probe(const Nature& nature, uint64_t memory_bytes = 64 * kMiB) {
    drive_.emplace(nature, clock_, 1000 * kMiB, 64);
    AlignedBuffer memory(memory_bytes);
    DriveProbeShape shape;
    shape.range_begin = 12'345;
    shape.range_bytes = 900 * kMiB;
    shape.read_bytes = 1 * kMiB;
    shape.depth_max = 32;
    shape.memory = memory.span();
    const int64_t begin_ns = clock_.now_ns();
    auto profile = probe_drive(*drive_, clock_, shape);
    took_ns_ = clock_.now_ns() - begin_ns;
    return profile;
  }
  ManualClock clock_;
  std::optional<ModelDrive> drive_;
  int64_t took_ns_ = 0;
};

TEST_F(DriveProbeTest, FindsTheLeastDepthThatFillsTheDrive) {
  // 1 MiB takes 1.05 ms of wire. With 4 ms of latency, four reads at once fill it.
  const auto four = probe({.latency_ns = 4'000'000});
  ASSERT_TRUE(four) << four.error().message;
  EXPECT_EQ(four->depth, 4u);
  EXPECT_EQ(four->block_bytes, kMiB);
  EXPECT_NEAR(four->bytes_per_s, 1e9, 0.06e9);
  const auto sixteen = probe({.latency_ns = 15'000'000, .channels = 64});
  ASSERT_TRUE(sixteen);
  EXPECT_EQ(sixteen->depth, 16u);
  EXPECT_GT(sixteen->cells.size(), 6u);
}

TEST_F(DriveProbeTest, ReadsOneByOneWhereDepthBuysNothing) {
  const auto disk = probe({.latency_ns = 2'000'000, .channels = 1});
  ASSERT_TRUE(disk);
  EXPECT_EQ(disk->depth, 1u);
  EXPECT_EQ(disk->block_bytes, kMiB);  // every read costs the same: the longest are the best
}

TEST_F(DriveProbeTest, StopsWhenItsBytesOrItsTimeAreSpent) {
  const auto fast = probe({.latency_ns = 1000, .wire_bytes_per_s = 20e9});
  ASSERT_TRUE(fast);
  EXPECT_LE(fast->bytes_read, 256 * kMiB);
  EXPECT_EQ(fast->bytes_read, drive_->bytes_asked());
  // 20 MB/s: a burst or two, then it is over. 16 reads of the first burst take 0.8 s.
  const auto slow = probe({.wire_bytes_per_s = 20e6});
  ASSERT_TRUE(slow);
  EXPECT_EQ(slow->cells.size(), 1u);
  EXPECT_EQ(slow->depth, 8u);
  EXPECT_LT(took_ns_, 1'000'000'000);
  EXPECT_NEAR(slow->bytes_per_s, 20e6, 2e6);
}

TEST_F(DriveProbeTest, LittleMemoryMeansLittleDepth) {
  const auto profile = probe({.latency_ns = 15'000'000, .channels = 64}, 6 * kMiB);
  ASSERT_TRUE(profile);
  EXPECT_LE(profile->depth * profile->block_bytes, 6 * kMiB);
  const auto refused = probe({}, kMiB / 2);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
}

TEST_F(DriveProbeTest, ADriveThatFailsOrIsSilentIsAnError) {
  const auto failed = probe({.fails_with = -5});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kIo);
  EXPECT_THAT(failed.error().message, HasSubstr("Input/output error"));
  const auto silent = probe({.answers = false});
  ASSERT_FALSE(silent);
  EXPECT_EQ(silent.error().code, ErrorCode::kDeadline);
  EXPECT_LT(took_ns_, 6'000'000'000);
}

TEST_F(DriveProbeTest, ReadsARealFile) {
  const TempFile file = TempFile::random(2'000'000, 9);
  AlignedBuffer memory(kMiB);
  Notices notices;
  auto engine = open_io_engine({.paths = {file.path()}, .depth = 8}, notices);
  ASSERT_TRUE(engine) << engine.error().message;
  const SteadyClock clock;
  const auto profile = probe_drive(**engine, clock,
                                   {.range_bytes = 2'000'000,
                                    .read_bytes = 100'000,
                                    .depth_max = 8,
                                    .bytes_max = 16 * kMiB,
                                    .memory = memory.span()});
  ASSERT_TRUE(profile) << profile.error().message;
  EXPECT_GT(profile->bytes_per_s, 0);
  EXPECT_LE(profile->bytes_read, 16 * kMiB);
  EXPECT_LE(profile->depth, 8u);
}

TEST(DriveProfileTest, IsReadBackAsItWasWritten) {
  const TempFile file = TempFile::random(10, 1);
  const auto id = drive_id(file.path());
  ASSERT_TRUE(id) << id.error().message;
  EXPECT_THAT(*id, HasSubstr(":"));
  EXPECT_FALSE(drive_id("/no/such/file"));
  const std::string path = profile_places(file.path()).front();
  EXPECT_THAT(path, ::testing::EndsWith(".offstage-drive"));
  EXPECT_EQ(read_profile(path).error().code, ErrorCode::kNotFound);
  const KeptProfile kept = {*id, "uring direct", utc_date(), 884'736, 16, 1'043'000'000};
  EXPECT_EQ(kept.date.size(), 20u);
  ASSERT_TRUE(write_profile(path, kept));
  const auto back = read_profile(path);
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(back->drive, kept.drive);
  EXPECT_EQ(back->engine, kept.engine);
  EXPECT_EQ(back->date, kept.date);
  EXPECT_EQ(back->block_bytes, kept.block_bytes);
  EXPECT_EQ(back->depth, kept.depth);
  EXPECT_EQ(back->bytes_per_s, kept.bytes_per_s);

  std::ifstream in(path);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  for (const auto& [from, to] : {std::pair("884736", "884737"), std::pair("depth 16", "depth 0"),
                                 std::pair("drive 1", "drive 2"), std::pair("\ndate", "\nday")}) {
    std::string text = whole;
    text.replace(text.find(from), std::string_view(from).size(), to);
    std::ofstream(path, std::ios::trunc) << text;
    const auto damaged = read_profile(path);
    ASSERT_FALSE(damaged) << to;
    EXPECT_EQ(damaged.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(damaged.error().message, HasSubstr("line"));
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace offstage
