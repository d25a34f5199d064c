// What a model needs and what it would do, as a person asks.
#include <gmock/gmock.h>

#include <fstream>

#include "tests/app/json_schema.h"
#include "tests/app/program.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Outcome;
using testing::SchemaCheck;

constexpr const char* kModel = "micro-qwen3moe-q4_k_m";
using PlanTest = testing::ProgramTest;

TEST_F(PlanTest, AShapeNeedsWhatItsNameDoesNotSay) {
  const Outcome outcome =
      offstage({"plan", "--shape", "mixtral-8x7b", "--ram", "1G,5G,64G", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_THAT(SchemaCheck("plan.json").problems(json), IsEmpty());
  EXPECT_EQ(json["total_params"], 46'702'792'704);
  EXPECT_EQ(json["active_vocabulary"], "embedding_and_output");
  EXPECT_EQ(json["nominal"]["total_b"], 56);
  EXPECT_EQ(json["kv_bytes_per_token"], 131072);
  EXPECT_GT(json["weights_bytes"]["f16"], 93'000'000'000);
  ASSERT_EQ(json["cells"].size(), 3u);
  EXPECT_EQ(json["cells"][0]["fit"], "below_floor");
  EXPECT_EQ(json["cells"][1]["fit"], "from_drive");
  EXPECT_EQ(json["cells"][2]["fit"], "resident");
  EXPECT_TRUE(json["cells"][2]["decode_tok_s"].is_null());
  const Outcome table = offstage({"plan", "--shape", "mixtral-8x7b"});
  EXPECT_THAT(table.out, HasSubstr("8 x 7 B = 56 B"));
  EXPECT_THAT(table.out, HasSubstr("46.70 B total"));
}

TEST_F(PlanTest, ListsItsShapes) {
  const Outcome table = offstage({"plan", "--shapes"});
  ASSERT_EQ(table.code, 0) << table.err;
  for (const char* name : {"mixtral-8x7b", "moe-16x8b", "dense-70b", "gpt-oss-120b", "kimi-k2"})
    EXPECT_THAT(table.out, HasSubstr(name));
  EXPECT_GT(offstage({"plan", "--shapes", "--json"}).json()["shapes"].size(), 14u);
}

// A file's own sizes, and what `inspect` says of it.
TEST_F(PlanTest, AFileIsPlannedAsItIs) {
  const Outcome outcome = offstage({"plan", "-m", model(kModel), "--ram", "64M,1G", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = outcome.json();
  EXPECT_THAT(SchemaCheck("plan.json").problems(json), IsEmpty());
  const auto card = offstage({"inspect", "-m", model(kModel), "--json"}).json();
  for (const char* same : {"total_params", "active_params", "experts_bytes", "dense_bytes"})
    EXPECT_EQ(json[same], card[same]) << same;
  EXPECT_EQ(json["quant"], "file");
  EXPECT_TRUE(json["weights_bytes"].contains("file"));
}

TEST_F(PlanTest, SaysWhatItCantDo) {
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "-m", model(kModel)}).code, 2);
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "--quant", "q9"}).code, 2);
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "--quant", "mxfp4"}).code, 2);
  EXPECT_EQ(offstage({"plan", "--shape", "dense-7b", "--ram", "much"}).code, 2);
  const Outcome unknown = offstage({"plan", "--shape", "gpt-5"});
  EXPECT_EQ(unknown.code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("mixtral-8x7b"));
  const std::string config = folder_ / "config.json";
  std::ofstream(config) << R"({"model_type": "mamba"})";
  const Outcome other = offstage({"plan", "--hf-config", config});
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.err, HasSubstr("mamba"));
}

}  // namespace
}  // namespace offstage
