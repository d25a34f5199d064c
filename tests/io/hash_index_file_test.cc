// The hash index on disk: where it lies, what makes it stale, and what damage does to it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "io/hash_index.h"
#include "tests/io/gguf_builder.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using testing::Bytes;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::patch_number;
using testing::read_file;
using ::testing::StartsWith;
using testing::write_file;

constexpr HashVerdict kConfirmed = HashVerdict::kConfirmed;
constexpr HashVerdict kProvisional = HashVerdict::kProvisional;
constexpr HashVerdict kMismatch = HashVerdict::kMismatch;

class HashIndexFile : public ::testing::Test {
 protected:
  HashIndexFile() {
    std::filesystem::create_directory(folder_ / "model");
    model_path_ = folder_ / "model/tiny.gguf";
    write_file(model_path_, testing::tiny_model().build());
    // As a person's: tests must not touch the real one.
    ::setenv("XDG_CACHE_HOME", (folder_ / "cache").c_str(), 1);
  }
  ~HashIndexFile() override { ::unsetenv("XDG_CACHE_HOME"); }

  HashIndex open() {
    const Result<GgufModel> model = GgufModel::open(model_path_);
    EXPECT_TRUE(model) << model.error().message;
    notices_.emplace_back(std::make_unique<Notices>());
    Result<HashIndex> index = HashIndex::open(*model, {1, 2, 1}, *notices_.back());
    EXPECT_TRUE(index) << index.error().message;
    return std::move(*index);
  }
  // Said since the last open().
  std::vector<std::string> said() const {
    std::vector<std::string> texts;
    for (const Notice& notice : notices_.back()->list()) {
      EXPECT_EQ(notice.subject, "hash_index");
      texts.push_back(notice.text);
    }
    return texts;
  }
  void save(HashIndex& index) { EXPECT_TRUE(index.save(*notices_.back())); }
  // An index with a confirmed, a provisional, a conflicting and an unknown piece, saved.
  void save_one() {
    HashIndex index = open();
    index.confirm({0, 0}, 11);
    index.judge({1, 0}, 22);
    index.judge({1, 1}, 33);
    index.judge({1, 1}, 34);
    save(index);
  }
  std::string beside() const { return model_path_ + ".offstage-index"; }
  std::vector<std::string> cached() const {
    std::vector<std::string> paths;
    std::error_code missing;
    for (const auto& entry :
         std::filesystem::directory_iterator(folder_ / "cache/offstage", missing))
      paths.push_back(entry.path().string());
    return paths;
  }
  testing::TempFolder folder_;
  std::string model_path_;
  std::vector<std::unique_ptr<Notices>> notices_;
};

TEST_F(HashIndexFile, LivesBesideTheModel) {
  save_one();
  EXPECT_THAT(said(), ElementsAre());
  EXPECT_TRUE(std::filesystem::exists(beside()));
  EXPECT_EQ(cached().size(), 0u);
  // Nothing but model and index: no temporary file is left.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_ / "model"), {}), 2);
  HashIndex index = open();
  EXPECT_EQ(index.path(), beside());
  EXPECT_EQ(index.counts().confirmed, 1u);
  EXPECT_EQ(index.counts().provisional, 1u);
  EXPECT_EQ(index.judge({0, 0}, 12), kMismatch);
  EXPECT_EQ(index.judge({1, 0}, 22), kConfirmed);    // two reads agree, across two runs
  EXPECT_EQ(index.judge({1, 1}, 33), kProvisional);  // a conflict is forgotten
  EXPECT_EQ(index.judge({2, 0}, 44), kProvisional);
}

TEST_F(HashIndexFile, HasTheDocumentedBytes) {
  save_one();
  const Bytes bytes = read_file(beside());
  ASSERT_EQ(bytes.size(), 56u + 9 * 4 + 8);
  const auto u64 = [&](size_t offset) {
    uint64_t value;
    std::memcpy(&value, bytes.data() + offset, 8);
    return value;
  };
  EXPECT_EQ(std::memcmp(bytes.data(), "OFFSTIDX\1\0\0\0\3\0\0\0", 16), 0);
  EXPECT_EQ(u64(16), 4u);
  EXPECT_EQ(u64(24), std::filesystem::file_size(model_path_));
  EXPECT_EQ(u64(56), 11u);
  EXPECT_EQ(u64(64), 22u);
  EXPECT_EQ(u64(72), 0u);
  EXPECT_EQ(u64(80), 0u);
  EXPECT_EQ(std::memcmp(bytes.data() + 88, "\2\1\0\0", 4), 0);
  EXPECT_EQ(u64(92), hash_piece(std::span(bytes).first(92)));
}

TEST_F(HashIndexFile, IsWrittenOnlyWhenSomethingChanged) {
  HashIndex index = open();
  save(index);
  EXPECT_FALSE(std::filesystem::exists(beside()));
  index.confirm({0, 0}, 1);
  save(index);
  EXPECT_TRUE(std::filesystem::exists(beside()));
  std::filesystem::remove(beside());
  index.confirm({0, 0}, 1);
  EXPECT_EQ(index.judge({0, 0}, 1), kConfirmed);
  save(index);
  EXPECT_FALSE(std::filesystem::exists(beside()));
}

TEST_F(HashIndexFile, TruncatedAtEveryByteIsAnnouncedAndBuiltAnew) {
  save_one();
  const Bytes whole = read_file(beside());
  for (size_t n = 0; n < whole.size(); ++n) {
    SCOPED_TRACE(n);
    write_file(beside(), std::span(whole).first(n));
    HashIndex index = open();
    EXPECT_EQ(index.counts().confirmed + index.counts().provisional, 0u);
    ASSERT_EQ(said().size(), 1u);
    EXPECT_THAT(said()[0], HasSubstr(beside()));
  }
}

TEST_F(HashIndexFile, EveryBitFlippedIsAnnouncedAndBuiltAnew) {
  save_one();
  const Bytes whole = read_file(beside());
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    SCOPED_TRACE(bit);
    Bytes bytes = whole;
    bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    write_file(beside(), bytes);
    HashIndex index = open();
    EXPECT_EQ(index.counts().confirmed + index.counts().provisional, 0u);
    ASSERT_EQ(said().size(), 1u);
    EXPECT_THAT(said()[0], StartsWith("hash index not used, to be built anew: " + beside()));
  }
  // And it is: the next save replaces the damaged one.
  HashIndex index = open();
  index.confirm({0, 0}, 5);
  save(index);
  EXPECT_EQ(open().counts().confirmed, 1u);
  EXPECT_THAT(said(), ElementsAre());
}

TEST_F(HashIndexFile, UnknownStateWithARightSumIsDamaged) {
  save_one();
  Bytes bytes = read_file(beside());
  bytes[88] = std::byte{3};
  patch_number(bytes, 92, hash_piece(std::span(bytes).first(92)));
  write_file(beside(), bytes);
  EXPECT_EQ(open().counts().confirmed, 0u);
  ASSERT_EQ(said().size(), 1u);
  EXPECT_THAT(said()[0], HasSubstr("at byte 88: expected a state of 0 to 2, actual 3"));
}

TEST_F(HashIndexFile, AnotherVersionIsNamed) {
  save_one();
  Bytes bytes = read_file(beside());
  patch_number<uint32_t>(bytes, 8, 2);
  write_file(beside(), bytes);
  EXPECT_EQ(open().counts().confirmed, 0u);
  ASSERT_EQ(said().size(), 1u);
  EXPECT_THAT(said()[0], HasSubstr("expected version 1, actual 2"));
}

TEST_F(HashIndexFile, LongerThanItsPiecesIsDamaged) {
  save_one();
  Bytes bytes = read_file(beside());
  bytes.push_back(std::byte{0});
  write_file(beside(), bytes);
  EXPECT_EQ(open().counts().confirmed, 0u);
  ASSERT_EQ(said().size(), 1u);
  EXPECT_THAT(said()[0], HasSubstr("expected 100 bytes for 4 pieces, actual 101"));
}

TEST_F(HashIndexFile, HugeClaimsMakeNoRoom) {
  save_one();
  Bytes bytes = read_file(beside());
  patch_number<uint64_t>(bytes, 16, 1ull << 60);
  write_file(beside(), bytes);
  EXPECT_EQ(open().counts().confirmed, 0u);
  EXPECT_EQ(said().size(), 1u);
}

TEST_F(HashIndexFile, StaleByTimeOfChange) {
  save_one();
  const auto time = std::filesystem::last_write_time(model_path_);
  std::filesystem::last_write_time(model_path_, time + std::chrono::seconds(1));
  EXPECT_EQ(open().counts().confirmed, 0u);
  ASSERT_EQ(said().size(), 1u);
  EXPECT_THAT(said()[0], HasSubstr("time of change differs"));
  std::filesystem::last_write_time(model_path_, time);
  EXPECT_EQ(open().counts().confirmed, 1u);
}

TEST_F(HashIndexFile, StaleBySize) {
  save_one();
  testing::GgufBuilder builder = testing::tiny_model();
  builder.pads_last_tensor = false;
  write_file(model_path_, builder.build());
  EXPECT_EQ(open().counts().confirmed, 0u);
  ASSERT_EQ(said().size(), 1u);
  EXPECT_THAT(said()[0], HasSubstr("size differs"));
}

TEST_F(HashIndexFile, StaleByHeader) {
  save_one();
  const auto time = std::filesystem::last_write_time(model_path_);
  Bytes bytes = read_file(model_path_);
  testing::GgufBuilder builder = testing::tiny_model();
  builder.build();
  patch_number(bytes, builder.value_offset("llama.rope.freq_base"), 1.0f);
  write_file(model_path_, bytes);
  std::filesystem::last_write_time(model_path_, time);
  EXPECT_EQ(open().counts().confirmed, 0u);
  ASSERT_EQ(said().size(), 1u);
  EXPECT_THAT(said()[0], HasSubstr("header differs"));
}

TEST_F(HashIndexFile, StaleByLayout) {
  save_one();
  const Result<GgufModel> model = GgufModel::open(model_path_);
  Notices notices;
  const Result<HashIndex> index = HashIndex::open(*model, {1, 1, 2}, notices);
  ASSERT_TRUE(index);
  EXPECT_EQ(index->counts().confirmed, 0u);
  ASSERT_EQ(notices.list().size(), 1u);
  EXPECT_THAT(notices.list()[0].text, HasSubstr("layout differs"));
}

TEST_F(HashIndexFile, ModelThatChangedOrWentIsAnError) {
  const Result<GgufModel> model = GgufModel::open(model_path_);
  std::filesystem::resize_file(model_path_, 100);
  Notices notices;
  Result<HashIndex> index = HashIndex::open(*model, {1, 2, 1}, notices);
  ASSERT_FALSE(index);
  EXPECT_EQ(index.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(index.error().message, HasSubstr("changed since it was opened"));
  std::filesystem::remove(model_path_);
  index = HashIndex::open(*model, {1, 2, 1}, notices);
  ASSERT_FALSE(index);
  EXPECT_EQ(index.error().code, ErrorCode::kNotFound);
}

TEST_F(HashIndexFile, GoesToTheCacheFolderWhenItMust) {
  // Beside the model a folder bears the index's name: for root too, no file can replace it.
  std::filesystem::create_directories(beside() + "/full");
  save_one();
  ASSERT_EQ(cached().size(), 1u);
  EXPECT_THAT(cached()[0], HasSubstr("/cache/offstage/tiny.gguf-"));
  EXPECT_THAT(cached()[0], EndsWith(".offstage-index"));
  ASSERT_EQ(said().size(), 2u);  // the folder isn't an index; the index lies elsewhere
  EXPECT_THAT(said()[1], StartsWith("hash index kept as " + cached()[0] + ", because "));
  HashIndex index = open();
  EXPECT_EQ(index.path(), cached()[0]);
  EXPECT_EQ(index.counts().confirmed, 1u);
  // Model and folder: the file that couldn't be renamed is gone.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_ / "model"), {}), 2);
}

TEST_F(HashIndexFile, ModelsOfOneNameDontShareACacheEntry) {
  std::filesystem::create_directories(beside() + "/full");
  save_one();
  const std::string other = folder_ / "other/tiny.gguf";
  std::filesystem::create_directories(other + ".offstage-index/full");
  std::filesystem::copy(model_path_, other);
  std::filesystem::last_write_time(other, std::filesystem::last_write_time(model_path_));
  model_path_ = other;
  EXPECT_EQ(open().counts().confirmed, 0u);
}

TEST_F(HashIndexFile, KnowsWhenItCantBeKept) {
  std::filesystem::create_directories(beside() + "/full");
  write_file(folder_ / "cache", {});  // a file where the cache folder should be
  HashIndex index = open();
  index.confirm({0, 0}, 1);
  save(index);
  save(index);
  EXPECT_EQ(index.path(), "");
  ASSERT_EQ(said().size(), 2u);  // said once, however often it is saved
  EXPECT_THAT(said()[1], StartsWith("hash index not kept, the next start begins anew: "));
  EXPECT_THAT(said()[1], HasSubstr(beside()));
  EXPECT_THAT(said()[1], HasSubstr("/cache/offstage/"));
  // The place came back: nothing learned is lost.
  std::filesystem::remove(folder_ / "cache");
  save(index);
  EXPECT_EQ(cached().size(), 1u);
}

TEST_F(HashIndexFile, UsesTheHomeFolderWithoutXdg) {
  std::filesystem::create_directories(beside() + "/full");
  const char* home = std::getenv("HOME");
  const std::string old_home = home == nullptr ? "/" : home;
  ::setenv("HOME", folder_.path().c_str(), 1);
  ::setenv("XDG_CACHE_HOME", "relative/is/ignored", 1);
  HashIndex index = open();
  index.confirm({0, 0}, 1);
  save(index);
  EXPECT_THAT(index.path(), StartsWith(folder_ / ".cache/offstage/tiny.gguf-"));
  ::unsetenv("XDG_CACHE_HOME");
  ::setenv("HOME", "", 1);  // no cache folder at all
  HashIndex homeless = open();
  homeless.confirm({0, 0}, 1);
  save(homeless);
  EXPECT_EQ(homeless.path(), "");
  ::setenv("HOME", old_home.c_str(), 1);
}

TEST_F(HashIndexFile, TakesTheOneThatKnowsMore) {
  // One confirmed in the cache folder, two beside the model, then the other way round.
  std::filesystem::create_directories(beside() + "/full");
  save_one();
  std::filesystem::remove_all(beside());
  HashIndex index = open();
  EXPECT_EQ(index.path(), cached()[0]);
  std::filesystem::copy(cached()[0], beside());
  EXPECT_EQ(open().path(), beside()) << "a tie goes to the place beside the model";
  index.confirm({1, 0}, 22);
  save(index);
  EXPECT_EQ(open().path(), cached()[0]);
  EXPECT_EQ(open().counts().confirmed, 2u);
}

TEST_F(HashIndexFile, CoversAllShards) {
  const auto shard = [&](uint16_t no, float value) {
    testing::GgufBuilder builder;
    builder.add<uint16_t>("split.no", GgufValueType::kUint16, no);
    builder.add<uint16_t>("split.count", GgufValueType::kUint16, 2);
    builder.add<int32_t>("split.tensors.count", GgufValueType::kInt32, 3);
    builder.add_float32(fmt::format("x.{}", no), value);
    for (int i = no; i <= 2 * no; ++i)  // one, then two
      builder.add_tensor(fmt::format("t{}", i), TensorType::kF32, {8});
    return builder.build();
  };
  model_path_ = folder_ / "model/s-00001-of-00002.gguf";
  const std::string second = folder_ / "model/s-00002-of-00002.gguf";
  write_file(model_path_, shard(0, 0));
  write_file(second, shard(1, 0));
  save_one();
  EXPECT_EQ(open().counts().confirmed, 1u);
  const auto time = std::filesystem::last_write_time(second);
  write_file(second, shard(1, 1));
  std::filesystem::last_write_time(second, time);
  EXPECT_EQ(open().counts().confirmed, 0u);
  EXPECT_THAT(said()[0], HasSubstr("header differs"));
}

}  // namespace
}  // namespace offstage
