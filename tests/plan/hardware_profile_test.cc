#include "plan/hardware_profile.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/plan/machine.h"

namespace offstage {
namespace {

using Json = nlohmann::json;
using testing::small_machine;

TEST(HardwareProfile, IsReadAsItWasWritten) {
  HardwareProfile written = small_machine();
  written.drives[0].lone_bytes_per_s = 4e8;
  written.drives[0].request_ns = 24'288;
  written.drives[0].answers_together = true;
  written.asleep_ns = 31'000;
  const auto read = parse_profile(profile_text(written), "a profile");
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(profile_text(*read), profile_text(written));
  EXPECT_EQ(read->drives.size(), 1u);
  EXPECT_EQ(read->drives[0].latency_ns, 50'000);
  const SimDrive simulated = read->drives[0].simulated();
  EXPECT_EQ(simulated.channel_bytes_per_s, 400'000'000u);
  EXPECT_TRUE(simulated.answers_together);
  EXPECT_EQ(read->asleep_ns, 31'000);
  // A block of 1 MiB takes 1,048,576 ns, its request among them.
  EXPECT_EQ(simulated.request_ns, 24'288);
  EXPECT_EQ(simulated.bytes_per_s, 1'023'712'080u);
  EXPECT_EQ(read->kernels[1].type, TensorType::kQ8_0);
}

TEST(HardwareProfile, SaysWhatIsWrongAndWhere) {
  const auto refused = [](auto change, ErrorCode code, std::string_view part) {
    Json json = Json::parse(profile_text(small_machine()));
    change(json);
    const auto profile = parse_profile(json.dump(), "slow.json");
    ASSERT_FALSE(profile) << part;
    EXPECT_EQ(profile.error().code, code) << profile.error().message;
    EXPECT_NE(profile.error().message.find(part), std::string::npos) << profile.error().message;
    EXPECT_EQ(profile.error().message.find("slow.json"), 0u) << profile.error().message;
  };
  const auto corrupt = ErrorCode::kCorrupt;
  refused([](Json& j) { j["schema"] = "offstage.profile/2"; }, ErrorCode::kUnsupported,
          "offstage.profile/1");
  refused([](Json& j) { j.erase("ram"); }, ErrorCode::kNotFound, "ram");
  refused([](Json& j) { j["drives"] = Json::array(); }, corrupt, "drives");
  refused([](Json& j) { j["drives"][0]["bytes_per_s"] = 0; }, corrupt, "bytes_per_s");
  refused([](Json& j) { j["drives"][0]["block_bytes"] = 5000; }, corrupt, "block_bytes");
  refused([](Json& j) { j["drives"][0]["answers_together"] = 1; }, corrupt, "answers_together");
  refused([](Json& j) { j["drives"][0] = 3; }, ErrorCode::kNotFound, "name");
  refused([](Json& j) { j["cpu"]["kernels"][0]["type"] = "Q4_L"; }, corrupt, "Q4_L");
  refused([](Json& j) { j["cpu"]["slowdown_beside_reads"] = .5; }, corrupt, "slowdown");
  refused([](Json& j) { j["cpu"]["threads"] = "two"; }, corrupt, "threads");
}

TEST(HardwareProfile, AnOlderOneIsRead) {
  Json json = Json::parse(profile_text(small_machine()));
  for (const char* later :
       {"wake_ns", "policy_ns", "miss_ns", "asleep_ns", "attention_ns", "router_ns", "experts_ns"})
    json["cpu"].erase(later);
  json["ram"].erase("cache_bytes");
  json["drives"][0].erase("answers_together");
  const auto profile = parse_profile(json.dump(), "older");
  ASSERT_TRUE(profile) << profile.error().message;
  EXPECT_EQ(profile->wake_ns, 0);
  EXPECT_EQ(profile->policy_ns, 0);
  EXPECT_EQ(profile->miss_ns, 0);
  EXPECT_EQ(profile->asleep_ns, 0);
  EXPECT_EQ(profile->cache_bytes, 0u);
  EXPECT_EQ(profile->attention_ns, 0);
  EXPECT_EQ(profile->router_ns, 0);
  EXPECT_EQ(profile->experts_ns, 0);
  EXPECT_FALSE(profile->drives[0].answers_together);
}

TEST(HardwareProfile, AnUnmeasuredFormatIsAnnounced) {
  Notices notices;
  const KernelSpeed speed = small_machine().kernel_of(TensorType::kQ4_K, notices);
  EXPECT_EQ(speed.decode_bytes_per_s, 8e9);
  ASSERT_EQ(notices.list().size(), 1u);
  EXPECT_NE(notices.list()[0].text.find("Q4_K"), std::string::npos);
}

TEST(HardwareProfile, NoKernelOutrunsMemory) {
  HardwareProfile profile = small_machine();
  profile.ram_read_bytes_per_s = 1e9;
  Notices notices;
  EXPECT_EQ(profile.kernel_of(TensorType::kQ8_0, notices).decode_bytes_per_s, 1e9);
  EXPECT_TRUE(notices.list().empty());
}

}  // namespace
}  // namespace offstage
