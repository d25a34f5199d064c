// offstage bench and --verbose-tokens: what they publish is as documented, whole and comparable.
#include <gmock/gmock.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Outcome;
using testing::SchemaCheck;

int64_t sum_of(const nlohmann::json& parts) {
  int64_t sum = 0;
  for (const auto& [name, part] : parts.items()) sum += part.get<int64_t>();
  return sum;
}

std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields(1);
  for (const char c : line) {
    if (c == ',') fields.emplace_back();
    if (c != ',') fields.back() += c;
  }
  return fields;
}

class BenchTest : public testing::ProgramTest {
 protected:
  Outcome bench(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"bench", "-m", model("qwen3moe-s1"), "-t", "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return offstage(arguments);
  }
  // Every layer lies in the prompt's or a token's slice.
  static void expect_slices_in_their_tokens(const nlohmann::json& timeline) {
    ASSERT_FALSE(timeline.is_discarded());
    std::vector<std::pair<double, double>> tokens;
    size_t n_layers = 0, n_reads = 0, n_counts = 0;
    std::map<int, size_t> shares;  // of a worker
    for (const auto& event : timeline["traceEvents"]) {
      if (event["ph"] == "C") {
        EXPECT_EQ(event["name"], "CPUs in use");
        EXPECT_GE(event["args"]["value"], 0);
        ++n_counts;
      }
      if (event["ph"] != "X") continue;
      const std::string name = event["name"];
      const double begin = event["ts"], end = begin + event["dur"].get<double>();
      if (event["tid"] == 2 || event["tid"] == 3) {
        ++shares[event["tid"]];
        EXPECT_NE(name, "other");  // all that workers do in a token has its cause
      } else if (event["tid"] != 1) {
        ++n_reads;
      } else if (name.find("layer") == std::string::npos) {
        tokens.emplace_back(begin, end);
      } else {
        ++n_layers;
        EXPECT_TRUE(std::any_of(tokens.begin(), tokens.end(),
                                [&](const auto& token) {
                                  return token.first - 0.01 <= begin && end <= token.second + 0.01;
                                }))
            << name << " at " << begin;
      }
    }
    EXPECT_EQ(tokens.size(), 5u);
    EXPECT_EQ(n_counts, tokens.size());
    EXPECT_GT(n_layers, 4u);
    EXPECT_GT(n_reads, 0u);
    EXPECT_EQ(shares.count(2), 1u);  // of two; the other may have come too late for all of it
  }
  std::string file(const std::string& name, const std::string& text) {
    const std::string path = folder_ / name;
    std::ofstream(path) << text;
    return path;
  }
};

TEST_F(BenchTest, RowsAreAsPublishedAndTimesAddUp) {
  const Outcome outcome =
      bench({"-p", "16", "-n", "6", "-r", "2", "--no-preload", "--no-warmup", "-o", "json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = outcome.json();
  ASSERT_EQ(rows.size(), 2u);
  for (const auto& row : rows)
    EXPECT_THAT(SchemaCheck("bench.json").problems(row), IsEmpty()) << row["test"];
  EXPECT_EQ(rows[0]["test"], "pp16");
  EXPECT_EQ(rows[0]["tokens"].size(), 0u);
  const auto& tg = rows[1];
  EXPECT_EQ(tg["test"], "tg6");
  EXPECT_EQ(tg["cache"], "warm");
  EXPECT_EQ(tg["samples_ns"].size(), 2u);
  ASSERT_EQ(tg["tokens"].size(), 12u);
  for (size_t r = 0; r < 2; ++r) {
    int64_t wall = 0;
    for (size_t i = 6 * r; i < 6 * (r + 1); ++i) {
      const auto& token = tg["tokens"][i];
      EXPECT_EQ(token["index"], i);
      EXPECT_EQ(token["repetition"], r);
      EXPECT_EQ(token["wall_ns"], sum_of(token["causes"]));
      EXPECT_EQ(token["began_ns"],
                tg["tokens"][6 * r]["began_ns"].get<int64_t>() + wall);  // no gap between tokens
      EXPECT_EQ(token["waits"].size(), token["bytes"].size());
      for (const auto& [drive, parts] : token["waits"].items())
        EXPECT_LE(sum_of(parts), token["causes"]["wait_drive"]) << drive;
      wall += token["wall_ns"].get<int64_t>();
    }
    EXPECT_EQ(tg["samples_ns"][r], wall);
  }
  EXPECT_LE(tg["itl_ms"]["p50"], tg["itl_ms"]["p90"]);
  EXPECT_LE(tg["itl_ms"]["p999"], tg["itl_ms"]["max"]);
  EXPECT_GT(tg["ceilings"]["ram_read_gb_s"], 0);
  EXPECT_GT(tg["ceilings"]["drives"][0]["bytes"], 0);
}

TEST_F(BenchTest, TheTableSaysHowItsFiguresAreMade) {
  const std::string text = file("text.txt", "The prompter calls eight of the actors.");
  const std::string csv = folder_ / "tokens.csv";
  const Outcome outcome = bench({"-p", "0", "-n", "4", "-r", "2", "-f", text, "--cold", "--csv",
                                 csv, "--vram", "8G", "--record", "read"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("| tg4 |"), HasSubstr("percentiles by\nnearest rank"),
                    HasSubstr("ceilings in this run"), HasSubstr("cache: cold"), HasSubstr(text)));
  EXPECT_THAT(outcome.err, HasSubstr("note: vram: --vram has no effect"));
  std::ifstream lines(csv);
  std::string line;
  std::vector<std::string> names;
  int n = 0;
  while (std::getline(lines, line)) {
    const std::vector<std::string> fields = fields_of(line);
    if (n++ == 0) {
      names = fields;
      EXPECT_THAT(line, AllOf(HasSubstr("index,wall_ns,causes_attention"), HasSubstr("hits_ram"),
                              HasSubstr("page_faults_major"), HasSubstr("cpu_throttled_ns")));
      continue;
    }
    ASSERT_EQ(fields.size(), names.size()) << line;
    int64_t wall_ns = 0, causes_ns = 0;
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == "wall_ns") wall_ns = std::stoll(fields[i]);
      if (names[i].starts_with("causes_")) causes_ns += std::stoll(fields[i]);
    }
    EXPECT_GT(wall_ns, 0) << line;
    EXPECT_EQ(causes_ns, wall_ns) << line;
  }
  EXPECT_EQ(n, 1 + 2 * 4);
}

TEST_F(BenchTest, EveryTokenIsALineOfItsOwn) {
  const std::string timeline = folder_ / "timeline.json";
  const Outcome outcome = run("qwen3moe-s1", {"-p", "The line", "-n", "5", "--verbose-tokens",
                                              "--no-preload", "--timeline", timeline});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::istringstream lines(outcome.out);
  std::string line;
  size_t n = 0;
  while (std::getline(lines, line)) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    EXPECT_THAT(SchemaCheck("token.json").problems(json), IsEmpty()) << line;
    EXPECT_EQ(json["index"], n++);
    EXPECT_GT(json["layers"].size(), 0u);
    for (const auto& layer : json["layers"]) EXPECT_EQ(layer["wall_ns"], sum_of(layer["causes"]));
  }
  EXPECT_EQ(n, 4u);  // the last token's forward isn't needed
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("latency  TTFT"), HasSubstr("ceiling  "), HasSubstr("slowest  ")));
  expect_slices_in_their_tokens(nlohmann::json::parse(std::ifstream(timeline), nullptr, false));
}

TEST_F(BenchTest, AsManySlowTokensAreExplainedAsAskedFor) {
  const auto spikes = [&](const char* n) {
    const Outcome outcome =
        run("qwen3moe-s1", {"-p", "a", "-n", "40", "--no-preload", "--json", "--io-fault",
                            "every=50,delay=20ms", "--spikes", n});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome.json();
  };
  const auto all = spikes("1000");
  uint64_t n_slow = 0;
  for (const auto& one : all["spike_classes"]) n_slow += one["tokens"].get<uint64_t>();
  EXPECT_GT(n_slow, 0u);
  EXPECT_EQ(all["spikes"].size(), n_slow);
  EXPECT_EQ(spikes("1")["spikes"].size(), 1u);
}

// A result as far as --compare reads it.
std::string result(const std::vector<double>& speeds) {
  const nlohmann::json row = {{"schema", "offstage.bench/1"},
                              {"test", "tg128"},
                              {"model_type", "m"},
                              {"cache", "warm"},
                              {"ram", "4G"},
                              {"n_threads", 2},
                              {"samples_ts", speeds},
                              {"itl_ms", {{"p50", 1}, {"p99", 2}}}};
  return row.dump() + "\n";
}

TEST_F(BenchTest, CompareKnowsNoise) {
  const std::string a = file("a.json", result({10, 11, 10, 11, 10}));
  const auto against = [&](const std::string& text) {
    return offstage({"bench", "--compare", a, file("b.json", text)});
  };
  const Outcome faster = against(result({12, 13.1, 12.2, 13.2, 11.9}));
  EXPECT_EQ(faster.code, 0) << faster.err;
  EXPECT_THAT(faster.out, HasSubstr("b is faster by 20.0 %"));
  EXPECT_THAT(against(result({8, 9, 8, 9, 8})).out, HasSubstr("b is slower by"));
  EXPECT_THAT(against(fmt::format("[{}]", result({11, 9.5, 10.5, 10.8, 10}))).out,
              HasSubstr("no difference beyond the noise"));
  EXPECT_THAT(against(result({20})).out, HasSubstr("one pair: no verdict"));
}

TEST_F(BenchTest, CompareRefusesWhatIsNoResult) {
  const std::string a = file("a.json", result({10, 11}));
  for (const char* text : {"", "{}", "[1]", "{\"schema\":1}", "not json"}) {
    const Outcome outcome = offstage({"bench", "--compare", a, file("b.json", text)});
    EXPECT_EQ(outcome.code, 1) << text;
    EXPECT_THAT(outcome.err, AllOf(HasSubstr("b.json"), HasSubstr("result"))) << text;
  }
}

TEST_F(BenchTest, BadFlagsAreUsageErrors) {
  EXPECT_EQ(bench({"-p", "0", "-n", "0"}).code, 2);
  EXPECT_EQ(bench({"-o", "xml"}).code, 2);
  EXPECT_EQ(bench({"-r", "0"}).code, 2);
}

}  // namespace
}  // namespace offstage
