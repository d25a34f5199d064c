// The model that is meant when none is named.
#include <gmock/gmock.h>

#include <filesystem>

#include "tests/app/program.h"

namespace offstage {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::Conditions;
using ::testing::HasSubstr;
using testing::Outcome;
using testing::ProgramTest;
using testing::source;

constexpr const char* kDemo = "offstage-demo.gguf";

class DefaultModelTest : public ProgramTest {
 protected:
  // An installation of its own: $folder/bin/offstage, and what a test puts beside it.
  Conditions installed() {
    Conditions conditions;
    const fs::path program = fs::path(folder_ / "bin") / "offstage";
    if (!fs::exists(program)) {
      fs::create_directories(program.parent_path());
      fs::copy_file(OFFSTAGE_BINARY, program);
    }
    conditions.program = program;
    conditions.environment["OFFSTAGE_MODEL"] = "";
    return conditions;
  }
  std::string put(const std::string& name, const std::string& place) {
    const fs::path path = folder_ / place;
    fs::create_directories(path.parent_path());
    fs::copy_file(source(name + ".gguf"), path);
    return fs::canonical(path);
  }
  Outcome run_without_model(const Conditions& conditions) {
    return offstage({"run", "-p", "line", "-n", "2", "-c", "64", "-t", "1", "--json"}, conditions);
  }
};

TEST_F(DefaultModelTest, OneBesideTheProgramComesBeforeTheInstalledOne) {
  const std::string shared = put("qwen3moe-s1", std::string("share/offstage/") + kDemo);
  Outcome outcome = run_without_model(installed());
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(fs::canonical(outcome.json()["model"].get<std::string>()), shared);

  const std::string beside = put("qwen3moe-s2", std::string("bin/") + kDemo);
  outcome = run_without_model(installed());
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(fs::canonical(outcome.json()["model"].get<std::string>()), beside);
}

TEST_F(DefaultModelTest, TheVariableComesFirstAndAWrongOneIsSaid) {
  put("qwen3moe-s1", std::string("bin/") + kDemo);
  Conditions conditions = installed();
  conditions.environment["OFFSTAGE_MODEL"] = model("qwen3moe-s2");
  const Outcome outcome = run_without_model(conditions);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["model"], model("qwen3moe-s2"));

  conditions.environment["OFFSTAGE_MODEL"] = folder_ / "no-such.gguf";
  const Outcome wrong = run_without_model(conditions);
  EXPECT_EQ(wrong.code, 1);
  EXPECT_THAT(wrong.err, HasSubstr("no-such.gguf"));
}

TEST_F(DefaultModelTest, WhereThereIsNoneThePlacesAreListed) {
  const std::vector<std::vector<std::string>> commands = {
      {"run", "-p", "x"}, {"eval", "-p", "two words"}, {"inspect"}, {"tokenize", "-p", "x"}};
  for (const auto& command : commands) {
    const Outcome outcome = offstage(command, installed());
    EXPECT_EQ(outcome.code, 1) << command[0];
    EXPECT_THAT(outcome.err, AllOf(HasSubstr(fs::path("bin") / kDemo),
                                   HasSubstr(fs::path("share/offstage") / kDemo),
                                   HasSubstr("OFFSTAGE_MODEL"), HasSubstr("-m")))
        << command[0];
  }
}

}  // namespace
}  // namespace offstage
