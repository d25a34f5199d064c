// What a model needs and what it would do, as a person asks.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <fstream>

#include "tests/app/json_schema.h"
#include "tests/app/machine_json.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Outcome;
using testing::SchemaCheck;

constexpr const char* kModel = "micro-qwen3moe-q4_k_m";
class PlanTest : public testing::ProgramTest {
 protected:
  std::string profile() {
    const std::string path = folder_ / "machine.json";
    std::ofstream(path) << testing::kMachine;
    return path;
  }
};

TEST_F(PlanTest, AShapeNeedsWhatItsNameDoesNotSay) {
  const Outcome outcome =
      offstage({"plan", "--shape", "mixtral-8x7b", "--ram", "1G,5G,64G", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_THAT(SchemaCheck("plan.json").problems(json), IsEmpty());
  EXPECT_EQ(json["total_params"], 46'702'792'704);
  EXPECT_EQ(json["active_vocabulary"], "embedding_and_output");
  EXPECT_EQ(json["nominal"]["total_b"], 56);
  EXPECT_EQ(json["kv_bytes_per_token"], 131072);
  EXPECT_GT(json["weights_bytes"]["f16"], 93'000'000'000);
  ASSERT_EQ(json["cells"].size(), 3u);
  EXPECT_EQ(json["cells"][0]["fit"], "below_floor");
  EXPECT_EQ(json["cells"][1]["fit"], "from_drive");
  EXPECT_EQ(json["cells"][2]["fit"], "resident");
  EXPECT_TRUE(json["cells"][2]["decode_tok_s"].is_null());
  const Outcome table = offstage({"plan", "--shape", "mixtral-8x7b"});
  EXPECT_THAT(table.out, HasSubstr("8 x 7 B = 56 B"));
  EXPECT_THAT(table.out, HasSubstr("46.70 B total"));
}

TEST_F(PlanTest, ListsItsShapes) {
  const Outcome table = offstage({"plan", "--shapes"});
  ASSERT_EQ(table.code, 0) << table.err;
  for (const char* name : {"mixtral-8x7b", "moe-16x8b", "dense-70b", "gpt-oss-120b", "kimi-k2"})
    EXPECT_THAT(table.out, HasSubstr(name));
  EXPECT_GT(offstage({"plan", "--shapes", "--json"}).json()["shapes"].size(), 14u);
}

// A file's own sizes, and what `inspect` says of it.
TEST_F(PlanTest, AFileIsPlannedAsItIs) {
  const Outcome outcome = offstage({"plan", "-m", model(kModel), "--ram", "64M,1G", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_THAT(SchemaCheck("plan.json").problems(json), IsEmpty());
  const auto card = offstage({"inspect", "-m", model(kModel), "--json"}).json();
  for (const char* same : {"total_params", "active_params", "experts_bytes", "dense_bytes"})
    EXPECT_EQ(json[same], card[same]) << same;
  EXPECT_EQ(json["quant"], "file");
  EXPECT_TRUE(json["weights_bytes"].contains("file"));
}

// The planner's floor is the one that a run names when it refuses, at every start. What the process
// itself uses is known beforehand; with sanitizers it is more than that.
TEST_F(PlanTest, ItsFloorIsThatOfARun) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's memory is the process's";
#endif
  const std::string prompt(300, '7');  // of as many tokens as the least chunk at any rate
  const Outcome refused = offstage(
      {"run", "-m", model(kModel), "-c", "512", "-t", "1", "--ram", "1M", "-p", prompt, "-n", "1"});
  ASSERT_EQ(refused.code, 1);
  const std::string mark = "is below the floor of ";
  ASSERT_THAT(refused.err, HasSubstr(mark));
  const size_t at = refused.err.find('(', refused.err.find(mark));
  const double floor = std::stod(refused.err.substr(at + 1));
  const Outcome planned =
      offstage({"plan", "-m", model(kModel), "-c", "512", "--ram", "1G", "--json"});
  ASSERT_EQ(planned.code, 0) << planned.err;
  EXPECT_EQ(planned.json()["floor_ram_bytes"].get<double>(), floor) << refused.err;
}

// A prompt's rows need scratch, which is slots; a run knows how long its prompt is.
TEST_F(PlanTest, AShortPromptLeavesSlots) {
  const auto kept = [&](const std::string& prompt) {
    const Outcome outcome =
        offstage({"plan", "--shape", "qwen3-30b-a3b", "--ram", "6G", "-p", prompt, "-n", "1",
                  "--cold", "--profile", profile(), "--json"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome.json()["cells"][0]["kept_share"].get<double>();
  };
  EXPECT_GT(kept("4"), kept("512"));
  const std::string text = "a stage, a lamp, a door, a stage, a lamp, a door";
  const size_t n_tokens =
      offstage({"tokenize", "-m", model(kModel), "-p", text, "--add-special", "--json"})
          .json()["tokens"]
          .size();
  const std::string file = folder_ / "prompt.txt";
  std::ofstream(file) << text;
  for (const auto& [flag, value] : {std::pair{"-p", text}, std::pair{"-f", file}}) {
    const Outcome run = offstage(
        {"run", "-m", model(kModel), "-c", "2048", "-t", "1", flag, value, "-n", "1", "--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    EXPECT_THAT(run.err, HasSubstr(fmt::format("chunks of {} tokens", n_tokens))) << flag;
  }
}

TEST_F(PlanTest, AForecastIsOfAMachine) {
  const std::vector<std::string> asked = {"plan", "-m", model(kModel), "--ram", "512M",
                                          "-n",   "20", "-p",          "8",     "--json"};
  const Outcome without = offstage(asked);
  ASSERT_EQ(without.code, 0) << without.err;
  EXPECT_THAT(without.err, HasSubstr("offstage probe"));
  EXPECT_TRUE(without.json()["cells"][0]["decode_tok_s"].is_null());
  std::vector<std::string> with = asked;
  with.insert(with.end(), {"--profile", profile(), "--add-drive", "1"});
  const Outcome outcome = offstage(with);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(SchemaCheck("plan.json").problems(outcome.json()), IsEmpty());
  EXPECT_THAT(outcome.err, HasSubstr("gpt-oss-20b"));  // whose habits the calls are drawn with
  const auto cells = outcome.json()["cells"];
  ASSERT_EQ(cells.size(), 2u);
  EXPECT_EQ(cells[1]["drives"], 2);
  EXPECT_GT(cells[0]["decode_tok_s"], 0);
  EXPECT_EQ(cells[0]["hit_rate"]["ram"], 1);
  EXPECT_GE(cells[0]["token_ms"]["p99"], cells[0]["token_ms"]["p50"]);
  EXPECT_EQ(offstage(with).out, outcome.out);  // the same question, the same answer
}

TEST_F(PlanTest, ARecordingIsForecastAsItIs) {
  const std::string trace = folder_ / "text.trace";
  ASSERT_EQ(offstage({"trace", "record", "-m", model(kModel), "--ram", "512M", "-p",
                      "The prompter calls eight of the actors; the line is 42.", "-c", "32", "-n",
                      "4", "-o", trace})
                .code,
            0);
  const Outcome outcome =
      offstage({"plan", "-m", model(kModel), "--ram", "512M", "--profile", profile(), "-n", "9",
                "-p", "4", "--cold", "--routing", trace, "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["routing"], trace);
}

TEST_F(PlanTest, AWishIsAnsweredByAMachine) {
  const std::string prices = folder_ / "prices.json";
  std::ofstream(prices) << R"({"ram_per_gib": 3, "drive": 100, "currency": "EUR"})";
  const Outcome outcome = offstage({"plan", "--shape", "olmoe-1b-7b", "--ram", "2G,8G", "--profile",
                                    profile(), "-n", "8", "-p", "4", "--cold", "--want", "1 tok/s",
                                    "--p99", "10s", "--prices", prices, "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto answers = outcome.json()["answers"];
  ASSERT_EQ(answers.size(), 4u);  // one to four drives
  EXPECT_EQ(answers[0]["is_enough"], true);
  EXPECT_EQ(answers[0]["price"], 3.0 * 2 + 100);
  EXPECT_EQ(
      offstage({"plan", "--shape", "olmoe-1b-7b", "--want", "fast", "--profile", profile()}).code,
      2);
  EXPECT_EQ(offstage({"plan", "--shape", "olmoe-1b-7b", "--want", "1 tok/s"}).code, 1);
}

TEST_F(PlanTest, AProbeNamesWhatItCannotRead) {
  const std::string small = folder_ / "small";
  std::ofstream(small) << "nothing";
  const Outcome missing = offstage({"probe", "--on", folder_ / "nothing"});
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.err, HasSubstr("nothing"));
  const Outcome short_one = offstage({"probe", "--on", small});
  EXPECT_EQ(short_one.code, 2);
  EXPECT_THAT(short_one.err, HasSubstr("16.00 MiB"));
}

TEST_F(PlanTest, SaysWhatItCantDo) {
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "-m", model(kModel)}).code, 2);
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "--quant", "q9"}).code, 2);
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "--quant", "mxfp4"}).code, 2);
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "--ram", "much"}).code, 2);
  const Outcome unknown = offstage({"plan", "--shape", "gpt-5"});
  EXPECT_EQ(unknown.code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("mixtral-8x7b"));
  const std::string config = folder_ / "config.json";
  std::ofstream(config) << R"({"model_type": "mamba"})";
  const Outcome other = offstage({"plan", "--hf-config", config});
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.err, HasSubstr("mamba"));
}

}  // namespace
}  // namespace offstage
