// Models in several files: whole ones, and every way in which they can't belong together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "io/gguf.h"
#include "tests/io/gguf_builder.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::write_file;

GgufBuilder& add_split(GgufBuilder& builder, uint16_t no, uint16_t count, int32_t tensors) {
  builder.add<uint16_t>("split.no", GgufValueType::kUint16, no);
  builder.add<uint16_t>("split.count", GgufValueType::kUint16, count);
  builder.add<int32_t>("split.tensors.count", GgufValueType::kInt32, tensors);
  return builder;
}

GgufBuilder split_builder(uint16_t no, uint16_t count, int32_t tensors) {
  GgufBuilder builder;
  return add_split(builder, no, count, tensors);
}

// Shard `no` (from 0) of three with two tensors each; only the first has the metadata, as
// gguf-split writes them.
GgufBuilder shard(uint16_t no) {
  GgufBuilder builder;
  if (no == 0)
    builder.add_string("general.architecture", "llama").add_float32("x.nan", 0.0f / 0.0f);
  add_split(builder, no, 3, 6);
  builder.add_tensor(fmt::format("blk.{}.a", no), TensorType::kF32, {8});
  builder.add_tensor(fmt::format("blk.{}.b", no), TensorType::kQ8_0, {32, 2});
  return builder;
}

class GgufShards : public ::testing::Test {
 protected:
  std::string path(int number) const {
    return folder_ / fmt::format("model-{:05}-of-00003.gguf", number);
  }
  void write(int number, GgufBuilder builder) { write_file(path(number), builder.build()); }
  void write_all() {
    for (uint16_t no = 0; no < 3; ++no) write(no + 1, shard(no));
  }
  // Every shard leads to the same verdict, which begins with the name of the file at fault.
  void expect_error(ErrorCode code, int number_at_fault, const std::string& detail) {
    for (int number = 1; number <= 3; ++number) {
      if (!std::filesystem::exists(path(number))) continue;
      SCOPED_TRACE(fmt::format("opened by shard {}", number));
      const Result<GgufModel> model = GgufModel::open(path(number));
      ASSERT_FALSE(model);
      EXPECT_EQ(error_code_name(model.error().code), error_code_name(code));
      EXPECT_THAT(model.error().message, HasSubstr(detail));
      const std::string file = number_at_fault == 0 ? folder_ / "" : path(number_at_fault) + ": ";
      EXPECT_THAT(model.error().message, StartsWith(file));
    }
  }
  testing::TempFolder folder_;
};

TEST_F(GgufShards, OpenByAnyOfThem) {
  write_all();
  for (int number = 1; number <= 3; ++number) {
    const Result<GgufModel> model = GgufModel::open(path(number));
    ASSERT_TRUE(model) << model.error().message;
    ASSERT_EQ(model->shards().size(), 3u);
    ASSERT_EQ(model->tensors().size(), 6u);
    EXPECT_EQ(model->path(), path(1));
    for (uint32_t i = 0; i < 6; ++i) {
      const GgufTensor& tensor = model->tensors()[i];
      EXPECT_EQ(tensor.name, fmt::format("blk.{}.{}", i / 2, i % 2 == 0 ? 'a' : 'b'));
      EXPECT_EQ(tensor.shard, i / 2);
      EXPECT_EQ(model->find_tensor(tensor.name), &tensor);
    }
    EXPECT_EQ(model->require_uint("split.no").value(), 0u);
    EXPECT_EQ(model->require_string("general.architecture").value(), "llama");
    uint64_t total = 0;
    for (int i = 1; i <= 3; ++i) total += std::filesystem::file_size(path(i));
    EXPECT_EQ(model->total_file_bytes(), total);
  }
}

TEST_F(GgufShards, MayRepeatMetadataAndHaveAlignmentsOfTheirOwn) {
  write_all();
  GgufBuilder third = shard(2);
  third.alignment = 64;
  third.add_uint32("general.alignment", 64).add_string("general.architecture", "llama");
  third.add_float32("x.nan", 0.0f / 0.0f).add_uint32("x.only_here", 7);
  write(3, third);
  const Result<GgufModel> model = GgufModel::open(path(1));
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->shards()[0].alignment, 32u);
  EXPECT_EQ(model->shards()[2].alignment, 64u);
  EXPECT_EQ(model->require_uint("x.only_here").value(), 7u);
  EXPECT_EQ(model->find("x.only_here")->shard, 2u);
  const auto wrong = model->find_string("x.only_here");
  ASSERT_FALSE(wrong);
  EXPECT_THAT(wrong.error().message, StartsWith(path(3) + ": key 'x.only_here' at byte "));
}

TEST_F(GgufShards, FirstShardWithoutTensors) {
  GgufBuilder first;
  first.add_string("general.architecture", "llama");
  write(1, add_split(first, 0, 3, 4));
  GgufBuilder second = split_builder(1, 3, 4);
  second.add_tensor("a", TensorType::kF32, {8}).add_tensor("b", TensorType::kF32, {8});
  write(2, second);
  GgufBuilder third = split_builder(2, 3, 4);
  third.add_tensor("c", TensorType::kF32, {8}).add_tensor("d", TensorType::kF32, {8});
  write(3, third);
  const Result<GgufModel> model = GgufModel::open(path(1));
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->find_tensor("d")->shard, 2u);
}

TEST_F(GgufShards, Missing) {
  write_all();
  for (int number = 1; number <= 3; ++number) {
    std::filesystem::rename(path(number), folder_ / "aside");
    expect_error(ErrorCode::kNotFound, number, fmt::format("expected shard {} of 3", number));
    std::filesystem::rename(folder_ / "aside", path(number));
  }
}

TEST_F(GgufShards, OutOfOrder) {
  write(1, shard(0));
  write(2, shard(2));
  write(3, shard(1));
  expect_error(ErrorCode::kCorrupt, 0, "key 'split.no' at byte");
  const auto model = GgufModel::open(path(1));
  EXPECT_THAT(model.error().message, StartsWith(path(2) + ": key 'split.no' at byte"));
  EXPECT_THAT(model.error().message, HasSubstr("expected 1 (the file's name, from 0), actual 2"));
}

TEST_F(GgufShards, TwiceTheSame) {
  write_all();
  write(3, shard(1));
  expect_error(ErrorCode::kCorrupt, 3, "key 'split.no' at byte");
  std::filesystem::remove(path(3));
  std::filesystem::create_symlink(path(2), path(3));
  expect_error(ErrorCode::kCorrupt, 3, "expected 2 (the file's name, from 0), actual 1");
}

TEST_F(GgufShards, SameTensorInTwo) {
  write_all();
  GgufBuilder third = split_builder(2, 3, 6);
  third.add_tensor("blk.2.a", TensorType::kF32, {8}).add_tensor("blk.0.b", TensorType::kF32, {8});
  write(3, third);
  expect_error(ErrorCode::kCorrupt, 3, "tensor 'blk.0.b' at byte");
  expect_error(ErrorCode::kCorrupt, 3, "expected each tensor once");
}

TEST_F(GgufShards, OfDifferentModelsByMetadata) {
  write_all();
  GgufBuilder second = shard(1);
  second.add_string("general.architecture", "olmoe");
  write(2, second);
  expect_error(ErrorCode::kCorrupt, 2, "key 'general.architecture' at byte");
}

TEST_F(GgufShards, OfDifferentModelsByCounts) {
  write_all();
  GgufBuilder second = split_builder(1, 3, 7);
  second.add_tensor("blk.1.a", TensorType::kF32, {8});
  write(2, second);
  expect_error(ErrorCode::kCorrupt, 0, "key 'split.tensors.count' at byte");
  second = split_builder(1, 4, 6);
  second.add_tensor("blk.1.a", TensorType::kF32, {8});
  write(2, second);
  expect_error(ErrorCode::kCorrupt, 2, "key 'split.count' at byte");
}

TEST_F(GgufShards, TensorsThatDontAddUp) {
  write_all();
  GgufBuilder second = split_builder(1, 3, 6);
  second.add_tensor("blk.1.a", TensorType::kF32, {8});
  write(2, second);
  expect_error(ErrorCode::kCorrupt, 1, "expected 5 (the tensors of all shards together), actual 6");
}

TEST_F(GgufShards, WithoutTheKeys) {
  write_all();
  write(2, GgufBuilder());
  expect_error(ErrorCode::kCorrupt, 2,
               "key 'split.count': expected 3 (the file's name), actual absent");
}

TEST_F(GgufShards, TruncatedOne) {
  write_all();
  std::filesystem::resize_file(path(3), std::filesystem::file_size(path(3)) - 64);
  expect_error(ErrorCode::kTruncated, 3, "tensor 'blk.2.b' at byte");
}

TEST_F(GgufShards, UnderANameWithoutNumbers) {
  write_file(folder_ / "model.gguf", shard(0).build());
  const auto model = GgufModel::open(folder_ / "model.gguf");
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(model.error().message, HasSubstr("model-00001-of-00003.gguf"));
}

TEST_F(GgufShards, NumberedOutsideOfTheCount) {
  for (const char* name : {"model-00000-of-00003.gguf", "model-00004-of-00003.gguf"}) {
    write_file(folder_ / name, shard(0).build());
    const auto model = GgufModel::open(folder_ / name);
    ASSERT_FALSE(model);
    EXPECT_EQ(model.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(model.error().message, HasSubstr("expected a shard from 1 to 3"));
  }
}

TEST_F(GgufShards, MergedFilesAreOne) {
  GgufBuilder merged;
  add_split(merged, 0, 0, 2);  // as gguf-split --merge leaves the keys
  merged.add_tensor("a", TensorType::kF32, {8}).add_tensor("b", TensorType::kF32, {8});
  for (const char* name : {"merged.gguf", "model-00001-of-00001.gguf"}) {
    write_file(folder_ / name, merged.build());
    const auto model = GgufModel::open(folder_ / name);
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ(model->shards().size(), 1u);
  }
}

}  // namespace
}  // namespace offstage
