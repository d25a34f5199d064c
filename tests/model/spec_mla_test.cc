// Latent attention as files state it: widths of both layouts, YaRN's share of the scale.
#include <gmock/gmock.h>

#include <cmath>

#include "model/spec.h"
#include "tests/model/moe_gguf.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using testing::as_float32;
using testing::as_text;
using testing::as_uint32;
using ::testing::HasSubstr;
using testing::KeyEdits;
using testing::left_out;
using testing::moe_model;
using testing::MoeShape;

// Metadata of a DeepSeek file of the newer layout, 4 heads of 24 + 8.
Result<ModelSpec> deepseek(KeyEdits edits = {}, bool selection_bias = false) {
  MoeShape shape;
  shape.architecture = "deepseek2";
  edits.try_emplace("attention.head_count_kv", as_uint32(1));
  edits.try_emplace("attention.key_length", as_uint32(56));
  edits.try_emplace("attention.value_length", as_uint32(48));
  edits.try_emplace("attention.key_length_mla", as_uint32(32));
  edits.try_emplace("attention.value_length_mla", as_uint32(20));
  edits.try_emplace("attention.kv_lora_rank", as_uint32(48));
  edits.try_emplace("rope.dimension_count", as_uint32(8));
  testing::GgufBuilder builder = moe_model(shape, edits);
  if (selection_bias) builder.add_tensor("blk.0.exp_probs_b.bias", TensorType::kF32, {4});
  return ModelSpec::from_gguf(testing::parse(builder));
}

ModelSpec good(KeyEdits edits = {}) {
  const auto spec = deepseek(std::move(edits));
  EXPECT_TRUE(spec) << (spec ? "" : spec.error().message);
  return spec.value_or(ModelSpec());
}

KeyEdits yarn(float factor, float log_multiplier) {
  return {{"rope.scaling.type", as_text("yarn")},
          {"rope.scaling.factor", as_float32(factor)},
          {"rope.scaling.original_context_length", as_uint32(64)},
          {"rope.scaling.yarn_log_multiplier", as_float32(log_multiplier)}};
}

TEST(SpecMlaTest, NewerFilesStateCachedRowsAndHeadsApart) {
  const ModelSpec spec = good({{"attention.q_lora_rank", as_uint32(40)}});
  const MlaSpec& mla = spec.attention.mla;
  EXPECT_EQ(mla.kv_rank, 48u);
  EXPECT_EQ(mla.q_rank, 40u);
  EXPECT_EQ(mla.nope_dim, 24u);
  EXPECT_EQ(mla.rope_dim, 8u);
  EXPECT_EQ(mla.v_dim, 20u);
  EXPECT_FALSE(mla.joint_kv_b);
  EXPECT_EQ(spec.attention.n_kv_heads, 1u);
  EXPECT_EQ(spec.attention.head_dim_k, 56u);
  EXPECT_EQ(spec.attention.head_dim_v, 48u);
  EXPECT_EQ(spec.rotary.kind, RotaryKind::kAdjacentPairs);
  EXPECT_FLOAT_EQ(spec.attention.scale, 1 / std::sqrt(32.0f));
}

TEST(SpecMlaTest, OlderFilesStateHeadsAlone) {
  const ModelSpec spec = good({{"attention.head_count_kv", as_uint32(4)},
                               {"attention.key_length", as_uint32(32)},
                               {"attention.value_length", as_uint32(20)},
                               {"attention.key_length_mla", left_out()},
                               {"attention.value_length_mla", left_out()}});
  const MlaSpec& mla = spec.attention.mla;
  EXPECT_TRUE(mla.joint_kv_b);
  EXPECT_EQ(mla.nope_dim, 24u);
  EXPECT_EQ(mla.v_dim, 20u);
  EXPECT_EQ(mla.q_rank, 0u);
  EXPECT_EQ(spec.attention.n_kv_heads, 1u);
  EXPECT_EQ(spec.attention.head_dim_k, 56u);
  EXPECT_EQ(spec.attention.head_dim_v, 48u);
}

// A rank of 0 says what an absent one does: V2-Lite compresses no queries.
TEST(SpecMlaTest, NoQueryRankIsZeroOrAbsent) {
  EXPECT_EQ(good({{"attention.q_lora_rank", as_uint32(0)}}).attention.mla.q_rank, 0u);
}

TEST(SpecMlaTest, YarnScalesTheWholeScoreAndNotTheAngles) {
  for (const float mscale : {0.707f, 1.0f, 1.3f}) {
    const ModelSpec spec = good(yarn(40, 0.1f * mscale));
    const double m = 1 + 0.1 * double{mscale} * std::log(40.0);
    EXPECT_NEAR(spec.attention.scale, m * m / std::sqrt(32.0), 1e-6) << mscale;
    EXPECT_EQ(spec.rotary.magnitude, 1.0f);
    EXPECT_EQ(spec.rotary.scaling, RotaryScaling::kYarn);
    EXPECT_EQ(spec.rotary.context_original, 64u);
  }
}

TEST(SpecMlaTest, YarnWithoutAMultiplierScalesBoth) {
  KeyEdits edits = yarn(8, 0);
  edits["rope.scaling.yarn_log_multiplier"] = left_out();
  const ModelSpec spec = good(edits);
  const double m = 1 + 0.1 * std::log(8.0);
  EXPECT_NEAR(spec.rotary.magnitude, m, 1e-6);
  EXPECT_NEAR(spec.attention.scale, m * m / std::sqrt(32.0), 1e-6);
}

TEST(SpecMlaTest, AFactorOfOneScalesNothing) {
  EXPECT_FLOAT_EQ(good(yarn(1, 0.1f)).attention.scale, 1 / std::sqrt(32.0f));
}

TEST(SpecMlaTest, UnstatedScoresAreV2sUnlessABiasChooses) {
  EXPECT_EQ(good().router.score, RouterScore::kSoftmax);
  EXPECT_FALSE(good().router.selection_bias);
  const auto biased = deepseek({}, true);
  ASSERT_TRUE(biased);
  EXPECT_EQ(biased->router.score, RouterScore::kSigmoid);
  EXPECT_TRUE(biased->router.selection_bias);
  EXPECT_EQ(deepseek({{"expert_gating_func", as_uint32(1)}}, true)->router.score,
            RouterScore::kSoftmax);
}

struct BadMla {
  const char* key;
  testing::KeyEdit edit;
  const char* says;
};

class BadMlaTest : public ::testing::TestWithParam<BadMla> {};

TEST_P(BadMlaTest, IsAnErrorThatNamesTheKey) {
  KeyEdits edits;
  edits[GetParam().key] = GetParam().edit;
  const auto spec = deepseek(std::move(edits));
  ASSERT_FALSE(spec);
  EXPECT_THAT(spec.error().message, AllOf(HasSubstr(std::string("deepseek2.") + GetParam().key),
                                          HasSubstr(GetParam().says)));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, BadMlaTest,
    ::testing::Values(
        BadMla{"attention.key_length_mla", as_uint32(8), "more than rope.dimension_count 8"},
        BadMla{"attention.kv_lora_rank", left_out(), "attention.kv_lora_rank"},
        BadMla{"attention.kv_lora_rank", as_uint32(0), "expected 1 to"},
        BadMla{"attention.kv_lora_rank", as_uint32(1u << 20), "together at most"},
        BadMla{"attention.value_length_mla", as_uint32(0), "expected 1 to"},
        BadMla{"attention.q_lora_rank", as_uint32(1u << 30), "attention.q_lora_rank"},
        BadMla{"attention.temperature_scale", as_float32(0.1f), "grows with the position"},
        BadMla{"rope.scaling.type", as_text("linear"), "none or yarn"}));

}  // namespace
}  // namespace offstage
