// Exit codes, messages, Ctrl-C, budgets: what a person meets at the command line.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <regex>

#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using testing::Conditions;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::Outcome;
using testing::ProgramTest;
using testing::source;

constexpr const char* kModel = "qwen3moe-s1";

class CommandLineTest : public ProgramTest {};

TEST_F(CommandLineTest, WhatIsAskedForEndsWithZero) {
  EXPECT_EQ(offstage({"--help"}).code, 0);
  EXPECT_EQ(offstage({"run", "--help"}).code, 0);
  EXPECT_EQ(offstage({"--version"}).code, 0);
  const Outcome outcome = run(kModel, {"-p", "line", "-n", "4"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("budget"), HasSubstr("decode"), HasSubstr("memory")));
}

TEST_F(CommandLineTest, WrongCommandLinesEndWithTwo) {
  const std::string m = model(kModel);
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"runs"},
      {"run", "-m", m, "-p", "x", "--no-such-flag"},
      {"run", "-m", m, "-p", "x", "--ram", "8Q"},
      {"run", "-m", m, "-p", "x", "-ctk", "f17"},
      {"run", "-m", m, "-p", "x", "-ub", "0"},
      {"run", "-m", m, "-p", "x", "-c", "0"},
      {"run", "-m", m, "-p", "x", "-t", "1000000"},
      {"run", "-m", m, "-p", "x", "--temp", "nan"},
      {"run", "-m", m, "-p", "x", "--repeat-penalty", "0"},
      {"run", "-m", m, "-p", "x", "--io-engine", "mmap"},
      {"run", "-m", m, "-p", "x", "--direct-io", "maybe"},
      {"run", "-m", m, "-p", "x", "-f", "y"},
      {"run", "-m", m, "--json"},
      {"eval", "-m", m},
      {"eval", "-m", m, "-p", "a line of text", "-c", "1"},
      {"tokenize", "-m", m},
  };
  for (const auto& arguments : wrong) {
    const Outcome outcome = offstage(arguments);
    EXPECT_EQ(outcome.code, 2) << fmt::format("{}: {}", fmt::join(arguments, " "), outcome.err);
    EXPECT_THAT(outcome.out, IsEmpty());
    EXPECT_THAT(outcome.err, Not(IsEmpty()));
  }
}

TEST_F(CommandLineTest, FilesThatCantBeReadAreNamed) {
  const std::string truncated = folder_ / "truncated.gguf";
  const auto bytes = testing::read_file(source("qwen3moe-s1.gguf"));
  testing::write_file(truncated, std::span(bytes).first(bytes.size() / 2));
  const std::string text = folder_ / "text.gguf";
  testing::write_file(text, std::as_bytes(std::span("no model at all, but a text")));
  for (const std::string& path : {folder_ / "absent.gguf", truncated, text}) {
    for (const char* command : {"run", "eval", "inspect", "tokenize"}) {
      std::vector<std::string> arguments = {command, "-m", path};
      if (command != std::string("inspect")) arguments.insert(arguments.end(), {"-p", "line"});
      const Outcome outcome = offstage(arguments);
      EXPECT_EQ(outcome.code, 1) << command << ' ' << path << ": " << outcome.err;
      EXPECT_THAT(outcome.err, AllOf(HasSubstr("offstage: error ("), HasSubstr(path)));
      EXPECT_THAT(outcome.out, IsEmpty());
    }
  }
  const Outcome folder = offstage({"run", "-m", folder_.path(), "-p", "line"});
  EXPECT_EQ(folder.code, 2);  // no file can be meant
  EXPECT_THAT(folder.err, HasSubstr(folder_.path()));
  const Outcome prompt = run(kModel, {"-f", folder_ / "absent.txt"});
  EXPECT_EQ(prompt.code, 1);
  EXPECT_THAT(prompt.err, HasSubstr(folder_ / "absent.txt"));
}

TEST_F(CommandLineTest, AnUnknownInstructionSetFailsLoudly) {
  Conditions conditions;
  conditions.environment["OFFSTAGE_ISA"] = "bogus";
  const Outcome outcome = run(kModel, {"-p", "line", "-n", "4"}, conditions);
  EXPECT_NE(outcome.code, 0);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("OFFSTAGE_ISA"), HasSubstr("bogus"), HasSubstr("avx2")));
  conditions.environment["OFFSTAGE_ISA"] = "scalar";
  const Outcome scalar = run(kModel, {"-p", "line", "-n", "4", "--json"}, conditions);
  EXPECT_EQ(scalar.json()["isa"], "scalar");
}

TEST_F(CommandLineTest, ABudgetBelowTheFloorIsRefusedWithTheFloorThatWorks) {
  for (const char* name : {"qwen3moe-s1", "mixtral-s2"}) {
    const Outcome refused = run(name, {"-p", "The line", "-n", "8", "--ram", "1M"});
    EXPECT_EQ(refused.code, 1);
    EXPECT_THAT(refused.err, AllOf(HasSubstr("error (budget)"), HasSubstr("floor")));
    std::smatch match;
    ASSERT_TRUE(std::regex_search(refused.err, match, std::regex("\\((\\d+) bytes\\)")));
    const uint64_t floor = std::stoull(match[1]);
    // What the process takes differs by some pages from start to start, which is as much as the
    // experts of a model so small: one start may have room for all of them.
    uint64_t drive_reads = 0;
    for (int attempt = 0; attempt < 5; ++attempt) {
      const Outcome outcome = run(name, {"-p", "The line", "-n", "8", "--ram", match[1], "--json"});
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      EXPECT_EQ(outcome.json()["ram_budget_bytes"], floor);
      EXPECT_LE(outcome.json()["peak_rss_bytes"], floor);
      drive_reads += outcome.json()["experts"]["drive_reads"].get<uint64_t>();
    }
    EXPECT_GT(drive_reads, 0u);
    const Outcome below =
        run(name, {"-p", "The line", "--ram", std::to_string(floor - (4u << 20))});
    EXPECT_EQ(below.code, 1);
  }
}

TEST_F(CommandLineTest, TheSameTextAtTheFloorAndWithEverything) {
  const Outcome refused = run(kModel, {"-p", "The line", "--ram", "1M"});
  std::smatch match;
  ASSERT_TRUE(std::regex_search(refused.err, match, std::regex("\\((\\d+) bytes\\)")));
  const Outcome floor = run(kModel, {"-p", "The line", "-n", "32", "--ram", match[1]});
  const Outcome full = run(kModel, {"-p", "The line", "-n", "32", "--ram", "2G"});
  EXPECT_EQ(floor.code, 0);
  EXPECT_EQ(floor.out, full.out);
}

TEST_F(CommandLineTest, CtrlCEndsCleanlyWithTheSummary) {
  Conditions conditions;
  conditions.interrupt_after_bytes = 8;
  const Outcome outcome =
      offstage({"run", "-m", model(kModel), "-p", "The line", "-n", "100000", "-c", "8192",
                "--ignore-eos", "--io-fault", "delay=2ms", "--ram", "512M"},
               conditions);
  EXPECT_FALSE(outcome.late);
  EXPECT_EQ(outcome.signal, 0);
  EXPECT_EQ(outcome.code, 130);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("decode "), HasSubstr("memory ")));
}

TEST_F(CommandLineTest, PromptsComeFromFilesAndStandardInput) {
  const std::string path = folder_ / "prompt.txt";
  const std::string text = "The line";
  testing::write_file(path, std::as_bytes(std::span(text)));
  Conditions conditions;
  conditions.input = text;
  const Outcome flag = run(kModel, {"-p", text, "-n", "8"});
  EXPECT_EQ(run(kModel, {"-f", path, "-n", "8"}).out, flag.out);
  EXPECT_EQ(run(kModel, {"-f", "-", "-n", "8"}, conditions).out, flag.out);
}

TEST_F(CommandLineTest, ChatAnswersUntilTheEmptyLine) {
  Conditions conditions;
  conditions.input = "The line\nAnd another\n\nnot read\n";
  const Outcome outcome = run(kModel, {"-n", "4"}, conditions);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  size_t summaries = 0;
  for (size_t at = 0; (at = outcome.err.find("\ndecode ", at)) != std::string::npos; ++at)
    ++summaries;  // a line's beginning: a spike's text has the word too
  EXPECT_EQ(summaries, 2u) << outcome.err;
}

TEST_F(CommandLineTest, EveryCacheTypeThatFitsIsTaken) {
  for (const char* type : {"f16", "f32"}) {
    const Outcome outcome =
        run(kModel, {"-p", "The line", "-n", "4", "-ctk", type, "-ctv", type, "-ub", "16"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
  }
}

class VerifyTest : public ProgramTest {
 protected:
  // Changes bytes of the model's data and gives the file back its time of change.
  void damage(const std::string& path, uint64_t offset, const std::vector<std::byte>& bytes) {
    struct stat before = {};
    ASSERT_EQ(stat(path.c_str(), &before), 0);
    auto file = testing::read_file(path);
    std::copy(bytes.begin(), bytes.end(), file.begin() + static_cast<ptrdiff_t>(offset));
    testing::write_file(path, file);
    const timespec times[2] = {before.st_atim, before.st_mtim};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  }
  nlohmann::json listing(const std::string& path) {
    return offstage({"inspect", "-m", path, "--json", "--experts", "--tensors"}).json();
  }
};

TEST_F(VerifyTest, FillsTheIndexThenAgreesThenFindsAFlippedBit) {
  const std::string path = model(kModel);
  const auto first = offstage({"inspect", "-m", path, "--verify", "--json"});
  EXPECT_EQ(first.code, 0) << first.err;
  const auto report = first.json()["verify"];
  EXPECT_EQ(report["added"], report["pieces"]);
  EXPECT_EQ(report["already_known"], 0);
  EXPECT_TRUE(std::filesystem::exists(path + ".offstage-index"));
  const auto second = offstage({"inspect", "-m", path, "--verify", "--json"}).json()["verify"];
  EXPECT_EQ(second["already_known"], report["pieces"]);
  EXPECT_EQ(second["bytes"], report["bytes"]);

  const auto extent = listing(path)["expert_extents"][17];
  const uint64_t at = extent["offset"].get<uint64_t>() + 5;
  damage(path, at, {testing::read_file(path)[at] ^ std::byte{1}});
  const auto third = offstage({"inspect", "-m", path, "--verify", "--json"});
  EXPECT_EQ(third.code, 1);
  const auto found = third.json()["verify"];
  ASSERT_EQ(found["mismatch_count"], 1);
  EXPECT_THAT(found["mismatches"][0].get<std::string>(),
              AllOf(HasSubstr(path), HasSubstr(extent["tensor"]),
                    HasSubstr(fmt::format("expert {}", extent["expert"].get<int>())),
                    HasSubstr(fmt::format("offset {}", extent["offset"].get<uint64_t>()))));
}

TEST_F(VerifyTest, ARunOnDamagedWeightsIsAnErrorThatNamesThem) {
  const std::string path = model(kModel);
  ASSERT_EQ(offstage({"inspect", "-m", path, "--verify"}).code, 0);
  const auto tensors = listing(path)["tensors"];
  const auto dense = std::find_if(tensors.begin(), tensors.end(), [](const auto& tensor) {
    return tensor["name"] == "blk.0.attn_q.weight";
  });
  const uint64_t at = (*dense)["offset"].get<uint64_t>();
  damage(path, at, {testing::read_file(path)[at] ^ std::byte{0x10}});
  const Outcome outcome = run(kModel, {"-p", "The line", "-n", "4"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("error (hash_mismatch)"), HasSubstr(path),
                    HasSubstr("blk.0.attn_q.weight"), HasSubstr(fmt::format("offset {}", at))));
  EXPECT_THAT(outcome.out, IsEmpty());
}

TEST_F(VerifyTest, TwoSwappedExpertsAreFound) {
  const std::string path = model(kModel);
  ASSERT_EQ(offstage({"inspect", "-m", path, "--verify"}).code, 0);
  const auto extents = listing(path)["expert_extents"];
  const auto file = testing::read_file(path);
  const auto bytes_of = [&](const nlohmann::json& extent) {
    const auto begin = file.begin() + extent["offset"].get<ptrdiff_t>();
    return std::vector<std::byte>(begin, begin + extent["bytes"].get<ptrdiff_t>());
  };
  // Expert 0's and expert 1's gate of the first layer.
  ASSERT_EQ(extents[0]["tensor"], extents[3]["tensor"]);
  damage(path, extents[0]["offset"], bytes_of(extents[3]));
  damage(path, extents[3]["offset"], bytes_of(extents[0]));
  const auto found = offstage({"inspect", "-m", path, "--verify", "--json"});
  EXPECT_EQ(found.code, 1);
  EXPECT_EQ(found.json()["verify"]["mismatch_count"], 2);
}

}  // namespace
}  // namespace offstage
