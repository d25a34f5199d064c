// The fuzzer's start corpus (tests/fuzz/corpus/gguf): as committed, each seed says what it should.
// After a change of the builder, write it anew with
//   offstage_io_tests --gtest_also_run_disabled_tests --gtest_filter='*WriteSeeds'
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "io/gguf.h"
#include "tests/io/gguf_builder.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using testing::Bytes;
using testing::GgufBuilder;

std::string seed_path(const std::string& name) {
  return std::string(OFFSTAGE_TEST_DATA) + "/../fuzz/corpus/gguf/" + name;
}

std::map<std::string, Bytes> seeds() {
  std::map<std::string, Bytes> seeds;
  seeds["tiny.gguf"] = testing::tiny_model().build();
  GgufBuilder empty;
  seeds["empty.gguf"] = empty.build();
  GgufBuilder v2;
  v2.version = 2;
  v2.alignment = 8;
  v2.add_uint32("general.alignment", 8).add_tensor("t", TensorType::kF32, {2});
  seeds["v2.gguf"] = v2.build();
  GgufBuilder values;
  for (uint32_t type = 0; type <= 12; ++type) {
    if (type == 8 || type == 9) continue;
    values.add_raw(fmt::format("s{}", type), type,
                   Bytes(type >= 10               ? 8
                         : type >= 4 && type != 7 ? 4
                         : type >= 2 && type != 7 ? 2
                                                  : 1));
  }
  values.add_string("s8", "text").add_strings("a8", {"a", "b", ""});
  values.add_array<uint8_t>("a0", GgufValueType::kUint8, {1, 2});
  values.add_array<uint8_t>("a7", GgufValueType::kBool, {1, 0});
  values.add_array<int64_t>("a11", GgufValueType::kInt64, {-1});
  values.add_array<float>("a6", GgufValueType::kFloat32, {0.5f});
  seeds["values.gguf"] = values.build();
  GgufBuilder types;
  for (const TensorType type : {TensorType::kF16, TensorType::kBF16, TensorType::kQ5_0,
                                TensorType::kQ8_0, TensorType::kMXFP4})
    types.add_tensor(std::string(tensor_type_traits(type).name), type, {32, 1, 2});
  for (const TensorType type : {TensorType::kQ2_K, TensorType::kQ3_K, TensorType::kQ4_K,
                                TensorType::kQ5_K, TensorType::kQ6_K})
    types.add_tensor(std::string(tensor_type_traits(type).name), type, {256});
  seeds["types.gguf"] = types.build();
  return seeds;
}

TEST(GgufSeeds, AreWhatTheBuilderWrites) {
  for (const auto& [name, bytes] : seeds()) {
    SCOPED_TRACE(name);
    EXPECT_EQ(testing::read_file(seed_path(name)), bytes);
    const auto model = GgufModel::open(seed_path(name));
    EXPECT_TRUE(model) << model.error().message;
  }
}

TEST(GgufSeeds, DISABLED_WriteSeeds) {
  for (const auto& [name, bytes] : seeds()) testing::write_file(seed_path(name), bytes);
}

}  // namespace
}  // namespace offstage
