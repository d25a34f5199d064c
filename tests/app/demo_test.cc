// The model that ships: it is there, it learned its texts, and what it says doesn't depend on how it
// was run. `scripts/demo/measure.py --sample` wrote demo.json: the beginning of each validation text
// with the losses of the checkpoint and of a bigram model.
#include <gmock/gmock.h>

#include <fstream>

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
  // 20 greedy tokens of a C text, and how many experts were read for them.
  nlohmann::json greedy(std::vector<std::string> more, const std::string& isa = "") {
    std::vector<std::string> arguments = {
        "run",    "-m", demo_, "-p",           "static int parse(const char *", "-n",
        "20",     "-c", "128", "--temp",       "0",
        "--json", "-t", "2",   "--ignore-eos", "--no-warm-start"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    Conditions conditions;
    if (!isa.empty()) conditions.environment["OFFSTAGE_ISA"] = isa;
    const Outcome outcome = offstage(arguments, conditions);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome.json();
  }
  std::string demo_;
};

TEST_F(DemoTest, SaysTheSameUnderEveryBudgetEngineAndInstructionSet) {
  const nlohmann::json whole = greedy({"--ram", "1G"});
  const nlohmann::json half = greedy({"--ram", "48M"});
  ASSERT_EQ(whole["tokens"].size(), 20u);
  EXPECT_LT(half["experts"]["slots"], whole["experts"]["slots"]);
  EXPECT_EQ(half["tokens"], whole["tokens"]);
  EXPECT_EQ(greedy({"--ram", "48M", "--io-engine", "threads", "--prefetch", "always"})["tokens"],
            whole["tokens"]);
  for (const char* isa : {"scalar", "avx2"})
    EXPECT_EQ(greedy({"--ram", "1G"}, isa)["tokens"], whole["tokens"]) << isa;
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
  EXPECT_LT(ours, bigram - 0.4);
  EXPECT_NEAR(ours, pytorch, 0.05) << "Q4_K against the checkpoint in float32";
}

}  // namespace
}  // namespace offstage
