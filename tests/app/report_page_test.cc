// --report: one file, whole and by itself, that says what was measured, whatever the run's texts
// hold. How it looks is for a browser (scripts/check_report.sh).
#include <gmock/gmock.h>

#include <fstream>
#include <iterator>
#include <numeric>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::Outcome;
using testing::SchemaCheck;

size_t count_of(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

class ReportPageTest : public testing::ProgramTest {
 protected:
  std::string page_of(const Outcome& outcome) {
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // What the page's script parses.
  static nlohmann::json data_in(const std::string& page) {
    const std::string begin = R"(<script type="application/json" id="data">)";
    EXPECT_EQ(count_of(page, begin), 1u);
    const size_t from = page.find(begin) + begin.size();
    const auto json = nlohmann::json::parse(page.substr(from, page.find("</script>", from) - from),
                                            nullptr, false);
    EXPECT_FALSE(json.is_discarded());
    EXPECT_THAT(SchemaCheck("report.json").problems(json), IsEmpty());
    return json;
  }
  static void expect_whole(const nlohmann::json& run) {
    const auto& tokens = run["tokens"];
    const size_t n = tokens["wall_ns"].size();
    for (size_t i = 0; i < n; ++i) {
      int64_t sum = 0;
      for (const auto& [name, column] : tokens["causes"].items()) sum += column[i].get<int64_t>();
      EXPECT_EQ(sum, tokens["wall_ns"][i]) << i;
    }
    for (const char* column : {"repetition", "ram_hits", "drive_reads", "queue_depth", "cpu_ns"})
      EXPECT_EQ(tokens[column].size(), n) << column;
    EXPECT_EQ(tokens["drive_bytes"].size(), run["drives"].size());
    for (const auto& column : tokens["drive_bytes"]) EXPECT_EQ(column.size(), n);
    EXPECT_EQ(run["causes"].size(), tokens["causes"].size());
  }

  const std::string path_ = folder_ / "report.html";
};

uint64_t sum_of(const nlohmann::json& column) {
  return std::accumulate(
      column.begin(), column.end(), uint64_t{0},
      [](uint64_t sum, const nlohmann::json& value) { return sum + value.get<uint64_t>(); });
}

TEST_F(ReportPageTest, ARunIsInItByTokenLayerAndSize) {
  const std::string page = page_of(run(
      "qwen3moe-s1", {"-p", "The line", "-n", "41", "--no-preload", "--report", path_, "--json"}));
  const auto report = data_in(page);
  ASSERT_EQ(report["runs"].size(), 1u);
  const auto& run = report["runs"][0];
  expect_whole(run);
  EXPECT_EQ(run["unit"], "token");
  EXPECT_EQ(run["tokens"]["wall_ns"].size(), 40u);  // the last token's forward isn't needed
  uint64_t calls = 0, misses = 0;
  for (const auto& layer : run["layers"]) {
    EXPECT_EQ(layer["visits"], 40);
    EXPECT_LE(layer["wait_ns"], layer["wall_ns"]);
    calls += layer["calls"].get<uint64_t>();
    misses += layer["misses"].get<uint64_t>();
  }
  EXPECT_EQ(calls, sum_of(run["tokens"]["ram_hits"]) + sum_of(run["tokens"]["drive_reads"]));
  EXPECT_EQ(misses, sum_of(run["tokens"]["drive_reads"]));
  const auto& curve = run["cache_curve"];
  int64_t asleep_ns = 0;
  for (const auto& wait : run["waits"])
    for (const char* part : {"queued_ns", "service_ns", "woken_ns"})
      asleep_ns += wait[part].get<int64_t>();
  EXPECT_LE(asleep_ns, static_cast<int64_t>(sum_of(run["tokens"]["causes"]["wait_drive"])));
  EXPECT_GT(asleep_ns, 0);
  EXPECT_EQ(curve["tokens"], 40);
  ASSERT_GT(curve["points"].size(), 1u);
  EXPECT_EQ(curve["points"].back()["kept"], curve["experts"]);
  for (const auto& point : curve["points"])
    EXPECT_LE(point["policy"].get<double>(), point["optimum"].get<double>() + 1e-12);
}

TEST_F(ReportPageTest, ABenchIsInItTestByTest) {
  const auto report =
      data_in(page_of(offstage({"bench", "-m", model("qwen3moe-s1"), "-t", "2", "-p", "4", "-n",
                                "6", "-r", "2", "--no-warmup", "--report", path_})));
  ASSERT_EQ(report["runs"].size(), 2u);
  const auto &prompts = report["runs"][0], &tokens = report["runs"][1];
  for (const auto& run : report["runs"]) expect_whole(run);
  EXPECT_THAT(prompts["name"].get<std::string>(), HasSubstr("pp4"));
  EXPECT_EQ(prompts["unit"], "prompt");
  EXPECT_EQ(prompts["tokens"]["repetition"], nlohmann::json({0, 1}));
  EXPECT_EQ(tokens["unit"], "token");
  EXPECT_EQ(tokens["repetitions"], 2);
  EXPECT_EQ(tokens["tokens"]["repetition"], nlohmann::json({0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1}));
}

// Nothing is loaded from anywhere, and a browser that tried would be refused.
TEST_F(ReportPageTest, NeedsNoOtherFile) {
  const std::string page = page_of(run("qwen3moe-s1", {"-p", "a", "-n", "3", "--report", path_}));
  EXPECT_THAT(page,
              AllOf(HasSubstr("<!doctype html>"), HasSubstr("default-src 'none'"),
                    HasSubstr("MIT-licenced"), HasSubstr("Vanderkam"), HasSubstr("new Dygraph("),
                    HasSubstr("prefers-color-scheme: dark"), HasSubstr("@media print")));
  for (const char* loads :
       {"<script src", "<link", "<img", "<iframe", "@import", "url(", "sourceMappingURL", "fetch("})
    EXPECT_THAT(page, Not(HasSubstr(loads)));
  for (const char* mark : {"@data@", "@style@", "@library@", "@scripts@", "@library_licence@"})
    EXPECT_THAT(page, Not(HasSubstr(mark)));
  EXPECT_EQ(page.substr(page.size() - 8), "</html>\n");
}

// A prompt, like every text of the run, is data: it can't end its script or begin another.
TEST_F(ReportPageTest, TextsOfTheRunAreOnlyText) {
  const std::string plain = page_of(run("qwen3moe-s1", {"-p", "a", "-n", "3", "--report", path_}));
  const std::string evil =
      "</script><script>alert(1)</script><!-- <script> & &amp; \"'\\ \xe2\x80\xa8 @style@";
  const std::string page = page_of(run("qwen3moe-s1", {"-p", evil, "-n", "3", "--report", path_}));
  for (const char* markup : {"<script", "</script", "<!--", "alert(1)"})
    EXPECT_EQ(count_of(page, markup), count_of(plain, markup) + (*markup == 'a' ? 1 : 0)) << markup;
  const std::vector<std::string> words = data_in(page)["command"];
  EXPECT_THAT(words, ::testing::Contains(evil));
}

TEST_F(ReportPageTest, ADenseModelHasNoTiersToShow) {
  const auto report =
      data_in(page_of(run("qwen3-s1", {"-p", "The line", "-n", "5", "--report", path_})));
  const auto& run = report["runs"][0];
  EXPECT_FALSE(run.contains("cache_curve"));
  for (const auto& layer : run["layers"]) EXPECT_EQ(layer["calls"], 0);
  EXPECT_THAT(run["tokens"]["ram_hits"], Each(0));
}

TEST_F(ReportPageTest, WhatCantBeWrittenIsAnError) {
  const std::string nowhere = folder_ / "no such folder/report.html";
  const Outcome outcome = run("qwen3moe-s1", {"-p", "a", "-n", "3", "--report", nowhere});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr(nowhere));
  EXPECT_EQ(run("qwen3moe-s1", {"--report", path_}).code, 2);  // a chat has many runs
}

}  // namespace
}  // namespace offstage
