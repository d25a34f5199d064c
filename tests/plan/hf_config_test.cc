#include "plan/hf_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "plan/planned_model.h"

namespace offstage {
namespace {

using Json = nlohmann::json;

uint64_t params_of(const ModelShape& shape) {
  const auto spec = spec_of(shape);
  EXPECT_TRUE(spec) << (spec ? "" : spec.error().message);
  return spec ? imagine_model(*spec, shape.tied_embedding, QuantMix::kF16).total_params : 0;
}

Json qwen3_moe() {
  return {{"model_type", "qwen3_moe"},
          {"num_hidden_layers", 48},
          {"hidden_size", 2048},
          {"vocab_size", 151936},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 4},
          {"head_dim", 128},
          {"num_experts", 128},
          {"num_experts_per_tok", 8},
          {"moe_intermediate_size", 768},
          {"intermediate_size", 6144},
          {"max_position_embeddings", 40960},
          {"decoder_sparse_step", 1},
          {"mlp_only_layers", Json::array()},
          {"tie_word_embeddings", false}};
}

Json deepseek_v3() {
  return {{"model_type", "deepseek_v3"},
          {"num_hidden_layers", 61},
          {"hidden_size", 7168},
          {"vocab_size", 129280},
          {"num_attention_heads", 128},
          {"num_key_value_heads", 128},
          {"kv_lora_rank", 512},
          {"q_lora_rank", 1536},
          {"qk_nope_head_dim", 128},
          {"qk_rope_head_dim", 64},
          {"v_head_dim", 128},
          {"n_routed_experts", 256},
          {"num_experts_per_tok", 8},
          {"moe_intermediate_size", 2048},
          {"n_shared_experts", 1},
          {"first_k_dense_replace", 3},
          {"intermediate_size", 18432},
          {"moe_layer_freq", 1},
          {"num_nextn_predict_layers", 1},
          {"max_position_embeddings", 163840}};
}

Result<ModelShape> read(const Json& json) {
  return shape_from_hf_config(json.dump(), "/models/Some-Model/config.json");
}

// The same model, read from its config.json and built in.
TEST(HfConfig, IsTheShapeThatIsBuiltIn) {
  const auto qwen = read(qwen3_moe());
  ASSERT_TRUE(qwen) << qwen.error().message;
  EXPECT_EQ(qwen->name, "Some-Model");
  EXPECT_EQ(params_of(*qwen), params_of(*find_shape("qwen3-30b-a3b")));
  const auto deepseek = read(deepseek_v3());
  ASSERT_TRUE(deepseek) << deepseek.error().message;
  EXPECT_EQ(params_of(*deepseek), params_of(*find_shape("deepseek-v3")));
}

TEST(HfConfig, ReadsTheLanguageModelOfOneThatSees) {
  const auto shape = read({{"model_type", "some_vl"}, {"text_config", qwen3_moe()}});
  ASSERT_TRUE(shape) << shape.error().message;
  EXPECT_EQ(shape->n_experts, 128u);
}

TEST(HfConfig, SaysWhatIsWrongAndWhere) {
  const auto refused = [](Json json, ErrorCode code, std::string_view part) {
    const auto shape = read(json);
    ASSERT_FALSE(shape) << part;
    EXPECT_EQ(shape.error().code, code) << shape.error().message;
    EXPECT_NE(shape.error().message.find(part), std::string::npos) << shape.error().message;
    EXPECT_NE(shape.error().message.find("config.json"), std::string::npos);
  };
  const auto changed = [](std::string_view key, Json value) {
    Json json = qwen3_moe();
    json[std::string(key)] = std::move(value);
    return json;
  };
  refused(changed("model_type", "gpt2"), ErrorCode::kUnsupported, "qwen3_moe");
  refused(changed("num_experts", nullptr), ErrorCode::kNotFound, "num_experts");
  refused(changed("hidden_size", -1), ErrorCode::kCorrupt, "hidden_size");
  refused(changed("hidden_size", "wide"), ErrorCode::kCorrupt, "hidden_size");
  refused(changed("num_attention_heads", 0), ErrorCode::kCorrupt, "num_attention_heads");
  refused(changed("decoder_sparse_step", 2), ErrorCode::kUnsupported, "decoder_sparse_step");
  refused(changed("mlp_only_layers", {0, 1}), ErrorCode::kUnsupported, "mlp_only_layers");
  refused(Json::array(), ErrorCode::kCorrupt, "object");
  EXPECT_EQ(shape_from_hf_config("{", "config.json").error().code, ErrorCode::kCorrupt);
}

// Numbers that no model has are refused before anything is sized by them.
TEST(HfConfig, AbsurdSizesAreRefused) {
  for (const char* key : {"num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads",
                          "head_dim", "num_experts", "moe_intermediate_size"}) {
    Json json = qwen3_moe();
    json[key] = 4294967295u;
    const auto shape = read(json);
    ASSERT_TRUE(shape) << key;
    EXPECT_FALSE(spec_of(*shape)) << key;
  }
}

}  // namespace
}  // namespace offstage
