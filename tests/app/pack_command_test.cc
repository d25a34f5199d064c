// Several drives as a person uses them: pack, inspect, run, and what is said when one is gone.
#include <gmock/gmock.h>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Outcome;
using testing::SchemaCheck;

class PackCommand : public testing::ProgramTest {
 protected:
  PackCommand() {
    for (const std::string& drive : drives_) std::filesystem::create_directory(drive);
  }
  std::vector<std::string> with_drives(std::vector<std::string> arguments) const {
    for (const std::string& drive : drives_) {
      arguments.push_back("--drive");
      arguments.push_back(drive);
    }
    return arguments;
  }

  const std::string name_ = "micro-qwen3moe-q4_k_m";
  std::vector<std::string> drives_ = {folder_ / "a", folder_ / "b"};
};

TEST_F(PackCommand, PackedRunsGiveTheTokensOfRunsInPlace) {
  const Outcome packed = offstage(with_drives({"pack", "-m", model(name_)}));
  ASSERT_EQ(packed.code, 0) << packed.err;
  EXPECT_THAT(packed.out, AllOf(HasSubstr("over 2 drive(s)"), HasSubstr(drives_[1])));
  EXPECT_THAT(packed.err, HasSubstr("lie on one drive"));

  const auto in_place = run(name_, {"-p", "Once", "-n", "8", "--json"}).json();
  const Outcome striped =
      run(name_, with_drives({"-p", "Once", "-n", "8", "--json", "--folders-are-drives"}));
  ASSERT_EQ(striped.code, 0) << striped.err;
  const auto json = striped.json();
  EXPECT_EQ(json["tokens"], in_place["tokens"]);
  EXPECT_THAT(SchemaCheck("run.json").problems(json), IsEmpty());
  EXPECT_EQ(in_place["drives"].size(), 1u);
  ASSERT_EQ(json["drives"].size(), 3u);  // the GGUF's own folder is the first
  for (size_t i = 1; i < 3; ++i) {
    EXPECT_EQ(json["drives"][i]["folder"], drives_[i - 1]);
    EXPECT_GT(json["drives"][i]["bytes"], 0);
  }

  const auto card =
      offstage(with_drives({"inspect", "-m", model(name_), "--experts", "--verify", "--json"}))
          .json();
  EXPECT_THAT(SchemaCheck("inspect.json").problems(card), IsEmpty());
  EXPECT_EQ(card["verify"]["mismatch_count"], 0);
  EXPECT_EQ(card["verify"]["already_known"], card["verify"]["pieces"]);
  EXPECT_GT(card["expert_extents"][0]["stripe_bytes"], 0);
  EXPECT_GE(card["expert_extents"][0]["first_stripe_shard"], card["expert_extents"][0]["shard"]);
}

TEST_F(PackCommand, WhatIsMissingIsSaid) {
  const Outcome nothing = run(name_, with_drives({"-p", "Once", "-n", "1"}));
  EXPECT_EQ(nothing.code, 1);
  EXPECT_THAT(nothing.err,
              AllOf(HasSubstr("not_found"), HasSubstr(drives_[0]), HasSubstr("offstage pack")));
  EXPECT_EQ(offstage({"pack", "-m", model(name_)}).code, 2);
  std::filesystem::remove(drives_[1]);
  const Outcome no_folder = offstage(with_drives({"pack", "-m", model(name_)}));
  EXPECT_EQ(no_folder.code, 1);
  EXPECT_THAT(no_folder.err, HasSubstr(drives_[1]));
}

}  // namespace
}  // namespace offstage
