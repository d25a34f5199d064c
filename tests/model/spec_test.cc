// What a header's metadata says about a model, and what no model can say.
#include "model/spec.h"

#include <gmock/gmock.h>

#include <cmath>

#include "tests/model/moe_gguf.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using testing::as_float32;
using testing::as_text;
using testing::as_uint32;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::KeyEdits;
using testing::left_out;
using testing::moe_model;
using testing::MoeShape;
using testing::shape_of_family;

Result<ModelSpec> spec_of(const MoeShape& shape, const KeyEdits& edits = {}) {
  testing::GgufBuilder builder = moe_model(shape, edits);
  return ModelSpec::from_gguf(testing::parse(builder));
}

ModelSpec good_spec(const std::string& family, const KeyEdits& edits = {}) {
  const auto spec = spec_of(shape_of_family(family), edits);
  EXPECT_TRUE(spec) << (spec ? "" : spec.error().message);
  return spec.value_or(ModelSpec());
}

TEST(SpecTest, ReadsWhatTheFileStates) {
  const ModelSpec spec = good_spec("qwen3moe");
  EXPECT_EQ(spec.architecture, "qwen3moe");
  EXPECT_EQ(spec.name, "a test");
  EXPECT_EQ(spec.n_layers, 2u);
  EXPECT_EQ(spec.hidden, 64u);
  EXPECT_EQ(spec.n_vocab, 10u);
  EXPECT_EQ(spec.context_train, 512u);
  EXPECT_EQ(spec.norm_eps, 1e-6f);
  EXPECT_EQ(spec.attention.n_heads, 4u);
  EXPECT_EQ(spec.attention.n_kv_heads, 2u);
  EXPECT_EQ(spec.attention.head_dim_k, 16u);
  EXPECT_EQ(spec.attention.head_dim_v, 16u);
  EXPECT_EQ(spec.attention.scale, 0.25f);
  EXPECT_EQ(spec.rotary.n_rot, 16u);
  EXPECT_EQ(spec.rotary.freq_base, 1e6f);
  EXPECT_EQ(spec.rotary.position_scale, 1.0f);
  EXPECT_EQ(spec.router.n_experts, 4u);
  EXPECT_EQ(spec.router.n_used, 2u);
  EXPECT_EQ(spec.expert_ffn, 32u);
  EXPECT_EQ(spec.q_width(), 64u);
  EXPECT_EQ(spec.k_width(), 32u);
}

struct FamilyFacts {
  const char* name;
  RotaryKind rotary;
  QkNorm qk_norm;
  bool qkv_bias, normalises, shared;
};

class FamilyTest : public ::testing::TestWithParam<FamilyFacts> {};

// As the families' reference implementations compute them.
TEST_P(FamilyTest, KnowsWhatTheFileDoesntSay) {
  const FamilyFacts& facts = GetParam();
  const ModelSpec spec = good_spec(facts.name);
  EXPECT_EQ(spec.rotary.kind, facts.rotary);
  EXPECT_EQ(spec.attention.qk_norm, facts.qk_norm);
  EXPECT_EQ(spec.attention.qkv_bias, facts.qkv_bias);
  EXPECT_EQ(spec.router.normalise_weights, facts.normalises);
  EXPECT_EQ(spec.shared_ffn, facts.shared ? 96u : 0u);
  EXPECT_EQ(spec.shared_gate, facts.shared);
}

INSTANTIATE_TEST_SUITE_P(
    Families, FamilyTest,
    ::testing::Values(
        FamilyFacts{"llama", RotaryKind::kAdjacentPairs, QkNorm::kNone, false, true, false},
        FamilyFacts{"olmoe", RotaryKind::kNeox, QkNorm::kWhole, false, false, false},
        FamilyFacts{"qwen2moe", RotaryKind::kNeox, QkNorm::kNone, true, false, true},
        FamilyFacts{"qwen3moe", RotaryKind::kNeox, QkNorm::kPerHead, false, true, false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(SpecTest, DefaultsWhereTheFileIsSilent) {
  const ModelSpec spec = good_spec("llama", {{"attention.head_count_kv", left_out()},
                                             {"attention.key_length", left_out()},
                                             {"attention.value_length", left_out()},
                                             {"attention.layer_norm_rms_epsilon", left_out()},
                                             {"rope.dimension_count", left_out()},
                                             {"rope.freq_base", left_out()}});
  EXPECT_EQ(spec.attention.n_kv_heads, 4u);
  EXPECT_EQ(spec.attention.head_dim_k, 16u);
  EXPECT_EQ(spec.attention.head_dim_v, 16u);
  EXPECT_EQ(spec.norm_eps, 1e-5f);
  EXPECT_EQ(spec.rotary.n_rot, 16u);
  EXPECT_EQ(spec.rotary.freq_base, 10000.0f);
}

TEST(SpecTest, LinearRotaryScalingDividesThePosition) {
  const ModelSpec spec = good_spec(
      "llama", {{"rope.scaling.type", as_text("linear")}, {"rope.scaling.factor", as_float32(4)}});
  EXPECT_EQ(spec.rotary.position_scale, 0.25f);
  EXPECT_EQ(good_spec("llama", {{"rope.scaling.type", as_text("none")}}).rotary.position_scale, 1);
}

TEST(SpecTest, AModelWithoutExpertsIsAllDense) {
  const ModelSpec spec = good_spec("llama", {{"expert_count", left_out()}});
  EXPECT_EQ(spec.router.n_experts, 0u);
  EXPECT_EQ(spec.n_dense_layers, spec.n_layers);
  EXPECT_EQ(spec.n_moe_layers(), 0u);
  EXPECT_EQ(spec.dense_ffn, 777u);
}

TEST(SpecTest, WindowsAlternate) {
  const ModelSpec spec = good_spec("gpt-oss", {{"attention.sliding_window", as_uint32(7)}});
  EXPECT_EQ(spec.attention.window_of(0), 7u);
  EXPECT_EQ(spec.attention.window_of(1), 0u);
  EXPECT_EQ(good_spec("llama").attention.window_of(0), 0u);
  EXPECT_FALSE(spec_of(shape_of_family("gpt-oss")));  // a window that isn't stated
}

TEST(SpecTest, YarnIsRead) {
  const ModelSpec spec =
      good_spec("llama", {{"rope.scaling.type", as_text("yarn")},
                          {"rope.scaling.factor", as_float32(32)},
                          {"rope.scaling.original_context_length", as_uint32(4096)},
                          {"rope.scaling.yarn_beta_fast", as_float32(16)}});
  EXPECT_EQ(spec.rotary.scaling, RotaryScaling::kYarn);
  EXPECT_EQ(spec.rotary.position_scale, 1.0f / 32);
  EXPECT_EQ(spec.rotary.context_original, 4096u);
  EXPECT_EQ(spec.rotary.beta_fast, 16.0f);
  EXPECT_EQ(spec.rotary.beta_slow, 1.0f);
  EXPECT_NEAR(spec.rotary.magnitude, 1 + 0.1 * std::log(32), 1e-6);
}

TEST(SpecTest, TheFilesRouterFunctionCounts) {
  EXPECT_EQ(good_spec("glm4moe").router.score, RouterScore::kSigmoid);
  EXPECT_EQ(good_spec("glm4moe", {{"expert_gating_func", as_uint32(1)}}).router.score,
            RouterScore::kSoftmax);
  EXPECT_EQ(good_spec("gpt-oss", {{"attention.sliding_window", as_uint32(7)}}).router.score,
            RouterScore::kSoftmaxOfChosen);
  const auto unknown = spec_of(shape_of_family("glm4moe"), {{"expert_gating_func", as_uint32(9)}});
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::kUnsupported);
}

TEST(SpecTest, PredictionLayersArentComputed) {
  const ModelSpec spec = good_spec("glm4moe", {{"nextn_predict_layers", as_uint32(1)},
                                               {"leading_dense_block_count", as_uint32(1)}});
  EXPECT_EQ(spec.n_layers, 1u);
  EXPECT_EQ(spec.n_unused_layers, 1u);
  EXPECT_EQ(spec.n_dense_layers, 1u);
  EXPECT_FALSE(spec_of(shape_of_family("glm4moe"), {{"nextn_predict_layers", as_uint32(2)}}));
}

TEST(SpecTest, GranitesScalesAreRead) {
  const ModelSpec spec = good_spec("granitemoe", {{"embedding_scale", as_float32(12)},
                                                  {"residual_scale", as_float32(0.22f)},
                                                  {"attention.scale", as_float32(0.015f)},
                                                  {"logit_scale", as_float32(8)}});
  EXPECT_EQ(spec.embedding_scale, 12.0f);
  EXPECT_EQ(spec.residual_scale, 0.22f);
  EXPECT_EQ(spec.attention.scale, 0.015f);
  EXPECT_EQ(spec.logit_scale, 0.125f);
}

TEST(SpecTest, SharedExpertsMayBeStatedByTheirNumber) {
  EXPECT_EQ(good_spec("glm4moe", {{"expert_shared_count", as_uint32(2)}}).shared_ffn, 64u);
  EXPECT_EQ(good_spec("glm4moe").shared_ffn, 0u);
}

TEST(SpecTest, RouterScaleIsRead) {
  EXPECT_EQ(good_spec("llama", {{"expert_weights_scale", as_float32(2.5f)}}).router.weights_scale,
            2.5f);
}

TEST(SpecTest, ListsTheSupportedArchitectures) {
  const auto list = supported_architectures();
  EXPECT_THAT(std::vector<std::string_view>(list.begin(), list.end()),
              ElementsAre("llama", "qwen2", "qwen3", "olmoe", "qwen2moe", "qwen3moe", "gpt-oss",
                          "glm4moe", "granitemoe", "minimax-m2", "phimoe", "deepseek2"));
}

TEST(SpecTest, AnUnsupportedArchitectureIsNamedWithTheSupportedOnes) {
  testing::GgufBuilder builder = moe_model(shape_of_family("gemma9"));
  const auto spec = ModelSpec::from_gguf(testing::parse(builder));
  ASSERT_FALSE(spec);
  EXPECT_EQ(spec.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(
      spec.error().message,
      AllOf(HasSubstr("model.gguf"), HasSubstr("general.architecture"), HasSubstr("'gemma9'"),
            HasSubstr("llama, qwen2, qwen3, olmoe, qwen2moe, qwen3moe, gpt-oss"),
            HasSubstr(fmt::format("offset {}", builder.value_offset("general.architecture")))));
}

TEST(SpecTest, AFamilyOfExpertsNeedsTheirCount) {
  const auto spec = spec_of(shape_of_family("olmoe"), {{"expert_count", left_out()}});
  ASSERT_FALSE(spec);
  EXPECT_EQ(spec.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(spec.error().message, AllOf(HasSubstr("model.gguf"), HasSubstr("olmoe.expert_count"),
                                          HasSubstr("'olmoe'")));
}

struct BadKey {
  const char* name;
  const char* key;
  testing::KeyEdit edit;
  const char* message;
  ErrorCode code = ErrorCode::kCorrupt;
};

class BadKeyTest : public ::testing::TestWithParam<BadKey> {};

TEST_P(BadKeyTest, IsAnErrorWithFileKeyAndOffset) {
  const std::string key = std::string("qwen2moe.") + GetParam().key;
  testing::GgufBuilder builder =
      moe_model(shape_of_family("qwen2moe"), {{GetParam().key, GetParam().edit}});
  const auto spec = ModelSpec::from_gguf(testing::parse(builder));
  ASSERT_FALSE(spec);
  EXPECT_EQ(spec.error().code, GetParam().code) << spec.error().message;
  EXPECT_THAT(spec.error().message,
              AllOf(HasSubstr("model.gguf"), HasSubstr(key), HasSubstr(GetParam().message)));
  if (GetParam().code == ErrorCode::kNotFound) return;  // an absent key lies nowhere
  EXPECT_THAT(spec.error().message, HasSubstr(fmt::format(" {}: ", builder.value_offset(key))));
}

testing::KeyEdit as_float64(double value) {
  return [value](testing::GgufBuilder& builder, const std::string& key) {
    builder.add(key, GgufValueType::kFloat64, value);
  };
}

INSTANTIATE_TEST_SUITE_P(
    Keys, BadKeyTest,
    ::testing::Values(
        BadKey{"no_layers", "block_count", as_uint32(0), "found 0"},
        BadKey{"too_many_layers", "block_count", as_uint32(4097), "found 4097"},
        BadKey{"layers_missing", "block_count", left_out(), "", ErrorCode::kNotFound},
        BadKey{"no_width", "embedding_length", as_uint32(0), "found 0"},
        BadKey{"wide", "embedding_length", as_uint32(1u << 21), "found 2097152"},
        BadKey{"width_missing", "embedding_length", left_out(), "", ErrorCode::kNotFound},
        BadKey{"no_context", "context_length", as_uint32(0), "found 0"},
        BadKey{"no_heads", "attention.head_count", as_uint32(0), "found 0"},
        BadKey{"heads_missing", "attention.head_count", left_out(), "", ErrorCode::kNotFound},
        BadKey{"no_kv_heads", "attention.head_count_kv", as_uint32(0), "found 0"},
        BadKey{"kv_heads_dont_divide", "attention.head_count_kv", as_uint32(3), "found 3"},
        BadKey{"kv_heads_text", "attention.head_count_kv", as_text("two"), ""},
        BadKey{"no_head_dim", "attention.key_length", as_uint32(0), "found 0"},
        BadKey{"odd_rotary", "rope.dimension_count", as_uint32(15), "found 15"},
        BadKey{"wide_rotary", "rope.dimension_count", as_uint32(18), "found 18"},
        BadKey{"no_rotary_base", "rope.freq_base", as_float32(0), "found 0"},
        BadKey{"negative_rotary_base", "rope.freq_base", as_float32(-1), "found -1"},
        BadKey{"infinite_rotary_base", "rope.freq_base", as_float32(INFINITY), ""},
        BadKey{"nan_rotary_base", "rope.freq_base", as_float32(NAN), ""},
        BadKey{"rotary_base_past_float", "rope.freq_base", as_float64(1e300), "found 1e+300"},
        BadKey{"vanishing_epsilon", "attention.layer_norm_rms_epsilon", as_float64(1e-300),
               "found 1e-300"},
        BadKey{"nan_epsilon", "attention.layer_norm_rms_epsilon", as_float32(NAN), ""},
        BadKey{"unknown_scaling", "rope.scaling.type", as_text("dynamic"), "'dynamic'",
               ErrorCode::kUnsupported},
        BadKey{"no_experts", "expert_count", as_uint32(0), "found 0"},
        BadKey{"many_experts", "expert_count", as_uint32(65537), "found 65537"},
        BadKey{"none_used", "expert_used_count", as_uint32(0), "found 0"},
        BadKey{"more_used_than_there_are", "expert_used_count", as_uint32(5), "found 5"},
        BadKey{"used_missing", "expert_used_count", left_out(), "", ErrorCode::kNotFound},
        BadKey{"no_expert_width", "expert_feed_forward_length", as_uint32(0), "found 0"},
        BadKey{"no_shared_width", "expert_shared_feed_forward_length", as_uint32(0), "found 0"},
        BadKey{"groups_that_dont_divide", "expert_group_count", as_uint32(3), "found 3"},
        BadKey{"groups_of_one", "expert_group_count", as_uint32(4), "found 4"},
        BadKey{"no_router_scale", "expert_weights_scale", as_float32(0), "found 0"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(SpecTest, HeadsWiderThanTheModelAreAnErrorWithoutALength) {
  const auto spec = spec_of(shape_of_family("llama"), {{"attention.head_count", as_uint32(128)},
                                                       {"attention.head_count_kv", as_uint32(2)},
                                                       {"attention.key_length", left_out()},
                                                       {"attention.value_length", left_out()}});
  ASSERT_FALSE(spec);
  EXPECT_EQ(spec.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(spec.error().message, HasSubstr("llama.attention.head_count"));
}

TEST(SpecTest, NoEmbeddingNoModel) {
  testing::GgufBuilder builder = moe_model(shape_of_family("llama"));
  builder.tensor("token_embd.weight").name = "token_embedding.weight";
  const auto spec = ModelSpec::from_gguf(testing::parse(builder));
  ASSERT_FALSE(spec);
  EXPECT_EQ(spec.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(spec.error().message, HasSubstr("token_embd.weight"));
}

}  // namespace
}  // namespace offstage
