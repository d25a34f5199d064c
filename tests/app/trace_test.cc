// Routing traces as a person makes and uses them: recorded, read, replayed.
#include <gmock/gmock.h>

#include <regex>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Lt;
using testing::Outcome;
using testing::SchemaCheck;

constexpr const char* kModel = "micro-qwen3moe-q4_k_m";
constexpr const char* kText = "The prompter calls eight of the actors; the line is 42.";

class TraceTest : public testing::ProgramTest {
 protected:
  Outcome record(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"trace", "record", "-m", model(kModel), "--ram", "512M"};
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

// A run under a trace reads what `trace replay` says that LRU misses with the run's own slots.
TEST_F(TraceTest, ARunUnderATraceReadsWhatItsReplayMisses) {
  const std::string trace = folder_ / "given.trace";
  ASSERT_EQ(record({"-p", kText, "-o", trace}).code, 0);
  const std::string tokens = std::to_string(stats_of(trace)["tokens"].get<int>());
  const auto replayed_run = [&](const std::string& ram) {
    return offstage({"run",
                     "-m",
                     model(kModel),
                     "-c",
                     "128",
                     "-t",
                     "2",
                     "--ram",
                     ram,
                     "-p",
                     "a",
                     "-n",
                     tokens,
                     "--ignore-eos",
                     "--cache-policy",
                     "lru",
                     "--prefetch",
                     "off",
                     "--replay-routing",
                     trace,
                     "--pace",
                     "1G",
                     "--json"});
  };
  // A budget of half of the experts or so.
  const Outcome refused = replayed_run("1M");
  std::smatch match;
  ASSERT_TRUE(std::regex_search(refused.err, match, std::regex("\\(([0-9]+) bytes\\)")));
  const Outcome outcome = replayed_run(std::to_string(std::stoull(match[1]) + (1400u << 10)));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_THAT(SchemaCheck("run.json").problems(json), IsEmpty());
  ASSERT_EQ(json["prompt_tokens"], 1);
  EXPECT_EQ(json["pace_bytes_per_s"], 1 << 30);
  EXPECT_THAT(json["io_engine"].get<std::string>(), HasSubstr("paced("));
  EXPECT_EQ(json["routing"]["source"], "trace");
  EXPECT_EQ(json["routing"]["restarts"], 0);
  const std::vector<int> slots = json["experts"]["kept_per_layer"];
  ASSERT_THAT(slots, Each(AllOf(Ge(2), Lt(8))));
  const std::string kept = fmt::format("{}", fmt::join(slots, ","));
  const auto replayed = offstage({"trace", "replay", trace, "--policy", "lru", "--capacity", kept,
                                  "-m", model(kModel), "--json"})
                            .json();
  EXPECT_EQ(replayed["bytes_missed"], json["prefill"]["bytes_read"].get<uint64_t>() +
                                          json["experts"]["bytes_read"].get<uint64_t>());
  EXPECT_EQ(replayed["hits"], json["prefill"]["ram_hits"].get<uint64_t>() +
                                  json["experts"]["ram_hits"].get<uint64_t>());
  EXPECT_GT(replayed["hits"], 0);
}

TEST_F(TraceTest, AMeasuringRunSaysWhatItIs) {
  const std::string trace = folder_ / "given.trace";
  ASSERT_EQ(record({"-p", "a few words", "-o", trace, "--no-warm-start"}).code, 0);
  const Outcome outcome = run(kModel, {"-p", kText, "-n", "4", "--replay-routing", trace,
                                       "--oracle-prefetch", "0.9", "--pace", "500M"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* said : {"note: replay_routing: ", "starts again from its beginning",
                           "note: oracle_prefetch: the prefetcher is told 90 %",
                           "note: pace: the model's drive answers as if it gave 524288000 bytes",
                           "routing  ", "pace     500.00 MiB/s per drive"})
    EXPECT_THAT(outcome.err, HasSubstr(said));
  EXPECT_FALSE(std::filesystem::exists(model(kModel) + ".offstage-usage"));
  EXPECT_EQ(run(kModel, {"-p", kText, "--oracle-prefetch", "0.9"}).code, 2);
  EXPECT_EQ(run(kModel, {"-p", kText, "--replay-routing", trace, "--oracle-prefetch", "2"}).code,
            2);
  EXPECT_EQ(run(kModel, {"-p", kText, "--pace", "fast"}).code, 2);
  EXPECT_EQ(run(kModel, {"-p", kText, "--replay-routing", "absent"}).code, 1);
}

}  // namespace
}  // namespace offstage
