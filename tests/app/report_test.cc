// What the commands report: JSON as published (tests/data/schemas), true and not degenerate.
#include <gmock/gmock.h>

#include <cmath>
#include <numeric>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;
using testing::Outcome;
using testing::SchemaCheck;

constexpr const char* kText = "The prompter calls eight of the actors; the line is 42.";

nlohmann::json golden(const std::string& name) {
  return nlohmann::json::parse(std::ifstream(testing::source(name + ".golden.json")));
}

double sum_of(const nlohmann::json& parts) {
  double sum = 0;
  for (const auto& [name, part] : parts.items()) sum += part.get<double>();
  return sum;
}

class ReportTest : public testing::ProgramTest, public ::testing::WithParamInterface<const char*> {
 protected:
  // One object, on one line, that fits its schema.
  nlohmann::json checked(const Outcome& outcome, const std::string& schema) {
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 1);
    EXPECT_THAT(outcome.out, EndsWith("}\n"));
    const nlohmann::json json = outcome.json();
    EXPECT_FALSE(json.is_discarded()) << outcome.out;
    EXPECT_THAT(SchemaCheck(schema + ".json").problems(json), IsEmpty());
    return json;
  }
};

class EveryFamily : public ReportTest {};

TEST_P(EveryFamily, RunReportsWhatHappened) {
  constexpr int kTokens = 12;
  const auto card = checked(offstage({"inspect", "-m", model(GetParam()), "--json"}), "inspect");
  const auto json = checked(run(GetParam(), {"-p", kText, "-n", "12", "--json"}), "run");
  EXPECT_EQ(json["model"], model(GetParam()));
  EXPECT_EQ(json["tokens"].size(), size_t{kTokens});
  EXPECT_EQ(json["stop"], "length");
  EXPECT_GT(json["prompt_tokens"], 8);
  EXPECT_GT(json["prefill_tok_s"], 0);
  EXPECT_EQ(json["threads"], 2);
  const auto& ms = json["token_ms"];
  EXPECT_GT(ms["p50"], 0);
  EXPECT_LE(ms["p50"], ms["p95"]);
  EXPECT_LE(ms["p95"], ms["p99"]);
  EXPECT_LE(ms["p99"], ms["max"]);
  // Every decode forward calls experts_used experts in every layer that has some, from RAM or from
  // the drive.
  const auto& experts = json["experts"];
  const uint64_t moe_layers = card["layers"].get<uint64_t>() - card["dense_layers"].get<uint64_t>();
  const uint64_t calls = moe_layers * card["experts_used"].get<uint64_t>() * (kTokens - 1);
  EXPECT_EQ(experts["ram_hits"].get<uint64_t>() + experts["drive_reads"].get<uint64_t>(), calls);
  // All of them fit into RAM, so all were read before the first was called.
  EXPECT_EQ(json["preload"]["experts"].get<uint64_t>(),
            moe_layers * card["experts_per_layer"].get<uint64_t>());
  EXPECT_EQ(json["preload"]["bytes"], card["experts_bytes"]);
  EXPECT_EQ(json["prefill"]["drive_reads"], 0);
  const auto late =
      checked(run(GetParam(), {"-p", kText, "-n", "12", "--json", "--no-preload"}), "run");
  EXPECT_EQ(late["preload"]["experts"], 0);
  EXPECT_EQ(late["tokens"], json["tokens"]);
  EXPECT_GT(late["prefill"]["drive_reads"], 0);
  EXPECT_GE(late["prefill"]["bytes_read"].get<uint64_t>(),
            late["prefill"]["drive_reads"].get<uint64_t>() * card["expert_bytes"].get<uint64_t>());
  EXPECT_LE(experts["slots"].get<uint64_t>(),
            moe_layers * card["experts_per_layer"].get<uint64_t>());
  EXPECT_LE(json["peak_rss_bytes"], json["ram_budget_bytes"]);
  EXPECT_GT(json["peak_rss_bytes"], 1 << 20);
}

// The parts sum to the whole: speed is tokens over the very sum that is broken down by cause.
TEST_P(EveryFamily, TimesByCauseSumToTheWhole) {
  const auto json = checked(run(GetParam(), {"-p", kText, "-n", "12", "--json"}), "run");
  EXPECT_NEAR(sum_of(json["wait_ms"]) * json["decode_tok_s"].get<double>() / 1000, 11, 1e-6);
  EXPECT_NEAR(sum_of(json["prefill"]["wait_ms"]) * json["prefill_tok_s"].get<double>() / 1000,
              json["prompt_tokens"].get<double>(), 1e-6);
  for (const char* cause : {"attention", "router", "experts", "output", "sample"})
    EXPECT_GT(json["wait_ms"][cause], 0) << cause;
}

TEST_P(EveryFamily, GreedyTokensAreTheGoldenOnes) {
  const auto prompt = golden(GetParam())["prompts"]["short"];
  const auto json =
      checked(run(GetParam(), {"-p", prompt["text"], "-n", std::to_string(prompt["greedy"].size()),
                               "-ctk", "f32", "-ctv", "f32", "-ub", "16", "--json"}),
              "run");
  EXPECT_EQ(json["tokens"], prompt["greedy"]);
  EXPECT_EQ(json["prompt_tokens"], prompt["tokens"].size());
}

// A prompt that ends in a word makes the answer begin with a space: it isn't lost.
TEST_P(EveryFamily, JsonTextIsTheStreamedText) {
  for (const char* prompt : {"The line", "def stage(12): na"}) {
    const auto json = checked(run(GetParam(), {"-p", prompt, "-n", "24", "--json"}), "run");
    const Outcome streamed = run(GetParam(), {"-p", prompt, "-n", "24"});
    ASSERT_EQ(streamed.code, 0);
    ASSERT_THAT(streamed.out, EndsWith("\n"));
    const nlohmann::json text = streamed.out.substr(0, streamed.out.size() - 1);
    EXPECT_EQ(json["text"].dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
              text.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    EXPECT_FALSE(json["text"].get<std::string>().empty());
  }
}

TEST_P(EveryFamily, EvalScoresEveryPosition) {
  const auto prompt = golden(GetParam())["prompts"]["long"];
  const auto json = checked(offstage({"eval", "-m", model(GetParam()), "-c", "256", "-p",
                                      prompt["text"], "--json", "--top", "5"}),
                            "eval");
  EXPECT_EQ(json["tokens"], prompt["tokens"]);
  const std::vector<double> nll = json["nll"];
  ASSERT_EQ(nll.size() + 1, json["tokens"].size());
  const double mean =
      std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(nll.size());
  EXPECT_NEAR(json["mean_nll"].get<double>(), mean, 1e-9);
  EXPECT_NEAR(json["perplexity"].get<double>(), std::exp(mean), 1e-6);
  EXPECT_NEAR(mean, prompt["llama_cpp_nll"].get<double>(), 1e-2);
  ASSERT_EQ(json["top"].size(), nll.size());
  for (size_t i = 0; i < nll.size(); ++i) {
    const auto& best = json["top"][i];
    ASSERT_EQ(best.size(), 5u);
    for (size_t b = 0; b + 1 < 5; ++b)
      EXPECT_GE(best[b]["logprob"].get<double>(), best[b + 1]["logprob"].get<double>());
    // The token that came is no likelier than the best, and is the same where it is listed.
    EXPECT_LE(-nll[i], best[0]["logprob"].get<double>() + 1e-12);
    for (const auto& entry : best)
      if (entry["id"] == json["tokens"][i + 1]) {
        EXPECT_NEAR(entry["logprob"].get<double>(), -nll[i], 1e-12);
      }
  }
}

TEST_P(EveryFamily, InspectListsTensorsAndExperts) {
  const auto json =
      checked(offstage({"inspect", "-m", model(GetParam()), "--json", "--tensors", "--experts"}),
              "inspect");
  EXPECT_EQ(json["file_bytes"], std::filesystem::file_size(model(GetParam())));
  EXPECT_LT(json["active_params"], json["total_params"]);
  EXPECT_EQ(json["expert_extents"].size(),
            3 * (json["layers"].get<size_t>() - json["dense_layers"].get<size_t>()) *
                json["experts_per_layer"].get<size_t>());
  uint64_t tensor_bytes = 0, expert_bytes = 0;
  for (const auto& tensor : json["tensors"]) tensor_bytes += tensor["bytes"].get<uint64_t>();
  for (const auto& extent : json["expert_extents"]) expert_bytes += extent["bytes"].get<uint64_t>();
  EXPECT_EQ(expert_bytes, json["experts_bytes"].get<uint64_t>());
  EXPECT_EQ(tensor_bytes, expert_bytes + json["dense_bytes"].get<uint64_t>());
}

INSTANTIATE_TEST_SUITE_P(Models, EveryFamily,
                         ::testing::Values("mixtral-s1", "olmoe-s1", "qwen2moe-s1", "qwen3moe-s1",
                                           "gpt-oss-s1", "glm4moe-s1"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Nothing to read from the drive once it is loaded, and no figure that divides by experts.
TEST_F(ReportTest, ADenseModelRunsAndIsInspected) {
  const auto card =
      checked(offstage({"inspect", "-m", model("qwen3-s1"), "--json", "--experts"}), "inspect");
  EXPECT_EQ(card["dense_layers"], card["layers"]);
  EXPECT_EQ(card["experts_bytes"], 0);
  EXPECT_EQ(card["expert_bytes"], 0);
  EXPECT_EQ(card["expert_extents"].size(), 0u);
  EXPECT_EQ(card["active_params"], card["total_params"]);
  const auto json = checked(run("qwen3-s1", {"-p", kText, "-n", "4", "--json"}), "run");
  EXPECT_EQ(json["tokens"].size(), 4u);
  EXPECT_EQ(json["experts"]["slots"], 0);
  EXPECT_EQ(json["experts"]["drive_reads"], 0);
  const auto text = run("qwen3-s1", {"-p", kText, "-n", "4"});
  EXPECT_THAT(text.err, HasSubstr("dense model"));
  EXPECT_THAT(text.err, Not(HasSubstr("calls from RAM")));
  const auto shown = offstage({"inspect", "-m", model("qwen3-s1")});
  EXPECT_THAT(shown.out, AllOf(HasSubstr("dense FFN"), Not(HasSubstr("experts  "))));
}

TEST_F(ReportTest, InspectTellsWindowsAndPredictionLayers) {
  EXPECT_THAT(offstage({"inspect", "-m", model("gpt-oss-s1")}).out,
              HasSubstr("1 of 2 layers read only the last 8 positions"));
  EXPECT_THAT(offstage({"inspect", "-m", model("glm4moe-s2")}).out,
              AllOf(HasSubstr("2 of 3 layers"), HasSubstr("1 layer(s) that predict")));
}

TEST_F(ReportTest, TokenizeGivesIdsAndPieces) {
  const auto prompt = golden("qwen3moe-s1")["prompts"]["short"];
  const std::string text = prompt["text"];
  const auto json =
      checked(offstage({"tokenize", "-m", model("qwen3moe-s1"), "-p", text, "--json"}), "tokenize");
  EXPECT_EQ(json["tokens"], prompt["tokens"]);
  std::string joined;
  for (const std::string piece : json["pieces"]) joined += piece;
  EXPECT_EQ(json["pieces"].size(), json["tokens"].size());
  EXPECT_NE(joined.find("def stage(12)"), std::string::npos);
}

TEST_F(ReportTest, TokenizeAddsSpecialsOnlyWhenAsked) {
  const std::string mixtral = model("mixtral-s1");
  const auto plain =
      checked(offstage({"tokenize", "-m", mixtral, "-p", "line", "--json"}), "tokenize");
  const auto special = checked(
      offstage({"tokenize", "-m", mixtral, "-p", "line", "--json", "--add-special"}), "tokenize");
  ASSERT_EQ(special["tokens"].size(), plain["tokens"].size() + 1);
  EXPECT_THAT(special["tokens"].get<std::vector<int>>(),
              IsSupersetOf(plain["tokens"].get<std::vector<int>>()));
}

TEST_F(ReportTest, ReportsTheEngineThatRan) {
  const auto json = checked(run("qwen3moe-s1", {"-p", kText, "-n", "4", "--io-engine", "threads",
                                                "--direct-io", "off", "--json"}),
                            "run");
  EXPECT_EQ(json["io_engine"], "threads");
  EXPECT_EQ(json["direct_io"], false);
}

TEST_F(ReportTest, OptionsThatCantActAreListed) {
  const Outcome outcome = run("qwen3moe-s1", {"-p", kText, "-n", "4", "-ngl", "99", "--json"});
  const auto json = checked(outcome, "run");
  EXPECT_EQ(std::count_if(json["fallbacks"].begin(), json["fallbacks"].end(),
                          [](const auto& notice) { return notice["subject"] == "n_gpu_layers"; }),
            1);
  EXPECT_NE(outcome.err.find("note: n_gpu_layers: -ngl"), std::string::npos) << outcome.err;
}

TEST_F(ReportTest, TheSeedDecidesWhatIsDrawn) {
  const auto tokens = [&](const char* seed) {
    const auto json = checked(
        offstage({"run", "-m", model("qwen3moe-s1"), "-c", "256", "-p", kText, "-n", "16", "--temp",
                  "1", "--top-k", "0", "--top-p", "1", "-s", seed, "--ignore-eos", "--json"}),
        "run");
    return json["tokens"];
  };
  const auto first = tokens("7");
  EXPECT_EQ(first, tokens("7"));
  EXPECT_NE(first, tokens("8"));
}

// Every name a schema requires is in a page for people, as code.
TEST_F(ReportTest, TheReadmesDocumentEveryName) {
  std::string readme;
  for (const char* page : {"README.md", "src/app/README.md", "src/plan/README.md"}) {
    std::ifstream file(std::string(OFFSTAGE_TEST_DATA) + "/../../" + page);
    ASSERT_TRUE(file) << page;
    readme.append((std::istreambuf_iterator<char>(file)), {});
  }
  for (const char* schema :
       {"run", "bench", "token", "eval", "tokenize", "inspect", "trace_record", "report", "plan"}) {
    const SchemaCheck check(std::string(schema) + ".json");
    EXPECT_NE(readme.find(check.schema()["title"].get<std::string>()), std::string::npos);
    for (const auto& [name, part] : check.schema()["properties"].items())
      EXPECT_NE(readme.find("`" + name + "`"), std::string::npos) << schema << ": " << name;
  }
}

}  // namespace
}  // namespace offstage
