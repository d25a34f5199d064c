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
  bool is_quoted = false;
  for (const char c : line) {
    if (c == '"') is_quoted = !is_quoted;
    if (c == ',' && !is_quoted) {
      fields.emplace_back();
    } else if (c != '"') {
      fields.back() += c;
    }
  }
  return fields;
}

// The lines under the first, which has the columns' names.
std::vector<std::map<std::string, std::string>> table_of(std::istream&& lines) {
  std::vector<std::map<std::string, std::string>> rows;
  std::string line;
  EXPECT_TRUE(std::getline(lines, line));
  const std::vector<std::string> names = fields_of(line);
  while (std::getline(lines, line)) {
    const std::vector<std::string> fields = fields_of(line);
    EXPECT_EQ(fields.size(), names.size()) << line;
    auto& row = rows.emplace_back();
    for (size_t i = 0; i < std::min(names.size(), fields.size()); ++i) row[names[i]] = fields[i];
  }
  return rows;
}

void expect_causes_add_up(const std::map<std::string, std::string>& row) {
  int64_t causes_ns = 0;
  for (const auto& [name, value] : row)
    if (name.starts_with("causes_")) causes_ns += std::stoll(value);
  EXPECT_GT(causes_ns, 0);
  EXPECT_EQ(std::to_string(causes_ns), row.at("wall_ns"));
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

// In front of every test, once for all of its repetitions.
TEST_F(BenchTest, DepthIsInFrontAndDoesNotCount) {
  const Outcome outcome =
      bench({"-p", "8", "-n", "3", "-d", "0,5", "-r", "2", "-o", "json", "-c", "13"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = outcome.json();
  ASSERT_EQ(rows.size(), 4u);
  const std::vector<std::string> names = {"pp8", "tg3", "pp8 @ d5", "tg3 @ d5"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(rows[i]["test"], names[i]);
    EXPECT_EQ(rows[i]["n_depth"], i < 2 ? 0 : 5);
    EXPECT_EQ(rows[i]["samples_ns"].size(), 2u);
    EXPECT_EQ(rows[i]["tokens"].size(), i % 2 == 0 ? 0u : 6u);
  }
  const Outcome full = bench({"-p", "8", "-n", "0", "-d", "6", "-r", "1", "-c", "13"});
  EXPECT_NE(full.code, 0);
  EXPECT_THAT(full.err, HasSubstr("6 tokens of conversation and 8 of prompt don't fit"));
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
  const auto rows = table_of(std::ifstream(csv));
  EXPECT_EQ(rows.size(), 2u * 4);
  for (const auto& row : rows) {
    expect_causes_add_up(row);
    EXPECT_EQ(row.at("test"), "tg4");
    for (const char* name : {"index", "hits_ram", "page_faults_major", "cpu_throttled_ns"})
      EXPECT_EQ(row.count(name), 1u) << name;
  }
}

// A test of prompts has no tokens: its lines are the prompts.
TEST_F(BenchTest, ThePromptsOfATestOfPromptsAreLinesOfTheTable) {
  const std::string csv = folder_ / "prompts.csv";
  const Outcome outcome =
      bench({"-p", "16", "-n", "0", "-r", "2", "--no-warmup", "--csv", csv, "-o", "json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto samples_ns = outcome.json()[0]["samples_ns"];
  const auto rows = table_of(std::ifstream(csv));
  ASSERT_EQ(rows.size(), 2u);
  for (size_t r = 0; r < rows.size(); ++r) {
    expect_causes_add_up(rows[r]);
    EXPECT_EQ(rows[r].at("test"), "pp16");
    EXPECT_EQ(rows[r].at("repetition"), std::to_string(r));
    EXPECT_EQ(rows[r].at("wall_ns"), samples_ns[r].dump());
  }
}

class BenchSweepTest : public testing::ProgramTest {
 protected:
  // Two sizes of each memory, on the simulated device.
  Outcome sweep(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"bench",
                                          "-m",
                                          model("micro-qwen3moe-q4_k_m"),
                                          "-p",
                                          "0",
                                          "-n",
                                          "2",
                                          "-r",
                                          "1",
                                          "--vram",
                                          "0,64M",
                                          "--device",
                                          "sim",
                                          "-t",
                                          "2",
                                          "--no-warmup",
                                          "--no-warm-start"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return offstage(arguments);
  }
};

TEST_F(BenchSweepTest, EveryCombinationOfRamAndVramIsARow) {
  const std::string csv = folder_ / "tokens.csv";
  const Outcome outcome = sweep({"--ram", "1G,2G", "--csv", csv, "-o", "json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = outcome.json();
  const auto tokens = table_of(std::ifstream(csv));
  ASSERT_EQ(rows.size(), 4u);
  ASSERT_EQ(tokens.size(), 2 * rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const uint64_t ram = (i < 2 ? 1ull : 2ull) << 30, vram = i % 2 == 0 ? 0 : 64ull << 20;
    SCOPED_TRACE(fmt::format("{} {}", ram, vram));
    EXPECT_THAT(SchemaCheck("bench.json").problems(rows[i]), IsEmpty());
    EXPECT_EQ(rows[i]["ram"], i < 2 ? "1G" : "2G");
    EXPECT_EQ(rows[i]["ram_budget_bytes"], ram);
    EXPECT_EQ(rows[i]["vram"]["budget_bytes"], vram);
    EXPECT_EQ(rows[i]["vram"]["state"], vram == 0 ? "off" : "in_use");
    for (const auto& token : {tokens[2 * i], tokens[2 * i + 1]}) {
      EXPECT_EQ(token.at("ram_budget_bytes"), std::to_string(ram));
      EXPECT_EQ(token.at("vram_budget_bytes"), std::to_string(vram));
    }
  }
}

TEST_F(BenchSweepTest, TablesNameBothMemories) {
  const Outcome markdown = sweep({"--ram", "1G"});
  ASSERT_EQ(markdown.code, 0) << markdown.err;
  EXPECT_THAT(markdown.out, AllOf(HasSubstr("| ram | vram |"), HasSubstr("| 1.00 GiB | – |"),
                                  HasSubstr("| 1.00 GiB | 64.00 MiB |")));
  const Outcome csv = sweep({"--ram", "1G", "-o", "csv"});
  ASSERT_EQ(csv.code, 0) << csv.err;
  const auto rows = table_of(std::istringstream(csv.out));
  ASSERT_EQ(rows.size(), 2u);
  for (const auto& row : rows) EXPECT_EQ(row.at("ram_budget_bytes"), std::to_string(1ull << 30));
  EXPECT_EQ(rows[0].at("vram_budget_bytes"), "0");
  EXPECT_EQ(rows[1].at("vram_budget_bytes"), std::to_string(64ull << 20));
  EXPECT_EQ(rows[1].at("vram_state"), "in_use");
}

// The last of a list too.
TEST_F(BenchSweepTest, WhatIsNoSizeIsSaidBeforeAnythingIsMeasured) {
  for (const char* flag : {"--ram", "--vram"}) {
    const Outcome outcome = sweep({flag, "1G,much"});
    EXPECT_EQ(outcome.code, 2) << flag;
    EXPECT_THAT(outcome.err, HasSubstr("'much' is not a size")) << flag;
    EXPECT_THAT(outcome.out, IsEmpty()) << flag;
  }
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
std::string result(const std::vector<double>& speeds, uint64_t vram_bytes = 0) {
  const nlohmann::json row = {{"schema", "offstage.bench/1"},
                              {"test", "tg128"},
                              {"model_type", "m"},
                              {"cache", "warm"},
                              {"ram", "4G"},
                              {"n_threads", 2},
                              {"vram", {{"budget_bytes", vram_bytes}, {"state", "in_use"}}},
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

TEST_F(BenchTest, CompareKeepsMemoriesApart) {
  constexpr uint64_t kGiB = 1 << 30;
  const std::string a = file("a.json", result({10, 10}) + result({30, 30}, 8 * kGiB));
  const std::string b = file("b.json", result({60, 60}, 8 * kGiB) + result({20, 20}, 4 * kGiB));
  const Outcome outcome = offstage({"bench", "--compare", a, b});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("| tg128 | 4G | 8.00 GiB | 2 | 30.00 | 60.00 |"));
  EXPECT_EQ(outcome.out.find("tg128"), outcome.out.rfind("tg128"));  // one line
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
