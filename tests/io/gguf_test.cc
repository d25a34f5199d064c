#include "io/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "tests/io/gguf_builder.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using testing::Bytes;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::tiny_model;

Result<GgufModel> parse(const Bytes& bytes) {
  return GgufModel::parse("tiny.gguf", bytes, bytes.size());
}

GgufModel parse_or_fail(const Bytes& bytes) {
  Result<GgufModel> model = parse(bytes);
  EXPECT_TRUE(model) << model.error().message;
  return model ? std::move(*model) : GgufModel();
}

TEST(Gguf, ReadsTheDirectoryWithAbsoluteOffsets) {
  GgufBuilder builder = tiny_model();
  const Bytes bytes = builder.build();
  const GgufModel model = parse_or_fail(bytes);
  ASSERT_EQ(model.tensors().size(), 3u);
  const GgufTensor& experts = model.tensors()[1];
  EXPECT_EQ(experts.name, "blk.0.ffn_gate_exps.weight");
  EXPECT_EQ(experts.type, TensorType::kQ4_0);
  EXPECT_EQ(experts.n_dims, 3u);
  EXPECT_THAT(experts.dims, ElementsAre(32, 2, 2, 1));
  EXPECT_EQ(experts.elements(), 128u);
  EXPECT_EQ(experts.bytes, 4u * 18u);
  EXPECT_EQ(experts.offset, builder.data_offset(experts.name));
  EXPECT_EQ(experts.info_offset, builder.info_offset(experts.name));
  ASSERT_EQ(model.shards().size(), 1u);
  EXPECT_EQ(model.shards()[0].version, 3u);
  EXPECT_EQ(model.shards()[0].tensors, 3u);
  EXPECT_EQ(model.shards()[0].header_bytes, builder.data_offset("token_embd.weight"));
  EXPECT_EQ(model.total_file_bytes(), bytes.size());
  EXPECT_EQ(model.path(), "tiny.gguf");
}

TEST(Gguf, FindsTensorsByName) {
  const GgufModel model = parse_or_fail(tiny_model().build());
  for (const GgufTensor& tensor : model.tensors()) {
    EXPECT_EQ(model.find_tensor(tensor.name), &tensor);
    EXPECT_EQ(model.tensor(tensor.name).value(), &tensor);
  }
  EXPECT_EQ(model.find_tensor("blk.0"), nullptr);
  const auto missing = model.tensor("blk.7.attn_q.weight");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("tiny.gguf: tensor 'blk.7.attn_q.weight'"));
}

TEST(Gguf, WidensEveryScalar) {
  GgufBuilder builder;
  builder.add<uint8_t>("u8", GgufValueType::kUint8, 255);
  builder.add<int8_t>("i8", GgufValueType::kInt8, -128);
  builder.add<uint16_t>("u16", GgufValueType::kUint16, 65535);
  builder.add<int16_t>("i16", GgufValueType::kInt16, 32767);
  builder.add<uint64_t>("u64", GgufValueType::kUint64, std::numeric_limits<uint64_t>::max());
  builder.add<int64_t>("i64", GgufValueType::kInt64, 1ll << 40);
  builder.add<double>("f64", GgufValueType::kFloat64, 1e300);
  builder.add<int32_t>("i32", GgufValueType::kInt32, -7);
  const GgufModel model = parse_or_fail(builder.build());
  EXPECT_EQ(model.require_uint("u8").value(), 255u);
  EXPECT_EQ(model.require_uint("u16").value(), 65535u);
  EXPECT_EQ(model.require_uint("i16").value(), 32767u);
  EXPECT_EQ(model.require_uint("u64").value(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(model.require_uint("i64").value(), 1ull << 40);
  EXPECT_EQ(model.require_float("f64").value(), 1e300);
  EXPECT_EQ(std::get<int64_t>(model.find("i8")->value), -128);
  EXPECT_EQ(std::get<int64_t>(model.find("i32")->value), -7);
  EXPECT_EQ(model.find("i32")->offset, builder.value_offset("i32"));
}

TEST(Gguf, KeepsArraysWidened) {
  GgufBuilder builder = tiny_model();
  builder.add_array<uint8_t>("bytes", GgufValueType::kUint8, {0, 255});
  builder.add_array<int16_t>("shorts", GgufValueType::kInt16, {-1, 1});
  builder.add_array<double>("doubles", GgufValueType::kFloat64, {0.5});
  builder.add_array<uint8_t>("bools", GgufValueType::kBool, {1, 0, 1});
  builder.add_array<uint64_t>("none", GgufValueType::kUint64, {});
  const GgufModel model = parse_or_fail(builder.build());
  const GgufArray* tokens = model.require_array("tokenizer.ggml.tokens").value();
  EXPECT_EQ(tokens->element_type, GgufValueType::kString);
  EXPECT_THAT(std::get<std::vector<std::string>>(tokens->values),
              ElementsAre("<s>", "", "a token longer than fifteen bytes"));
  const auto values = [&](const char* key) { return model.require_array(key).value()->values; };
  EXPECT_THAT(std::get<std::vector<int64_t>>(values("tokenizer.ggml.token_type")),
              ElementsAre(3, 1, -1));
  EXPECT_THAT(std::get<std::vector<double>>(values("tokenizer.ggml.scores")),
              ElementsAre(0.0, -1.0, -2.0));
  EXPECT_THAT(std::get<std::vector<uint64_t>>(values("bytes")), ElementsAre(0u, 255u));
  EXPECT_THAT(std::get<std::vector<int64_t>>(values("shorts")), ElementsAre(-1, 1));
  EXPECT_THAT(std::get<std::vector<double>>(values("doubles")), ElementsAre(0.5));
  EXPECT_THAT(std::get<std::vector<bool>>(values("bools")), ElementsAre(true, false, true));
  EXPECT_EQ(model.require_array("none").value()->size(), 0u);
}

struct Access {
  const char* name;
  Result<int> (*get)(const GgufModel&);
  ErrorCode code;
  const char* key;
  const char* message;
};

template <typename T>
Result<int> outcome(const Result<T>& result) {
  if (!result) return tl::unexpected(result.error());
  return 0;
}

GgufBuilder model_for_access() {
  GgufBuilder builder = tiny_model();
  builder.add<int32_t>("negative", GgufValueType::kInt32, -1);
  builder.add_float32("nan", std::numeric_limits<float>::quiet_NaN());
  builder.add_float32("inf", std::numeric_limits<float>::infinity());
  return builder;
}

constexpr Access kAccesses[] = {
    {"UintOfString",
     [](const GgufModel& m) { return outcome(m.find_uint("general.architecture")); },
     ErrorCode::kCorrupt, "general.architecture", "expected an integer, actual string"},
    {"UintOfBool",
     [](const GgufModel& m) { return outcome(m.find_uint("tokenizer.ggml.add_bos_token")); },
     ErrorCode::kCorrupt, "tokenizer.ggml.add_bos_token", "expected an integer, actual bool"},
    {"UintNegative", [](const GgufModel& m) { return outcome(m.require_uint("negative")); },
     ErrorCode::kCorrupt, "negative", "expected 0 or more, actual -1"},
    {"FloatOfUint", [](const GgufModel& m) { return outcome(m.find_float("llama.expert_count")); },
     ErrorCode::kCorrupt, "llama.expert_count", "expected a float, actual uint32"},
    {"FloatNan", [](const GgufModel& m) { return outcome(m.require_float("nan")); },
     ErrorCode::kCorrupt, "nan", "expected a finite number, actual nan"},
    {"FloatInf", [](const GgufModel& m) { return outcome(m.find_float("inf")); },
     ErrorCode::kCorrupt, "inf", "expected a finite number, actual inf"},
    {"BoolOfUint", [](const GgufModel& m) { return outcome(m.find_bool("llama.expert_count")); },
     ErrorCode::kCorrupt, "llama.expert_count", "expected bool, actual uint32"},
    {"StringOfArray",
     [](const GgufModel& m) { return outcome(m.require_string("tokenizer.ggml.tokens")); },
     ErrorCode::kCorrupt, "tokenizer.ggml.tokens", "expected string, actual array"},
    {"ArrayOfUint",
     [](const GgufModel& m) { return outcome(m.require_array("llama.expert_count")); },
     ErrorCode::kCorrupt, "llama.expert_count", "expected array, actual uint32"},
};

TEST(Gguf, TypedAccessNamesWhatIsWrong) {
  GgufBuilder builder = model_for_access();
  const GgufModel model = parse_or_fail(builder.build());
  for (const Access& access : kAccesses) {
    SCOPED_TRACE(access.name);
    const Result<int> result = access.get(model);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, access.code);
    EXPECT_EQ(result.error().message,
              fmt::format("tiny.gguf: key '{}' at byte {}: {}", access.key,
                          builder.value_offset(access.key), access.message));
  }
}

TEST(Gguf, AbsentKeysAreNulloptOrNotFound) {
  const GgufModel model = parse_or_fail(tiny_model().build());
  EXPECT_EQ(model.find("nothing"), nullptr);
  EXPECT_EQ(model.find_uint("nothing").value(), std::nullopt);
  EXPECT_EQ(model.find_float("nothing").value(), std::nullopt);
  EXPECT_EQ(model.find_bool("nothing").value(), std::nullopt);
  EXPECT_EQ(model.find_string("nothing").value(), std::nullopt);
  EXPECT_EQ(model.find_array("nothing").value(), nullptr);
  for (const Result<int>& result :
       {outcome(model.require_uint("nothing")), outcome(model.require_float("nothing")),
        outcome(model.require_string("nothing")), outcome(model.require_array("nothing"))}) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kNotFound);
    EXPECT_THAT(result.error().message, HasSubstr("tiny.gguf: key 'nothing'"));
  }
}

TEST(Gguf, TakesVersion2AndOtherAlignments) {
  GgufBuilder builder;
  builder.version = 2;
  builder.alignment = 4096;
  builder.add_uint32("general.alignment", 4096);
  builder.add_tensor("a", TensorType::kF16, {10});
  builder.add_tensor("b", TensorType::kBF16, {1, 1, 1, 2});
  const GgufModel model = parse_or_fail(builder.build());
  ASSERT_EQ(model.tensors().size(), 2u);
  EXPECT_EQ(model.shards()[0].version, 2u);
  EXPECT_EQ(model.shards()[0].alignment, 4096u);
  EXPECT_EQ(model.tensors()[0].offset, 4096u);
  EXPECT_EQ(model.tensors()[1].offset, 8192u);
}

TEST(Gguf, TakesFilesWithoutTensors) {
  GgufBuilder builder;
  builder.add_strings("tokenizer.ggml.tokens", {"a", "b"});
  Bytes bytes = builder.build();
  EXPECT_EQ(parse_or_fail(bytes).tensors().size(), 0u);
  bytes.resize((bytes.size() + 31) / 32 * 32);  // some writers pad, some don't
  EXPECT_EQ(parse_or_fail(bytes).shards()[0].header_bytes, bytes.size());
  GgufBuilder nothing;
  EXPECT_EQ(parse_or_fail(nothing.build()).metadata().size(), 0u);
}

TEST(Gguf, TakesAFileThatEndsWithItsLastTensor) {
  GgufBuilder builder = tiny_model();
  builder.pads_last_tensor = false;
  EXPECT_EQ(parse_or_fail(builder.build()).tensors().size(), 3u);
}

TEST(Gguf, NeedsOnlyTheHeaderInMemory) {
  GgufBuilder builder = tiny_model();
  const Bytes bytes = builder.build();
  const std::span<const std::byte> whole(bytes);
  const uint64_t header_bytes = builder.data_offset("token_embd.weight");
  EXPECT_TRUE(GgufModel::parse("tiny.gguf", whole.first(header_bytes), bytes.size()));
  for (const uint64_t n : {header_bytes - 1, builder.info_offset("output_norm.weight"),
                           builder.value_offset("tokenizer.ggml.tokens") + 22}) {
    const auto part = GgufModel::parse("tiny.gguf", whole.first(n), bytes.size());
    ASSERT_FALSE(part);
    EXPECT_EQ(part.error().code, ErrorCode::kTruncated);
    EXPECT_THAT(part.error().message, HasSubstr(fmt::format("only the file's first {} bytes", n)));
  }
}

// Arrays and strings across many of the reader's windows, against the same bytes in memory.
TEST(Gguf, ReadsHeadersLongerThanItsWindow) {
  std::vector<std::string> tokens;
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 100'000; ++i) {
    tokens.push_back(
        std::string(static_cast<size_t>(i * 7919 % 41), static_cast<char>('a' + i % 26)));
    numbers.push_back(static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15);
  }
  tokens.push_back(std::string(700'000, 'x'));
  GgufBuilder builder = tiny_model();
  builder.add_strings("tokens", tokens).add_array("numbers", GgufValueType::kUint64, numbers);
  const Bytes bytes = builder.build();
  const testing::TempFolder folder;
  testing::write_file(folder / "long.gguf", bytes);
  const Result<GgufModel> file = GgufModel::open(folder / "long.gguf");
  ASSERT_TRUE(file) << file.error().message;
  const GgufModel memory = parse_or_fail(bytes);
  for (const GgufModel* model : {&*file, &memory}) {
    EXPECT_EQ(std::get<std::vector<std::string>>(model->require_array("tokens").value()->values),
              tokens);
    EXPECT_EQ(std::get<std::vector<uint64_t>>(model->require_array("numbers").value()->values),
              numbers);
    EXPECT_EQ(model->tensors()[2].offset, builder.data_offset("output_norm.weight"));
  }
}

TEST(Gguf, OpensOnlyRegularFiles) {
  const testing::TempFolder folder;
  ASSERT_EQ(::mkfifo((folder / "fifo.gguf").c_str(), 0600), 0);
  for (const std::string& path : {folder / "fifo.gguf", folder.path(), std::string("/dev/zero")}) {
    const auto model = GgufModel::open(path);
    ASSERT_FALSE(model);
    EXPECT_EQ(model.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(model.error().message, HasSubstr(path + ": expected a regular file"));
  }
  const auto missing = GgufModel::open(folder / "missing.gguf");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr(folder / "missing.gguf"));
}

}  // namespace
}  // namespace offstage
