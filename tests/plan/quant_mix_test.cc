#include "plan/quant_mix.h"

#include <gtest/gtest.h>

#include <map>

#include "plan/model_shape.h"
#include "plan/planned_model.h"

namespace offstage {
namespace {

PlannedModel model_of(const char* name, QuantMix mix) {
  const auto shape = find_shape(name);
  EXPECT_TRUE(shape);
  return imagine_model(*spec_of(*shape), shape->tied_embedding, mix);
}

// What llama-bench calls model_size, of files that llama.cpp's quantiser made: to the byte.
TEST(QuantMix, TensorsWeighWhatThoseOfPublishedFilesDo) {
  EXPECT_EQ(model_of("gpt-oss-20b", QuantMix::kMxfp4).weights_bytes, 12'096'558'336u);
  EXPECT_EQ(model_of("gpt-oss-120b", QuantMix::kMxfp4).weights_bytes, 63'374'323'968u);
  EXPECT_EQ(model_of("olmoe-1b-7b", QuantMix::kQ4_K_M).weights_bytes, 4'211'730'432u);
  EXPECT_EQ(model_of("qwen3-30b-a3b", QuantMix::kQ3_K_M).weights_bytes, 14'705'876'992u);
  EXPECT_EQ(model_of("qwen3-30b-a3b", QuantMix::kF16).weights_bytes, 61'089'832'960u);
}

struct FileSize {
  const char* name;
  QuantMix mix;
  double gb;  // of the file: a header of a few MB, which the tensors don't have
};
constexpr FileSize kFiles[] = {
    {"qwen3-30b-a3b", QuantMix::kQ4_K_M, 18.556686912},
    {"mixtral-8x22b", QuantMix::kQ4_K_M, 85.58},
    {"mixtral-8x22b", QuantMix::kQ5_K_M, 99.96},
    {"dense-7b", QuantMix::kQ4_K_M, 4.08},
    {"dense-7b", QuantMix::kQ5_K_M, 4.78},
    {"dense-70b", QuantMix::kQ4_K_M, 41.42},
    {"deepseek-v3", QuantMix::kQ4_K_M, 376.65 * 1.073741824},
};

TEST(QuantMix, FilesAreAsLongAsPublished) {
  for (const FileSize& file : kFiles) {
    const double gb = static_cast<double>(model_of(file.name, file.mix).weights_bytes) / 1e9;
    EXPECT_NEAR(gb / file.gb, 1, .0015) << file.name << " " << quant_mix_name(file.mix);
  }
}

// The finer recipes weigh more, and none is below its own blocks.
TEST(QuantMix, RecipesAreInOrder) {
  for (const char* name : {"mixtral-8x7b", "dense-7b", "deepseek-v3"}) {
    uint64_t finer = UINT64_MAX;
    for (const QuantMix mix : quant_mixes()) {
      if (mix == QuantMix::kMxfp4) continue;
      const uint64_t bytes = model_of(name, mix).weights_bytes;
      EXPECT_LT(bytes, finer) << name << " " << quant_mix_name(mix);
      finer = bytes;
    }
  }
}

// A row of 2880 isn't whole superblocks.
TEST(QuantMix, RowsThatDoNotFitGetABlockThatDoes) {
  const PlannedModel model = model_of("gpt-oss-20b", QuantMix::kQ4_K_M);
  const LayerTensors& layer = model.tensors.layers[5];
  EXPECT_EQ(layer.gate_experts->type, TensorType::kQ5_0);
  EXPECT_EQ(model.tensors.output->type, TensorType::kQ8_0);
  EXPECT_EQ(layer.o->type, TensorType::kQ4_K);  // its rows are 64 heads of 64
  EXPECT_EQ(layer.router->type, TensorType::kF32);
  EXPECT_EQ(layer.gate_bias->type, TensorType::kF32);
}

TEST(QuantMix, EightExpertsKeepKAndVIn8Bits) {
  const PlannedModel model = model_of("mixtral-8x7b", QuantMix::kQ4_K_M);
  EXPECT_EQ(model.tensors.layers[3].k->type, TensorType::kQ8_0);
  EXPECT_EQ(model.tensors.layers[3].v->type, TensorType::kQ8_0);
  EXPECT_EQ(model.tensors.layers[3].o->type, TensorType::kQ5_K);
  EXPECT_EQ(model.tensors.layers[0].down_experts->type, TensorType::kQ6_K);
  EXPECT_EQ(model.tensors.layers[4].down_experts->type, TensorType::kQ4_K);
}

TEST(QuantMix, NamesAreTheirOwnInverse) {
  for (const QuantMix mix : quant_mixes()) EXPECT_EQ(quant_mix_from_name(quant_mix_name(mix)), mix);
  EXPECT_FALSE(quant_mix_from_name("q4_k"));
}

}  // namespace
}  // namespace offstage
