// The model that ships: it is there, it learned its texts, and what it says doesn't depend on how
// it was run. `scripts/demo/measure.py --sample` wrote demo.json: the beginning of each validation
// text with the losses of the checkpoint and of a bigram model.
#include <gmock/gmock.h>

#include <algorithm>
#include <fstream>
#include <regex>

#include "tests/app/program.h"

namespace offstage {
namespace {

using testing::Conditions;
using testing::Outcome;

class DemoTest : public testing::ProgramTest {
 protected:
  void SetUp() override {
    const std::filesystem::path shipped =
        std::filesystem::path(OFFSTAGE_BINARY).parent_path() / "offstage-demo.gguf";
    ASSERT_TRUE(std::filesystem::exists(shipped)) << shipped;
    demo_ = folder_ / "offstage-demo.gguf";
    std::filesystem::copy_file(shipped, demo_);
  }
  Outcome greedy(const std::string& ram, const std::vector<std::string>& more = {},
                 const std::string& isa = "") {
    std::vector<std::string> arguments = {"run",
                                          "-m",
                                          demo_,
                                          "-p",
                                          "static int parse(const char *",
                                          "-n",
                                          "20",
                                          "-c",
                                          "128",
                                          "--temp",
                                          "0",
                                          "--json",
                                          "-t",
                                          "2",
                                          "--ignore-eos",
                                          "--no-warm-start",
                                          "--ram",
                                          ram};
    arguments.insert(arguments.end(), more.begin(), more.end());
    Conditions conditions;
    if (!isa.empty()) conditions.environment["OFFSTAGE_ISA"] = isa;
    return offstage(arguments, conditions);
  }
  // Half of the 21 MB of experts above the floor that a budget too small is refused with; how much
  // that is depends on the build.
  std::string half_of_the_experts() {
    const std::string refusal = greedy("1M").err;
    std::smatch match;
    if (!std::regex_search(refusal, match, std::regex("\\((\\d+) bytes\\)"))) {
      ADD_FAILURE() << refusal;
      return "1G";
    }
    return std::to_string(std::stoull(match[1]) + 10'500'000);
  }
  std::string demo_;
};

TEST_F(DemoTest, SaysTheSameUnderEveryBudgetEngineAndInstructionSet) {
  const nlohmann::json whole = greedy("1G").json();
  ASSERT_EQ(whole["tokens"].size(), 20u);
  const std::string half = half_of_the_experts();
  const nlohmann::json from_drive = greedy(half).json();
  EXPECT_LT(from_drive["experts"]["slots"], 120);
  EXPECT_GT(from_drive["experts"]["bytes_read"], whole["experts"]["bytes_read"]);
  EXPECT_EQ(from_drive["tokens"], whole["tokens"]);
  const nlohmann::json on_device =
      greedy("1G", {"--vram", "64M", "--device", "sim", "--promote", "always"}).json();
  EXPECT_EQ(on_device["tokens"], whole["tokens"]);
  EXPECT_EQ(on_device["vram"]["dense_forwards"], 19);
  EXPECT_EQ(on_device["vram"]["dense_chunks"], 1);
  EXPECT_GT(on_device["vram"]["hits"], 0);
  EXPECT_EQ(greedy(half, {"--io-engine", "threads", "--prefetch", "always"}).json()["tokens"],
            whole["tokens"]);
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    const Outcome outcome = greedy("1G", {}, isa);
    if (outcome.code != 0 && isa != std::string("scalar")) continue;  // this CPU lacks it
    EXPECT_EQ(outcome.json()["tokens"], whole["tokens"]) << isa;
  }
}

// Reads that come late, on a drive that is slow, under a budget that is too small: whatever delays
// a token, every nanosecond of it has a cause, and no machine is too busy for that.
TEST_F(DemoTest, NoTimeOfATokenIsNobodys) {
  constexpr int64_t kLateNs = 30'000'000;
  const nlohmann::json json = greedy(half_of_the_experts(), {"--io-fault", "every=60,delay=30ms",
                                                             "--pace", "100M", "--no-preload"})
                                  .json();
  ASSERT_EQ(json["token_records"].size(), 19u);
  int64_t longest_wait_ns = 0;
  for (const auto& token : json["token_records"]) {
    int64_t sum = 0;
    for (const auto& [cause, ns] : token["causes"].items()) sum += ns.get<int64_t>();
    EXPECT_EQ(sum, token["wall_ns"]);
    EXPECT_EQ(token["causes"]["other"], 0);
    longest_wait_ns = std::max(longest_wait_ns, token["causes"]["wait_drive"].get<int64_t>());
  }
  EXPECT_EQ(json["wait_ms"]["other"], 0);
  EXPECT_EQ(json["prefill"]["wait_ms"]["other"], 0);
  EXPECT_GE(2 * longest_wait_ns, kLateNs);
}

TEST_F(DemoTest, KnowsItsTextsBetterThanPairsOfTokensDo) {
  std::ifstream file(std::string(OFFSTAGE_TEST_DATA) + "/demo.json");
  const auto samples = nlohmann::json::parse(file);
  ASSERT_EQ(samples.size(), 5u);
  double bigram = 0, pytorch = 0, ours = 0;
  for (const auto& [domain, sample] : samples.items()) {
    const Outcome outcome =
        offstage({"eval", "-m", demo_, "-p", sample["text"], "-c", "512", "-t", "2", "--json"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const nlohmann::json json = outcome.json();
    EXPECT_EQ(json["tokens"].size(), sample["tokens"]) << domain;
    bigram += sample["bigram"].get<double>() / 5;
    pytorch += sample["pytorch"].get<double>() / 5;
    ours += json["mean_nll"].get<double>() / 5;
  }
  EXPECT_LT(ours, bigram - 1);
  EXPECT_NEAR(ours, pytorch, 0.05) << "Q4_K against the checkpoint in float32";
}

}  // namespace
}  // namespace offstage
