#include "plan/machine_probe.h"

#include <gtest/gtest.h>

#include <set>

#include "base/arena.h"
#include "base/checked_math.h"
#include "io/extent.h"
#include "io/sim.h"
#include "plan/cpu_trial.h"
#include "plan/drive_trial.h"
#include "plan/layer_trial.h"
#include "tests/plan/machine.h"

namespace offstage {
namespace {

// A drive of known numbers, under the virtual clock.
class DriveTrialTest : public ::testing::Test {
 protected:
  DriveTrialTest()
      : engine_({.files = {{.bytes = 256u << 20}},
                 .drives = {{.latency_ns = 100'000, .jitter_ns = 0, .bytes_per_s = 1'000'000'000}},
                 .depth = 32,
                 .wake_ns = 7'000},
                clock_) {
    shape_.range_bytes = 256u << 20;
    shape_.block_bytes = 64u << 10;
    shape_.time_ns = 3'000'000'000;
    shape_.memory = {aligned(), 32 * (64u << 10)};
  }
  std::byte* aligned() {
    return reinterpret_cast<std::byte*>(
        round_up(reinterpret_cast<uintptr_t>(memory_.data()), kSectorBytes));
  }
  ManualClock clock_;
  SimEngine engine_;
  std::vector<std::byte> memory_ = std::vector<std::byte>(33 * (64u << 10));
  DriveTrialShape shape_;
};

TEST_F(DriveTrialTest, OneAtATimeShowsLatency) {
  const auto trial = try_drive(engine_, clock_, shape_);
  ASSERT_TRUE(trial) << trial.error().message;
  EXPECT_EQ(trial->least_ns, 165'536);
  EXPECT_EQ(trial->p99_ns, 165'536);
  EXPECT_EQ(trial->wake_ns, 7'000);
  EXPECT_NEAR(trial->bytes_per_s, (64 << 10) / 172.5e-6, 1e6);
  EXPECT_GE(clock_.now_ns(), shape_.time_ns);
}

TEST_F(DriveTrialTest, ManyAtATimeShowSpeed) {
  shape_.depth = 16;
  const auto trial = try_drive(engine_, clock_, shape_);
  ASSERT_TRUE(trial) << trial.error().message;
  EXPECT_NEAR(trial->bytes_per_s, 1e9, 1e7);
  EXPECT_NEAR(trial->slowest_second, 1e9, 2e7);
  EXPECT_GT(trial->p50_ns, 900'000);  // fifteen others are before it
}

TEST_F(DriveTrialTest, EndsWhenItsBytesAreSpent) {
  shape_.bytes_max = 1u << 20;
  const auto trial = try_drive(engine_, clock_, shape_);
  ASSERT_TRUE(trial);
  EXPECT_EQ(trial->reads, 16u);
}

TEST_F(DriveTrialTest, RefusesWhatDoesNotFit) {
  shape_.depth = 64;
  const auto trial = try_drive(engine_, clock_, shape_);
  ASSERT_FALSE(trial);
  EXPECT_EQ(trial.error().code, ErrorCode::kInvalidArgument);
}

// As a layer sends its misses: so many at once, each time into other memory.
TEST_F(DriveTrialTest, PausesBetweenBursts) {
  shape_.depth = 8;
  shape_.bytes_max = 12 * 8 * (64u << 10);
  shape_.pause_ns = 5'000'000;
  std::set<const std::byte*> places;
  shape_.after_burst = [&](std::span<const std::byte> burst) {
    EXPECT_EQ(burst.size(), 8 * (64u << 10));
    places.insert(burst.data());
  };
  const auto trial = try_drive(engine_, clock_, shape_);
  ASSERT_TRUE(trial) << trial.error().message;
  EXPECT_EQ(trial->reads, 96u);
  EXPECT_EQ(trial->burst_ns, 100'000 + 8 * 65'536);
  EXPECT_GE(clock_.now_ns(), 12 * 5'000'000);
  EXPECT_EQ(places.size(), 4u);
  EXPECT_EQ(*places.begin(), shape_.memory.data());
}

TEST(AnswersTogether, IsToldFromDrivesThatAnswerEach) {
  for (const bool together : {false, true})
    for (const uint64_t channel_bytes_per_s : {0u, 100'000'000u}) {
      const SimDrive drive = {.latency_ns = 100'000,
                              .jitter_ns = 10'000,
                              .bytes_per_s = 1'000'000'000,
                              .channel_bytes_per_s = channel_bytes_per_s,
                              .answers_together = together};
      ManualClock clock;
      SimEngine engine({.files = {{.bytes = 256u << 20}}, .drives = {drive}, .depth = 32}, clock);
      Notices notices;
      HostArena memory = *HostArena::create("a test", 16u << 20, notices);
      DriveTrialShape shape;
      shape.range_bytes = 256u << 20;
      shape.block_bytes = 1u << 20;
      shape.depth = 16;
      shape.memory = {memory.data(), 16u << 20};
      const auto found = answers_together(engine, clock, shape, 1e9);
      ASSERT_TRUE(found) << found.error().message;
      EXPECT_EQ(*found, together) << channel_bytes_per_s;
      shape.depth = 64;
      EXPECT_EQ(answers_together(engine, clock, shape, 1e9).error().code,
                ErrorCode::kInvalidArgument);
    }
}

// What is fitted to a simulated drive's answers is that drive.
TEST(DriveFit, FindsTheDriveThatAnswered) {
  const SimDrive drive = {
      .latency_ns = 100'000, .jitter_ns = 0, .bytes_per_s = 1'000'000'000, .request_ns = 20'000};
  ManualClock clock;
  SimEngine engine({.files = {{.bytes = 256u << 20}}, .drives = {drive}, .depth = 32}, clock);
  std::vector<std::byte> memory((16u << 20) + kSectorBytes);
  auto* const aligned = reinterpret_cast<std::byte*>(
      round_up(reinterpret_cast<uintptr_t>(memory.data()), kSectorBytes));
  const auto trial = [&](uint32_t block_bytes, uint32_t depth, int64_t pause_ns = 200'000) {
    DriveTrialShape shape;
    shape.range_bytes = 256u << 20;
    shape.block_bytes = block_bytes;
    shape.depth = depth;
    shape.pause_ns = pause_ns;
    shape.memory = {aligned, 16u << 20};
    return *try_drive(engine, clock, shape);
  };
  DriveSpeed found;
  found.block_bytes = 1u << 20;
  found.depth = 16;
  fit_drive({.idle = trial(kShortReadBytes, 1),
             .lone = trial(1u << 20, 1),
             .burst = trial(kShortReadBytes, kBurst),
             .longer_burst = trial(kLongerReadBytes, kBurst),
             .loaded = trial(1u << 20, 16, 0)},
            found);
  EXPECT_NEAR(static_cast<double>(found.request_ns), 20e3, 500);
  EXPECT_NEAR(static_cast<double>(found.latency_ns), 100e3, 1e3);
  EXPECT_EQ(found.jitter_ns, 0);
  EXPECT_NEAR(found.lone_bytes_per_s, 1e9, 1e7);
  EXPECT_NEAR(static_cast<double>(found.simulated().bytes_per_s), 1e9, 1e7);
}

// As small and as short as it gets: every format has its speeds, and the profile is one that is
// read.
TEST(CpuTrial, FillsAProfile) {
  Notices notices;
  ThreadPool workers(1, notices);
  const SteadyClock clock;
  HostArena memory = *HostArena::create("a test", kCpuTrialBytesMin, notices);
  HardwareProfile profile = testing::small_machine();
  size_t said = 0;
  try_cpu({**choose_kernels(""),
           workers,
           clock,
           {memory.data(), memory.size_bytes()},
           1,
           [&](size_t done, size_t total) { said = total - done; }},
          profile, notices);
  EXPECT_EQ(profile.threads, 1u);
  EXPECT_EQ(said, 1u);
  for (const KernelSpeed& kernel : profile.kernels) {
    EXPECT_GT(kernel.decode_bytes_per_s, 1e6) << tensor_type_traits(kernel.type).name;
    EXPECT_GT(kernel.prefill_params_per_s, 1e6) << tensor_type_traits(kernel.type).name;
  }
  EXPECT_GT(profile.hash_bytes_per_s, 1e6);
  EXPECT_GT(profile.event_ns, 0);
  EXPECT_GT(profile.policy_ns, 0);
  EXPECT_GT(profile.miss_ns, 0);
  const auto read = parse_profile(profile_text(profile), "written");
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->kernels.size(), profile.kernels.size());
  EXPECT_EQ(read->kernels.size(), 23u);
}

// All of a layer's time where nothing is taken away for weights, nearly none where all is.
TEST(LayerTrial, TakesTheWeightsTimeAway) {
  const std::string model = OFFSTAGE_TEST_DATA "/models/micro-qwen3moe-q4_k_m.gguf";
  HardwareProfile profile = testing::small_machine();
  const auto try_with = [&](double bytes_per_s) {
    profile.ram_read_bytes_per_s = bytes_per_s;
    for (KernelSpeed& kernel : profile.kernels) kernel.decode_bytes_per_s = bytes_per_s;
    return try_layers({model, 1, "", profile, 1u << 20});
  };
  const auto whole = try_with(1e15);
  ASSERT_TRUE(whole) << whole.error().message;
  EXPECT_GT(whole->attention_ns, 1);
  EXPECT_GT(whole->router_ns, 1);
  EXPECT_GT(whole->experts_ns, 1);
  const auto nothing = try_with(1);
  ASSERT_TRUE(nothing) << nothing.error().message;
  EXPECT_EQ(nothing->attention_ns, 1);
  EXPECT_EQ(nothing->router_ns, 1);
  EXPECT_EQ(nothing->experts_ns, 1);
}

TEST(LayerTrial, WantsExperts) {
  const HardwareProfile profile = testing::small_machine();
  const std::string dense = OFFSTAGE_TEST_DATA "/models/llama-s1.gguf";
  EXPECT_EQ(try_layers({dense, 1, "", profile}).error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(try_layers({"no such file", 1, "", profile}).error().code, ErrorCode::kNotFound);
}

TEST(MachineProbe, NamesTheFileThatItCannotUse) {
  Notices notices;
  const SteadyClock clock;
  MachineProbeOptions options;
  EXPECT_EQ(probe_machine(options, clock, notices).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace offstage
