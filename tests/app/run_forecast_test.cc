// Every run is held against its forecast, and `plan` remembers how far off it was.
#include <gmock/gmock.h>

#include <fstream>

#include "io/drive_profile.h"
#include "io/extent.h"
#include "tests/app/json_schema.h"
#include "tests/app/machine_json.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::Outcome;
using testing::SchemaCheck;

class RunForecastTest : public testing::ProgramTest {
 protected:
  void keep(const std::string& profile) {
    std::filesystem::create_directories(folder_ / "cache/offstage");
    std::ofstream(folder_ / "cache/offstage/machine.json") << profile;
  }
  std::vector<std::string> kept() const {
    std::ifstream file(folder_ / "cache/offstage/forecasts.jsonl");
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
};

TEST_F(RunForecastTest, ARunIsForecastAsItWas) {
  keep(testing::kMachine);
  const Outcome outcome = run(
      "qwen3moe-s1", {"-p", "The line", "-n", "21", "--no-preload", "--prefetch", "off", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_THAT(SchemaCheck("run.json").problems(json), IsEmpty());
  ASSERT_TRUE(json.contains("forecast")) << outcome.err;
  const auto& forecast = json["forecast"];
  EXPECT_EQ(forecast["tokens"], 20);
  EXPECT_EQ(forecast["prompt_tokens"], json["prompt_tokens"]);
  EXPECT_GT(forecast["decode_tok_s"], 0);
  // What was measured is the run's own, and what was called too: the cache in the forecast holds
  // what the run's held.
  EXPECT_NEAR(forecast["measured"]["decode_tok_s"], json["decode_tok_s"], 1e-6);
  EXPECT_NEAR(forecast["measured"]["prefill_tok_s"], json["prefill_tok_s"], 1e-6);
  EXPECT_EQ(forecast["measured"]["token_ms"]["p99"], json["token_ms"]["p99"]);
  EXPECT_EQ(forecast["error"]["hit_rate"], 0);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("\nforecast "), HasSubstr(" over 20 tokens: ")));
  EXPECT_EQ(kept().size(), 1u);
  EXPECT_LE(json["peak_rss_bytes"], json["ram_budget_bytes"]);
}

// What a start found out of the file's drive and kept is how the next run will ask it.
TEST_F(RunForecastTest, PlanKnowsHowARunWouldAsk) {
  keep(testing::kMachine);
  const std::string file = folder_ / "asked.gguf", machine = folder_ / "another.json";
  std::filesystem::copy_file(model("qwen3moe-s1"), file);
  std::ofstream(machine) << testing::kMachine;
  const auto floor =
      offstage({"plan", "-m", file, "-c", "256", "-p", "4", "--json"}).json()["floor_ram_bytes"];
  const auto speed = [&](std::vector<std::string> more) {
    std::vector<std::string> asked = {"plan",  "-m", file, "-c",     "256",   "-n",
                                      "50",    "-p", "4",  "--cold", "--ram", to_string(floor),
                                      "--json"};
    asked.insert(asked.end(), more.begin(), more.end());
    const Outcome outcome = offstage(asked);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const auto cell = outcome.json()["cells"][0];
    EXPECT_EQ(cell["fit"], "from_drive");
    return cell["decode_tok_s"].get<double>();
  };
  const double before = speed({}), paced = speed({"--pace", "100M"});
  const auto id = drive_id(file);
  ASSERT_TRUE(id);
  ASSERT_TRUE(write_profile(file + ".offstage-drive",
                            {*id, "uring direct", utc_date(), kSectorBytes, 1, 1}));
  EXPECT_LT(speed({}), .9 * before);
  EXPECT_EQ(speed({"--profile", machine}), before);
  EXPECT_EQ(speed({"--pace", "100M"}), paced);
}

TEST_F(RunForecastTest, PlanShowsWhatWasKept) {
  keep(testing::kMachine);
  ASSERT_EQ(run("qwen3moe-s1", {"-p", "The line", "-n", "9"}).code, 0);
  const Outcome bench = offstage({"bench", "-m", model("qwen3moe-s1"), "-t", "2", "-p", "4", "-n",
                                  "6", "-r", "2", "--pace", "100M", "-o", "json"});
  ASSERT_EQ(bench.code, 0) << bench.err;
  const auto rows = bench.json();
  for (const auto& row : rows)
    EXPECT_THAT(SchemaCheck("bench.json").problems(row), IsEmpty()) << row["test"];
  EXPECT_EQ(rows[0]["forecast"]["tokens"], 0);
  EXPECT_TRUE(rows[0]["forecast"]["error"]["decode_tok_s"].is_null());
  EXPECT_EQ(rows[0]["forecast"]["prompt_tokens"], 8);
  EXPECT_EQ(rows[1]["forecast"]["tokens"], 12);  // the warm-up's aren't compared
  const Outcome table = offstage({"plan", "--shape", "dense-7b", "--ram", "8G"});
  EXPECT_THAT(table.out, AllOf(HasSubstr("past runs on this machine"), HasSubstr("bench tg6"),
                               HasSubstr("median error of 3 runs")));
  const auto plan = offstage({"plan", "--shape", "dense-7b", "--ram", "8G", "--json"}).json();
  EXPECT_THAT(SchemaCheck("plan.json").problems(plan), IsEmpty());
  ASSERT_EQ(plan["past_errors"].size(), 3u);
  EXPECT_EQ(plan["past_errors"][0]["command"], "run");
  EXPECT_EQ(plan["past_errors"][2]["pace_bytes_per_s"], 100u << 20);
  EXPECT_EQ(plan["past_errors"][2]["error"], rows[1]["forecast"]["error"]);
}

TEST_F(RunForecastTest, NoProfileOneLine) {
  const Outcome outcome = run("qwen3moe-s1", {"-p", "The line", "-n", "3", "--json"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err, HasSubstr("forecast none: `offstage probe`"));
  EXPECT_FALSE(outcome.json().contains("forecast"));
  EXPECT_THAT(kept(), IsEmpty());
}

TEST_F(RunForecastTest, IsNotMadeWhereNobodyWantsIt) {
  keep(testing::kMachine);
  const Outcome outcome = run("qwen3moe-s1", {"-p", "a", "-n", "3", "--json", "--no-forecast"});
  EXPECT_THAT(outcome.err, Not(HasSubstr("forecast")));
  EXPECT_FALSE(outcome.json().contains("forecast"));
  EXPECT_THAT(kept(), IsEmpty());
}

// A run is never worse off for it.
TEST_F(RunForecastTest, WhatFailsIsANotice) {
  keep("{}");
  const Outcome damaged = run("qwen3moe-s1", {"-p", "a", "-n", "3"});
  EXPECT_EQ(damaged.code, 0);
  EXPECT_THAT(damaged.err, AllOf(HasSubstr("note: forecast: "), HasSubstr("machine.json")));
  keep(testing::kMachine);
  std::filesystem::create_directories(folder_ / "cache/offstage/forecasts.jsonl");  // no file
  const Outcome unkept = run("qwen3moe-s1", {"-p", "a", "-n", "3", "--json"});
  EXPECT_EQ(unkept.code, 0);
  EXPECT_TRUE(unkept.json().contains("forecast"));
  EXPECT_THAT(unkept.err, AllOf(HasSubstr("note: forecast: "), HasSubstr("forecasts.jsonl")));
}

TEST_F(RunForecastTest, AChatIsOneRun) {
  keep(testing::kMachine);
  testing::Conditions typed;
  typed.input = "The line\nThe next\n";
  const Outcome outcome = run("qwen3moe-s1", {"-n", "5", "--chat-template", "chatml"}, typed);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  ASSERT_EQ(kept().size(), 1u);
  EXPECT_THAT(kept()[0], AllOf(HasSubstr(R"("command":"chat")"), HasSubstr(R"("tokens":8)")));
}

}  // namespace
}  // namespace offstage
