#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "plan/model_shape.h"
#include "plan/planned_model.h"

namespace offstage {
namespace {

PlannedModel model_of(std::string_view name, QuantMix mix = QuantMix::kF16) {
  const auto shape = find_shape(name);
  EXPECT_TRUE(shape) << name;
  const auto spec = spec_of(*shape);
  EXPECT_TRUE(spec) << (spec ? "" : spec.error().message);
  return imagine_model(*spec, shape->tied_embedding, mix);
}

// Counted by the makers' own checkpoints (the parameter counts that Hugging Face shows for their
// safetensors, general.parameter_count of their GGUFs).
struct Count {
  const char* name;
  uint64_t params;
};
constexpr Count kCounts[] = {
    {"mixtral-8x7b", 46'702'792'704},  {"mixtral-8x22b", 140'620'634'112},
    {"qwen3-30b-a3b", 30'532'122'624}, {"qwen3-235b-a22b", 235'093'634'560},
    {"gpt-oss-20b", 20'914'757'184},   {"gpt-oss-120b", 116'829'156'672},
    {"deepseek-v3", 671'026'419'200},  {"deepseek-r1", 671'026'419'200},
    {"olmoe-1b-7b", 6'919'161'856},    {"dense-7b", 6'738'415'616},
    {"dense-70b", 68'976'648'192},
};

TEST(Shapes, ParameterCountsAreThoseOfTheCheckpoints) {
  for (const Count& count : kCounts)
    EXPECT_EQ(model_of(count.name).total_params, count.params) << count.name;
}

// Of the last digit that is printed.
double unit_of(double published) {
  for (const double unit : {1.0, .1})
    if (std::abs(published / unit - std::round(published / unit)) < 1e-6) return unit;
  return .01;
}

// As their makers print them: some round, some cut (Qwen's 3.35 is 3.3).
TEST(Shapes, CountsAgreeWithWhatIsPublished) {
  for (const ModelShape& shape : known_shapes()) {
    const auto [total_b, active_b] = shape.published;
    if (total_b == 0) continue;
    const PlannedModel model = model_of(shape.name);
    // Kimi's is "1 T", MiniMax's "230 B", and GLM's holds a layer that isn't run.
    EXPECT_NEAR(static_cast<double>(model.total_params) / 1e9 / total_b, 1, .03) << shape.name;
    EXPECT_NEAR(static_cast<double>(model.active_params) / 1e9, active_b, unit_of(active_b))
        << shape.name;
  }
}

TEST(Shapes, EveryOneIsAModel) {
  std::set<std::string> names;
  for (const ModelShape& shape : known_shapes()) {
    const auto spec = spec_of(shape);
    ASSERT_TRUE(spec) << spec.error().message;
    EXPECT_TRUE(names.insert(shape.name).second) << shape.name;
    EXPECT_FALSE(shape.source.empty()) << shape.name;
    const PlannedModel model = imagine_model(*spec, shape.tied_embedding, QuantMix::kQ4_K_M);
    EXPECT_EQ(model.layout.n_layers(), spec->n_moe_layers()) << shape.name;
    EXPECT_LT(model.experts_bytes(), model.weights_bytes) << shape.name;
  }
  for (const char* name : {"mixtral-8x7b", "moe-16x8b", "dense-7b", "dense-70b", "qwen3-30b-a3b"})
    EXPECT_TRUE(names.contains(name)) << name;
}

// 8 experts "of 7 B" share attention and embeddings: 46.7 B, not 56 B.
TEST(Shapes, TheNameCountsMoreThanThereIs) {
  const auto shape = find_shape("mixtral-8x7b");
  ASSERT_TRUE(shape);
  EXPECT_EQ(shape->nominal.total_b(), 56);
  EXPECT_EQ(shape->nominal.active_b(shape->n_used), 14);
  EXPECT_LT(static_cast<double>(model_of("mixtral-8x7b").total_params) / 1e9, 47);
}

TEST(Shapes, AnUnknownNameListsTheKnownOnes) {
  const auto shape = find_shape("mixtral-9x9b");
  ASSERT_FALSE(shape);
  EXPECT_EQ(shape.error().code, ErrorCode::kNotFound);
  EXPECT_NE(shape.error().message.find("mixtral-8x7b"), std::string::npos);
}

TEST(Shapes, WhatCannotBeAModelIsRefusedByName) {
  const auto refused = [](auto change, ErrorCode code, std::string_view part) {
    ModelShape shape = *find_shape("glm-4.5");
    change(shape);
    const auto spec = spec_of(shape);
    ASSERT_FALSE(spec) << part;
    EXPECT_EQ(spec.error().code, code) << spec.error().message;
    EXPECT_NE(spec.error().message.find(part), std::string::npos) << spec.error().message;
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  refused([](ModelShape& s) { s.architecture = "gpt-2"; }, ErrorCode::kUnsupported, "gpt-2");
  refused([](ModelShape& s) { s.n_layers = 0; }, invalid, "layers");
  refused([](ModelShape& s) { s.n_kv_heads = 0; }, invalid, "KV heads");
  refused([](ModelShape& s) { s.n_kv_heads = 7; }, invalid, "divisor");
  refused([](ModelShape& s) { s.n_used = s.n_experts + 1; }, invalid, "experts called");
  refused([](ModelShape& s) { s.n_dense_layers = s.n_layers; }, invalid, "without experts");
  refused([](ModelShape& s) { s.mla.kv_rank = 512; }, invalid, "latent");
  refused([](ModelShape& s) { s.hidden = UINT32_MAX; }, invalid, "hidden");
  const auto latent = [&](auto change, std::string_view part) {
    ModelShape shape = *find_shape("deepseek-v3");
    change(shape.mla);
    const auto spec = spec_of(shape);
    ASSERT_FALSE(spec) << part;
    EXPECT_NE(spec.error().message.find(part), std::string::npos) << spec.error().message;
  };
  latent([](MlaSpec& mla) { mla.nope_dim = 0; }, "isn't rotated");
  latent([](MlaSpec& mla) { mla.rope_dim = 0; }, "is rotated");
  // Each of them is a width that there may be, all together aren't a model.
  refused([](ModelShape& s) { s.hidden = s.expert_ffn = 1u << 20; }, invalid, "parameters");
}

// The directory that a spec implies is the one that a file of the family has: the golden models'.
TEST(Shapes, ImaginedTensorsAreThoseOfRealFiles) {
  namespace fs = std::filesystem;
  uint32_t files = 0;
  for (const auto& entry : fs::directory_iterator(std::string(OFFSTAGE_TEST_DATA) + "/models")) {
    if (entry.path().extension() != ".gguf") continue;
    const auto file = ModelFile::open(entry.path());
    if (!file) continue;  // one of several shards, or damaged on purpose
    const ModelTensors& tensors = (*file)->tensors;
    const PlannedModel model =
        imagine_model((*file)->spec, tensors.output == tensors.embedding, QuantMix::kF16);
    uint64_t params = (*file)->spec.n_moe_layers() * uint64_t{(*file)->spec.router.n_experts} * 3 *
                      (*file)->spec.hidden * (*file)->spec.expert_ffn;
    for (const GgufTensor* tensor : tensors.dense()) params += tensor->elements();
    // Tables of the file, not of the model.
    for (const GgufTensor* table :
         {tensors.rope_factors, tensors.rope_factors_short, tensors.rope_factors_long})
      if (table != nullptr) params -= table->elements();
    EXPECT_EQ(model.total_params, params) << entry.path();
    ++files;
  }
  EXPECT_GT(files, 10u);
}

// Where `offstage pack` would put every matrix.
TEST(PlannedModel, SeveralDrivesAreAPackedStore) {
  std::shared_ptr<const ModelFile> file =
      *ModelFile::open(std::string(OFFSTAGE_TEST_DATA) + "/models/micro-qwen3moe-q4_k_m.gguf");
  const StoreLayout store = *file->store_layout(3);
  const PlannedModel striped = over_drives(planned_file(file), 3);
  ASSERT_EQ(striped.file_bytes.size(), 3u);
  const ExpertLayout& layout = striped.layout;
  size_t piece = 0;
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    for (uint32_t e = 0; e < layout.n_experts(); ++e)
      for (const auto matrix : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown})
        ASSERT_EQ(layout.extent(LayerIndex(l), ExpertId(e), matrix), store.extents[piece++]);
  EXPECT_EQ(piece, store.extents.size());
  EXPECT_EQ(striped.file_bytes[2], store.file_bytes);
  EXPECT_EQ(over_drives(planned_file(file), 1).layout.total_expert_bytes(),
            layout.total_expert_bytes());
}

}  // namespace
}  // namespace offstage
