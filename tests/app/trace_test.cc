// Routing traces as a person makes and uses them: recorded, read, replayed.
#include <gmock/gmock.h>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Outcome;
using testing::SchemaCheck;

constexpr const char* kModel = "micro-qwen3moe-q4_k_m";
constexpr const char* kText = "The prompter calls eight of the actors; the line is 42.";

class TraceTest : public testing::ProgramTest {
 protected:
  Outcome record(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"trace", "record", "-m", model(kModel), "--ram", "256M"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return offstage(arguments);
  }
  nlohmann::json stats_of(const std::string& trace) {
    return offstage({"trace", "stats", trace, "--json"}).json();
  }
};

// Windows of the context less what is generated, each a sequence; all of it is in the trace.
TEST_F(TraceTest, RecordsWindowsAndWhatFollowsThem) {
  const std::string trace = folder_ / "text.trace";
  const Outcome outcome =
      record({"-p", kText, "-c", "32", "-n", "4", "-o", trace, "--gate-accuracy", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_THAT(SchemaCheck("trace_record.json").problems(json), IsEmpty());
  const auto prompt =
      offstage({"tokenize", "-m", model(kModel), "-p", kText, "--add-special", "--json"}).json();
  const size_t n_text = prompt["tokens"].size(), n_windows = (n_text + 27) / 28;
  ASSERT_GT(n_windows, 1u);
  EXPECT_EQ(json["tokens"], n_text + 4 * n_windows);
  const auto stats = stats_of(trace);
  EXPECT_EQ(stats["tokens"], json["tokens"]);
  EXPECT_EQ(stats["sequences"], n_windows);
  EXPECT_EQ(stats["layers"], 3);
  ASSERT_EQ(json["gate_accuracy"].size(), 2u);
  EXPECT_EQ(json["gate_accuracy"][0]["per_layer"].size(), 2u);
  EXPECT_EQ(json["gate_accuracy"][1]["per_layer"].size(), 1u);
  EXPECT_GT(json["gate_accuracy"][0]["recall"], 0.25);
}

TEST_F(TraceTest, RecordSaysWhatItCantDo) {
  const std::string trace = folder_ / "text.trace";
  EXPECT_EQ(record({"-o", trace}).code, 2);
  EXPECT_EQ(record({"-p", kText}).code, 2);
  const Outcome full = record({"-p", kText, "-c", "8", "-n", "8", "-o", trace});
  EXPECT_EQ(full.code, 2);
  EXPECT_THAT(full.err, HasSubstr("-n: 8 tokens"));
  EXPECT_FALSE(std::filesystem::exists(trace));
}

TEST_F(TraceTest, ARunIsRecorded) {
  const std::string trace = folder_ / "run.trace";
  const Outcome outcome =
      run(kModel, {"-p", kText, "-n", "6", "--json", "--record-routing", trace});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  // The last token is sampled and goes nowhere.
  EXPECT_EQ(stats_of(trace)["tokens"], outcome.json()["prompt_tokens"].get<size_t>() + 5);
}

}  // namespace
}  // namespace offstage
