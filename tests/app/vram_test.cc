// --vram as a person meets it: on a machine without a card, on the simulated one, and spelled as in
// llama.cpp.
#include <gmock/gmock.h>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::Outcome;
using testing::SchemaCheck;

class VramTest : public testing::ProgramTest {
 protected:
  Outcome generate(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"-p", "Abc", "-n", "12", "--no-warm-start"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run("micro-qwen3moe-q4_k_m", arguments);
  }
  nlohmann::json json_of(std::vector<std::string> more) {
    more.push_back("--json");
    const Outcome outcome = generate(more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const auto json = outcome.json();
    EXPECT_THAT(SchemaCheck("run.json").problems(json), IsEmpty());
    return json;
  }
};

const std::vector<std::string> kOnSim = {"--vram", "64M", "--device", "sim", "--promote", "always"};

TEST_F(VramTest, WithoutItTheFieldSaysOff) {
  const auto json = json_of({});
  EXPECT_EQ(json["vram"]["version"], 1);
  EXPECT_EQ(json["vram"]["state"], "off");
  EXPECT_EQ(json["vram"]["hits"], 0);
}

TEST_F(VramTest, TheSimulatedDeviceGivesTheSameTokens) {
  const auto plain = json_of({});
  const auto on_sim = json_of(kOnSim);
  EXPECT_EQ(on_sim["tokens"], plain["tokens"]);
  const auto& vram = on_sim["vram"];
  EXPECT_EQ(vram["state"], "in_use");
  EXPECT_EQ(vram["simulated"], true);
  EXPECT_EQ(vram["device"], "simulated device");
  EXPECT_GT(vram["promotions"], 0);
  EXPECT_EQ(vram["dense_forwards"], 11);  // of 12 tokens, the first of which is the prompt's
  EXPECT_EQ(vram["dense_chunks"], 1);
  EXPECT_GT(vram["dense_bytes"], 0);
  const auto bytes = [&](const char* part) { return vram[part].get<uint64_t>(); };
  EXPECT_LE(
      bytes("dense_bytes") + bytes("kv_bytes") + bytes("working_bytes") + bytes("experts_bytes"),
      bytes("budget_bytes"));
  EXPECT_EQ(vram["hits"], on_sim["experts"]["vram_hits"]);
  uint64_t hits = 0;
  for (const auto& token : on_sim["token_records"]) hits += token["hits"]["vram"].get<uint64_t>();
  EXPECT_EQ(vram["hits"], hits);
}

TEST_F(VramTest, TheLastLinesSayWhatTheTiersDid) {
  const Outcome outcome = generate(kOnSim);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("simulated device: attention, router and shared experts of "
                                     "all tokens, "));
  EXPECT_THAT(outcome.err, HasSubstr("simulated device: 8 experts in each of 3 layers"));
  EXPECT_THAT(outcome.err, HasSubstr("shared experts of 11 forwards by the device, and "
                                     "of prompts' chunks: 1"));
  EXPECT_THAT(outcome.err, HasSubstr("% from VRAM, "));
  EXPECT_THAT(outcome.err, HasSubstr("placed   not in VRAM: "));
  EXPECT_THAT(outcome.err, HasSubstr("note: device: a simulated device stands for a GPU"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("note: gpu:")));
}

TEST_F(VramTest, PlacementIsCountedAndNeverShowsInTheTokens) {
  const auto plain = json_of({});
  EXPECT_EQ(plain["vram"]["placed_ram_cpu"], 0);
  auto arguments = kOnSim;
  arguments.back() = "off";
  arguments.insert(arguments.end(), {"--placement", "copy"});
  const auto copied = json_of(arguments);
  EXPECT_EQ(copied["tokens"], plain["tokens"]);
  EXPECT_EQ(copied["vram"]["hits"], 0);
  EXPECT_GT(copied["vram"]["placed_ram_copied"], 0);
  arguments.back() = "cpu";
  const auto by_cpu = json_of(arguments);
  EXPECT_EQ(by_cpu["tokens"], plain["tokens"]);
  EXPECT_EQ(by_cpu["vram"]["placed_ram_copied"], 0);
  EXPECT_GT(by_cpu["vram"]["placed_ram_cpu"], 0);
  EXPECT_EQ(generate({"--vram", "8M", "--device", "sim", "--placement", "there"}).code, 2);
}

// A copy of an expert, and a kernel of some layer's attention.
TEST_F(VramTest, ADeviceThatFailsIsAnnouncedAndTheTokensStay) {
  const auto tokens = json_of({})["tokens"];
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{"--dense", "cpu", "--device-fault", "copy=4"},
        std::vector<std::string>{"--device-fault", "launch=90"}}) {
    auto arguments = kOnSim;
    arguments.insert(arguments.end(), more.begin(), more.end());
    const auto json = json_of(arguments);
    EXPECT_EQ(json["tokens"], tokens);
    EXPECT_EQ(json["vram"]["state"], "lost");
    EXPECT_THAT(json["fallbacks"].dump(), HasSubstr("no experts there any more"));
  }
}

TEST_F(VramTest, WithoutRoomForAllOfTheDensePartItIsTheCpusAndThatIsSaid) {
  const auto json = json_of({"--vram", "800K", "--device", "sim", "--promote", "always"});
  EXPECT_EQ(json["tokens"], json_of({})["tokens"]);
  EXPECT_EQ(json["vram"]["state"], "in_use");
  EXPECT_EQ(json["vram"]["dense_bytes"], 0);
  EXPECT_EQ(json["vram"]["dense_forwards"], 0);
  EXPECT_GT(json["vram"]["hits"], 0);
  EXPECT_THAT(json["fallbacks"].dump(), HasSubstr("stay with the CPU"));
  EXPECT_THAT(json["fallbacks"].dump(), HasSubstr("more than 800.00 KiB"));
}

TEST_F(VramTest, TooLittleIsAnnouncedWithWhatItTakes) {
  const auto json = json_of({"--vram", "1K", "--device", "sim"});
  EXPECT_EQ(json["vram"]["state"], "unavailable");
  EXPECT_THAT(json["fallbacks"].dump(), HasSubstr("one expert per layer takes"));
}

// Where there is a card, the run uses it: same tokens.
TEST_F(VramTest, WithoutACardTheRunWorksAndSaysSoOnce) {
  const Outcome outcome = generate({"--vram", "64M", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_EQ(json["tokens"], json_of({})["tokens"]);
  if (json["vram"]["state"] == "in_use") GTEST_SKIP() << "this machine has a card";
  EXPECT_EQ(json["vram"]["state"], "unavailable");
  size_t said = 0;
  for (const auto& notice : json["fallbacks"])
    said += notice["text"].dump().find("CUDA") != std::string::npos;
  EXPECT_EQ(said, 1u) << json["fallbacks"].dump();
  EXPECT_THAT(outcome.err, HasSubstr("note: vram: --vram has no effect: CUDA: "));
  EXPECT_THAT(outcome.err, HasSubstr("everything is computed on the CPU"));
}

TEST_F(VramTest, FlagsOfLlamaCppAreAnsweredWithVram) {
  for (const char* flag : {"-ngl", "--n-cpu-moe", "-ncmoe"}) {
    const Outcome outcome = generate({flag, "20"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("has no effect: Offstage places single experts")) << flag;
    EXPECT_THAT(outcome.err, HasSubstr("--vram 8G")) << flag;
  }
  EXPECT_THAT(generate({"--cpu-moe"}).err, HasSubstr("note: cpu_moe: --cpu-moe has no effect"));
  EXPECT_EQ(generate({"--device", "card"}).code, 2);
  EXPECT_EQ(generate({"--vram", "much"}).code, 2);
  EXPECT_EQ(generate({"--vram", "8M", "--device", "sim", "--device-fault", "copi=1"}).code, 2);
}

}  // namespace
}  // namespace offstage
