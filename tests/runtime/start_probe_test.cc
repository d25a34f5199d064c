// The probe of a start: kept, found again, forced, and never in the way.
#include "runtime/start_probe.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>

#include "io/drive_profile.h"
#include "runtime_fixture.h"

namespace offstage {
namespace {

class StartProbeTest : public ::testing::Test {
 protected:
  StartProbeTest()
      : folder_(std::filesystem::absolute(fmt::format("start_probe_test.{}", getpid()))) {
    std::filesystem::create_directories(folder_);
    const std::string copy = folder_ / "model.gguf";
    std::filesystem::copy_file(model_file("micro-qwen3moe-q4_k_m.gguf"), copy,
                               std::filesystem::copy_options::overwrite_existing);
    options_ = test_options(copy);
    options_.process_bytes = 64ull << 20;
    options_.warm_start = false;
    const auto model = open_model(options_);
    options_.ram_bytes = model->runtime->plan().floor_bytes;
  }
  ~StartProbeTest() override { std::filesystem::remove_all(folder_); }

  std::string profile() const { return folder_ / "model.gguf.offstage-drive"; }
  std::optional<DriveChoice> kept() const {
    const auto file = ModelFile::open(options_.model_path);
    return file ? kept_choice(**file) : std::nullopt;
  }
  DriveChoice choice(Probe probe) {
    options_.probe = probe;
    const auto model = open_model(options_);
    return model == nullptr ? DriveChoice() : model->runtime->drive();
  }

  const std::filesystem::path folder_;
  RuntimeOptions options_;
};

TEST_F(StartProbeTest, IsForcedKeptAndFoundAgain) {
  EXPECT_TRUE(choice(Probe::kAuto).probed.empty());  // too small a model to be worth it
  EXPECT_FALSE(std::filesystem::exists(profile()));
  EXPECT_FALSE(kept());
  const DriveChoice now = choice(Probe::kForce);
  ASSERT_FALSE(now.probed.empty());
  EXPECT_GT(now.bytes_per_s, 0);
  EXPECT_GT(now.probe_ns, 0);
  EXPECT_GE(now.depth, 8u);
  const DriveChoice later = choice(Probe::kAuto);
  EXPECT_EQ(later.probed, now.probed);
  EXPECT_EQ(later.depth, now.depth);
  EXPECT_EQ(later.block_bytes, now.block_bytes);
  EXPECT_EQ(later.probe_ns, 0);
  ASSERT_TRUE(kept());
  EXPECT_EQ(kept()->depth, now.depth);
  EXPECT_EQ(kept()->block_bytes, now.block_bytes);
  EXPECT_TRUE(choice(Probe::kOff).probed.empty());
  options_.io_depth = 3;
  EXPECT_EQ(choice(Probe::kAuto).depth, 3u);  // what was asked for wins
}

TEST_F(StartProbeTest, AnotherDrivesProfileIsNotBelieved) {
  ASSERT_TRUE(write_profile(profile(), {"9:9 other", "uring direct", utc_date(), 8192, 2, 1}));
  EXPECT_FALSE(kept());
  EXPECT_TRUE(choice(Probe::kAuto).probed.empty());
  EXPECT_FALSE(choice(Probe::kForce).probed.empty());
  EXPECT_FALSE(choice(Probe::kAuto).probed.empty());
}

TEST_F(StartProbeTest, AllInRamIsNeverProbed) {
  options_.ram_bytes = 1ull << 30;
  EXPECT_TRUE(choice(Probe::kForce).probed.empty());
}

TEST_F(StartProbeTest, ARowsTimeIsMeasured) {
  const auto file = ModelFile::open(options_.model_path);
  ASSERT_TRUE(file);
  const auto kernels = choose_kernels("");
  ASSERT_TRUE(kernels);
  Notices notices;
  ThreadPool workers(2, notices);
  const SteadyClock clock;
  const double row_ns = estimate_row_ns(**file, **kernels, workers, clock);
  EXPECT_GT(row_ns, 1);
  EXPECT_LT(row_ns, 1e9);
}

}  // namespace
}  // namespace offstage
