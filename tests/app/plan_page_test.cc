// plan --report: one file, whole and by itself, whose figures are the plan's.
#include <gmock/gmock.h>

#include <fstream>
#include <iterator>

#include "tests/app/json_schema.h"
#include "tests/app/machine_json.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::Outcome;
using testing::SchemaCheck;

class PlanPageTest : public testing::ProgramTest {
 protected:
  PlanPageTest() { std::ofstream(profile_) << testing::kMachine; }
  std::string page_of(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"plan", "--report", path_});
    const Outcome outcome = offstage(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static nlohmann::json data_in(const std::string& page) {
    const std::string begin = R"(<script type="application/json" id="data">)";
    const size_t from = page.find(begin) + begin.size();
    const auto json = nlohmann::json::parse(page.substr(from, page.find("</script>", from) - from),
                                            nullptr, false);
    EXPECT_FALSE(json.is_discarded());
    EXPECT_EQ(json["schema"], "offstage.plan_report/1");
    EXPECT_THAT(SchemaCheck("plan.json").problems(json["plan"]), IsEmpty());
    return json;
  }
  const std::string path_ = folder_ / "plan.html", profile_ = folder_ / "profile.json";
};

TEST_F(PlanPageTest, CurvesGoFromTheLeastThatRunsToAll) {
  const auto json = data_in(page_of({"-m", model("micro-qwen3moe-q4_k_m"), "--profile", profile_,
                                     "-n", "16", "-p", "8", "--add-drive", "1"}));
  const auto& plan = json["plan"];
  const auto& cells = plan["cells"];
  ASSERT_GT(cells.size(), 6u);
  EXPECT_NE(cells[0]["fit"], "below_floor");
  EXPECT_LT(cells[0]["kept_share"], 1);
  EXPECT_EQ(cells.back()["fit"], "resident");
  for (const auto& cell : cells) EXPECT_GT(cell["decode_tok_s"], 0) << cell["ram_bytes"];
  const auto& points = json["cache_curve"]["points"];
  ASSERT_GT(points.size(), 2u);
  EXPECT_EQ(points.back()["kept"], json["cache_curve"]["experts"]);
  for (size_t i = 1; i < points.size(); ++i)
    EXPECT_GE(points[i]["optimum"].get<double>(), points[i - 1]["optimum"].get<double>());
  for (const auto& point : points)
    EXPECT_LE(point["policy"].get<double>(), point["optimum"].get<double>() + 1e-12);
}

TEST_F(PlanPageTest, NeedsNoOtherFileAndNoMachine) {
  const std::string page = page_of({"--shape", "dense-7b", "--ram", "8G"});
  EXPECT_TRUE(data_in(page)["plan"]["machine"].is_null());
  EXPECT_FALSE(data_in(page).contains("cache_curve"));
  for (const char* part :
       {"<!doctype html>", "default-src 'none'", "new Dygraph(", "Offstage plan"})
    EXPECT_THAT(page, HasSubstr(part));
  for (const char* loads :
       {"<script src", "<link", "<img", "@import", "url(", "fetch(", "@scripts@"})
    EXPECT_THAT(page, Not(HasSubstr(loads)));
}

// A machine's name is text, whatever it holds.
TEST_F(PlanPageTest, TextsAreOnlyText) {
  std::string evil = testing::kMachine;
  evil.replace(evil.find("two cores"), 9, "</script><script>alert(1)</script>");
  std::ofstream(profile_) << evil;
  const std::string page = page_of(
      {"--shape", "dense-7b", "--ram", "8G,16G", "--profile", profile_, "-n", "8", "-p", "4"});
  EXPECT_THAT(page, Not(HasSubstr("<script>alert(1)")));
  EXPECT_EQ(data_in(page)["plan"]["machine"], "</script><script>alert(1)</script>");
}

TEST_F(PlanPageTest, AWishHasItsCurvesToo) {
  const auto json = data_in(page_of({"--shape", "olmoe-1b-7b", "--ram", "2G,8G", "--profile",
                                     profile_, "-n", "8", "-p", "4", "--cold", "--want", "1"}));
  EXPECT_EQ(json["plan"]["answers"].size(), 4u);
  EXPECT_EQ(json["plan"]["cells"].size(), 8u);
}

TEST_F(PlanPageTest, WhatCantBeWrittenIsAnError) {
  const std::string nowhere = folder_ / "no such folder/plan.html";
  const Outcome outcome = offstage({"plan", "--shape", "dense-7b", "--report", nowhere});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr(nowhere));
}

}  // namespace
}  // namespace offstage
