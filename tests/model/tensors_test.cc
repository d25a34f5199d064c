// Which tensor plays which role, and which shapes can't.
#include "model/tensors.h"

#include <gmock/gmock.h>

#include "tests/model/moe_gguf.h"

namespace offstage {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::moe_model;
using testing::MoeShape;
using ::testing::Not;
using testing::shape_of_family;

struct Read {
  GgufModel gguf;
  ModelSpec spec;
  Result<ModelTensors> tensors;
};

// `tensors` points into `gguf`: the pair stays together on the heap.
std::unique_ptr<Read> read(GgufBuilder& builder) {
  auto read = std::make_unique<Read>();
  read->gguf = testing::parse(builder);
  auto spec = ModelSpec::from_gguf(read->gguf);
  CHECK(spec.has_value());
  read->spec = std::move(*spec);
  read->tensors = ModelTensors::from_gguf(read->gguf, read->spec);
  return read;
}

class TensorsOfFamily : public ::testing::TestWithParam<const char*> {};

TEST_P(TensorsOfFamily, EveryRoleIsFilledAndEveryTensorHasOne) {
  GgufBuilder builder = moe_model(shape_of_family(GetParam()));
  const auto model = read(builder);
  ASSERT_TRUE(model->tensors) << model->tensors.error().message;
  const ModelTensors& tensors = *model->tensors;
  ASSERT_EQ(tensors.layers.size(), 2u);
  const LayerTensors& layer = tensors.layers[1];
  EXPECT_EQ(layer.q->name, "blk.1.attn_q.weight");
  EXPECT_EQ(layer.router->name, "blk.1.ffn_gate_inp.weight");
  EXPECT_EQ(layer.down_experts->name, "blk.1.ffn_down_exps.weight");
  EXPECT_EQ(tensors.output->name, "output.weight");
  EXPECT_EQ(tensors.rope_factors, nullptr);
  EXPECT_EQ(layer.q_bias != nullptr, model->spec.attention.qkv_bias);
  EXPECT_EQ(layer.k_norm != nullptr, model->spec.attention.qk_norm != QkNorm::kNone);
  EXPECT_EQ(layer.shared.down != nullptr, model->spec.shared_ffn != 0);
  EXPECT_EQ(layer.shared_gate_input != nullptr, model->spec.shared_gate);
  // Dense and experts together are the file.
  EXPECT_EQ(tensors.dense().size() + 3 * 2, model->gguf.tensors().size());
}

TEST_P(TensorsOfFamily, DenseIsInFileOrderWithoutExperts) {
  GgufBuilder builder = moe_model(shape_of_family(GetParam()));
  const auto model = read(builder);
  ASSERT_TRUE(model->tensors);
  const std::vector<const GgufTensor*> dense = model->tensors->dense();
  for (size_t i = 0; i + 1 < dense.size(); ++i) EXPECT_LT(dense[i]->offset, dense[i + 1]->offset);
  for (const LayerTensors& layer : model->tensors->layers) {
    EXPECT_THAT(dense, Not(Contains(layer.up_experts)));
    EXPECT_THAT(dense, Contains(layer.router));
  }
  for (const GgufTensor* vector : model->tensors->vectors()) {
    EXPECT_THAT(dense, Contains(vector));
    EXPECT_EQ(vector->elements(), vector->dims[0]);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TensorsOfFamily,
                         ::testing::Values("llama", "olmoe", "qwen2moe", "qwen3moe"));

TEST(TensorsTest, ATiedOutputIsTheEmbedding) {
  GgufBuilder builder = moe_model(shape_of_family("llama"));
  builder.tensor("output.weight").name = "unused.weight";
  const auto refused = read(builder);
  ASSERT_FALSE(refused->tensors);  // and a tensor of no role is none too many
  EXPECT_EQ(refused->tensors.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(refused->tensors.error().message,
              AllOf(HasSubstr("'unused.weight'"),
                    HasSubstr(fmt::format("offset {}", builder.info_offset("unused.weight")))));

  GgufBuilder tied;
  const MoeShape shape = shape_of_family("llama");
  testing::add_metadata(shape, {}, tied);
  tied.add_tensor("token_embd.weight", TensorType::kF32, {shape.hidden, shape.n_vocab});
  tied.add_tensor("output_norm.weight", TensorType::kF32, {shape.hidden});
  for (uint32_t l = 0; l < shape.n_layers; ++l)
    testing::add_layer(shape, fmt::format("blk.{}.", l), tied);
  const auto model = read(tied);
  ASSERT_TRUE(model->tensors) << model->tensors.error().message;
  EXPECT_EQ(model->tensors->output, model->tensors->embedding);
  const auto dense = model->tensors->dense();
  EXPECT_EQ(std::count(dense.begin(), dense.end(), model->tensors->embedding), 1);
}

TEST(TensorsTest, RotaryFactorsAreFoundWhereTheyAre) {
  GgufBuilder builder = moe_model(shape_of_family("llama"));
  builder.add_tensor("rope_freqs.weight", TensorType::kF32, {8});
  const auto model = read(builder);
  ASSERT_TRUE(model->tensors) << model->tensors.error().message;
  ASSERT_NE(model->tensors->rope_factors, nullptr);
  EXPECT_THAT(model->tensors->vectors(), Contains(model->tensors->rope_factors));
}

// Older files give an expert's width only as that of all used ones, or of one.
TEST(TensorsTest, WidthsComeFromTheTensorsWhereTheKeysAreAmbiguous) {
  MoeShape shape = shape_of_family("qwen2moe");
  shape.states_expert_width = false;
  GgufBuilder builder = moe_model(shape);
  const auto model = read(builder);
  ASSERT_TRUE(model->tensors) << model->tensors.error().message;
  EXPECT_EQ(model->spec.expert_ffn, 32u);
  EXPECT_EQ(model->spec.shared_ffn, 96u);
}

TEST(TensorsTest, ExpertsMayBeQuantisedAndRoutersToo) {
  MoeShape shape = shape_of_family("qwen3moe");
  shape.expert_type = TensorType::kQ4_0;
  GgufBuilder builder = moe_model(shape);
  builder.tensor("blk.0.ffn_gate_inp.weight").type_id = static_cast<uint32_t>(TensorType::kQ8_0);
  builder.tensor("blk.1.ffn_down_exps.weight").type_id = static_cast<uint32_t>(TensorType::kQ5_0);
  const auto model = read(builder);
  EXPECT_TRUE(model->tensors) << model->tensors.error().message;
}

struct BadTensor {
  const char* name;
  const char* tensor;
  std::vector<uint64_t> dims;  // empty: it is left out
  const char* expected;
};

class BadTensorTest : public ::testing::TestWithParam<BadTensor> {};

TEST_P(BadTensorTest, IsAnErrorWithFileTensorAndShapes) {
  GgufBuilder builder = moe_model(shape_of_family("qwen2moe"));
  GgufBuilder::Tensor& tensor = builder.tensor(GetParam().tensor);
  const bool missing = GetParam().dims.empty();
  if (missing) tensor.name = "elsewhere";
  tensor.dims = missing ? tensor.dims : GetParam().dims;
  const auto model = read(builder);
  ASSERT_FALSE(model->tensors);
  const Error& error = model->tensors.error();
  EXPECT_EQ(error.code, missing ? ErrorCode::kNotFound : ErrorCode::kCorrupt) << error.message;
  EXPECT_THAT(error.message, AllOf(HasSubstr("model.gguf"), HasSubstr(GetParam().tensor),
                                   HasSubstr(GetParam().expected)));
  if (missing) return;
  EXPECT_THAT(error.message,
              AllOf(HasSubstr(fmt::format("offset {}", builder.info_offset(GetParam().tensor))),
                    HasSubstr(fmt::format("[{}]", fmt::join(GetParam().dims, ", ")))));
}

INSTANTIATE_TEST_SUITE_P(
    Roles, BadTensorTest,
    ::testing::Values(
        BadTensor{"no_norm", "blk.1.attn_norm.weight", {}, ""},
        BadTensor{"no_router", "blk.0.ffn_gate_inp.weight", {}, ""},
        BadTensor{"no_experts", "blk.1.ffn_up_exps.weight", {}, ""},
        BadTensor{"no_bias", "blk.0.attn_k.bias", {}, ""},
        BadTensor{"no_shared_expert", "blk.1.ffn_down_shexp.weight", {}, ""},
        BadTensor{"no_output_norm", "output_norm.weight", {}, ""},
        BadTensor{"norm_too_narrow", "blk.0.attn_norm.weight", {32}, "expected shape [64]"},
        BadTensor{"q_turned", "blk.0.attn_q.weight", {64, 32}, "expected shape [64, 64]"},
        BadTensor{"kv_of_all_heads", "blk.1.attn_k.weight", {64, 64}, "expected shape [64, 32]"},
        BadTensor{"output_short", "output.weight", {64, 9}, "expected shape [64, 10]"},
        BadTensor{
            "router_of_three", "blk.1.ffn_gate_inp.weight", {64, 3}, "expected shape [64, 4]"},
        BadTensor{"three_experts", "blk.1.ffn_down_exps.weight", {32, 64, 3}, "[32, 64, 4]"},
        BadTensor{"five_experts", "blk.0.ffn_gate_exps.weight", {64, 32, 5}, "[64, 32, 4]"},
        BadTensor{"experts_turned", "blk.0.ffn_down_exps.weight", {64, 32, 4}, "[32, 64, 4]"},
        BadTensor{"experts_too_wide", "blk.1.ffn_up_exps.weight", {64, 48, 4}, "[64, 32, 4]"},
        BadTensor{"fourth_dimension", "blk.0.ffn_up_exps.weight", {64, 32, 4, 2}, "[64, 32, 4]"},
        BadTensor{"shared_width", "blk.0.ffn_up_shexp.weight", {64, 64}, "[64, 96]"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(TensorsTest, QuantisedNormsAreRefusedByTypeAndName) {
  GgufBuilder builder = moe_model(shape_of_family("qwen3moe"));
  builder.tensor("blk.1.ffn_norm.weight").type_id = static_cast<uint32_t>(TensorType::kQ8_0);
  const auto model = read(builder);
  ASSERT_FALSE(model->tensors);
  EXPECT_EQ(model->tensors.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(model->tensors.error().message,
              AllOf(HasSubstr("model.gguf"), HasSubstr("'blk.1.ffn_norm.weight'"),
                    HasSubstr("found Q8_0")));
}

// Biases that the family doesn't add would be left out of every sum.
TEST(TensorsTest, TensorsOfNoRoleAreRefused) {
  for (const char* name : {"blk.0.attn_q.bias", "blk.2.attn_norm.weight", "rope_short.weight"}) {
    GgufBuilder builder = moe_model(shape_of_family("llama"));
    builder.add_tensor(name, TensorType::kF32, {64});
    const auto model = read(builder);
    ASSERT_FALSE(model->tensors) << name;
    EXPECT_EQ(model->tensors.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(model->tensors.error().message, AllOf(HasSubstr(name), HasSubstr("'llama'")));
  }
}

}  // namespace
}  // namespace offstage
