// Exhaustive damage to a tiny file, and what hostile files may cost in memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "tests/io/gguf_builder.h"
#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using testing::append_number;
using testing::append_string;
using testing::append_text;
using testing::Bytes;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::tiny_model;

// What must hold of every model that loads, however its file was damaged.
void expect_sound(const GgufModel& model, uint64_t file_bytes) {
  uint64_t end = model.shards()[0].header_bytes;
  for (const GgufTensor& tensor : model.tensors()) {
    EXPECT_GE(tensor.offset, end);
    EXPECT_EQ(tensor.offset % model.shards()[0].alignment, 0u);
    EXPECT_EQ(tensor.bytes,
              tensor.elements() / tensor.dims[0] * row_bytes(tensor.type, tensor.dims[0]));
    EXPECT_EQ(model.find_tensor(tensor.name), &tensor);
    end = tensor.offset + tensor.bytes;
  }
  EXPECT_LE(end, file_bytes);
  for (const auto& [key, value] : model.metadata()) EXPECT_EQ(model.find(key), &value);
}

TEST(GgufSweep, TruncationAtEveryByteIsAnError) {
  GgufBuilder builder = tiny_model();
  builder.pads_last_tensor = false;
  const Bytes bytes = builder.build();
  const testing::TempFolder folder;
  const std::string path = folder / "cut.gguf";
  testing::write_file(path, bytes);
  for (size_t n = bytes.size(); n-- > 0;) {
    ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(n)), 0);
    const Result<GgufModel> file = GgufModel::open(path);
    ASSERT_FALSE(file) << "of " << bytes.size() << " bytes " << n;
    EXPECT_EQ(file.error().code, ErrorCode::kTruncated) << file.error().message;
    EXPECT_THAT(file.error().message, StartsWith(path + ": "));
    EXPECT_THAT(file.error().message, HasSubstr("at byte"));
    const std::span<const std::byte> cut = std::span(bytes).first(n);
    const Result<GgufModel> memory = GgufModel::parse(path, cut, n);
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().message, file.error().message);
    // The bytes end but the file is said to go on.
    const Result<GgufModel> beginning = GgufModel::parse(path, cut, bytes.size());
    ASSERT_EQ(beginning.has_value(), n >= builder.data_offset("token_embd.weight"));
    if (beginning) continue;
    EXPECT_EQ(beginning.error().code, ErrorCode::kTruncated);
  }
}

TEST(GgufSweep, EveryHeaderBitFlippedIsAnErrorOrLoadsSoundly) {
  GgufBuilder builder = tiny_model();
  Bytes bytes = builder.build();
  const uint64_t header_bytes = builder.data_offset("token_embd.weight");
  const Result<GgufModel> intact = GgufModel::parse("flip.gguf", bytes, bytes.size());
  ASSERT_TRUE(intact);
  int loaded = 0;
  for (uint64_t bit = 0; bit < header_bytes * 8; ++bit) {
    SCOPED_TRACE(bit);
    const auto mask = static_cast<std::byte>(1u << (bit % 8));
    bytes[bit / 8] ^= mask;
    const Result<GgufModel> model = GgufModel::parse("flip.gguf", bytes, bytes.size());
    bytes[bit / 8] ^= mask;
    if (!model) {
      EXPECT_THAT(model.error().message, StartsWith("flip.gguf: "));
      EXPECT_THAT(model.error().message, HasSubstr("expected"));
      continue;
    }
    ++loaded;
    expect_sound(*model, bytes.size());
    // What a flip may change without being seen: names, values, types of one size, the shape within
    // one size. Never where a tensor's bytes lie.
    ASSERT_EQ(model->tensors().size(), intact->tensors().size());
    for (size_t i = 0; i < model->tensors().size(); ++i)
      EXPECT_EQ(model->tensors()[i].offset, intact->tensors()[i].offset);
  }
  RecordProperty("flips", static_cast<int>(header_bytes * 8));
  RecordProperty("loaded", loaded);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

uint64_t virtual_bytes() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

// Exit status of a child that opens `path` with `bytes` of address space more than it has: 0 model,
// 1 error, 2 out of memory.
int open_within(const std::string& path, uint64_t bytes) {
  ::malloc_trim(0);
  const pid_t child = ::fork();
  if (child == 0) {
    const rlim_t limit = virtual_bytes() + bytes;
    const rlimit address_space = {limit, limit};
    ::setrlimit(RLIMIT_AS, &address_space);
    ::close(STDERR_FILENO);
    try {
      ::_exit(GgufModel::open(path) ? 0 : 1);
    } catch (const std::bad_alloc&) {
      ::_exit(2);
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

constexpr uint64_t kSlackBytes = 16 << 20;

class GgufMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "address space is the sanitizer's";
    // What this process freed must not serve the child: fixed, so that malloc doesn't learn to keep
    // large blocks in its heap.
    ::mallopt(M_MMAP_THRESHOLD, 64 << 10);
  }
  // A file of one key, an array, whose elements are `payload`.
  std::string file_with_array(GgufValueType element, uint64_t count, const Bytes& payload) {
    Bytes value = GgufBuilder::array_head(static_cast<uint32_t>(element), count);
    value.insert(value.end(), payload.begin(), payload.end());
    GgufBuilder builder;
    builder.add_raw("x", static_cast<uint32_t>(GgufValueType::kArray), std::move(value));
    const Bytes bytes = builder.build();
    header_bytes_ = bytes.size();
    testing::write_file(folder_ / "array.gguf", bytes);
    return folder_ / "array.gguf";
  }
  void expect_opens(const std::string& path) {
    EXPECT_EQ(open_within(path, 4 * header_bytes_ + kSlackBytes), 0);
  }

  testing::TempFolder folder_;
  uint64_t header_bytes_ = 0;
};

TEST_F(GgufMemory, LongArraysStayWithinFourTimesTheHeader) {
  const uint64_t count = 2'500'000;  // not a power of two: where doubling would cost most
  expect_opens(file_with_array(GgufValueType::kString, count, Bytes(8 * count)));
  expect_opens(file_with_array(GgufValueType::kFloat32, count, Bytes(4 * count)));
  expect_opens(file_with_array(GgufValueType::kInt16, count, Bytes(2 * count)));
  expect_opens(file_with_array(GgufValueType::kBool, count, Bytes(count)));
  expect_opens(
      file_with_array(GgufValueType::kUint8, kGgufByteElementsMax, Bytes(kGgufByteElementsMax)));
  Bytes strings;
  for (int i = 0; i < 1'000'000; ++i) append_string(strings, "sixteen bytes ab");
  expect_opens(file_with_array(GgufValueType::kString, 1'000'000, strings));
}

TEST_F(GgufMemory, ManySmallEntriesStayWithinFourTimesTheHeader) {
  GgufBuilder keys, tensors;
  for (uint64_t i = 0; i < kGgufKeysMax; ++i)
    keys.add<uint8_t>(fmt::format("{:x}", i), GgufValueType::kUint8, 1);
  for (uint64_t i = 0; i < kGgufTensorsMax; ++i)
    tensors.add_tensor(fmt::format("{:x}", i), TensorType::kF32, {1});
  const std::string path = folder_ / "entries.gguf";
  for (GgufBuilder* builder : {&keys, &tensors}) {
    const Bytes bytes = builder->build();
    header_bytes_ = builder->header_bytes();
    testing::write_file(path, bytes);
    expect_opens(path);
  }
}

// A big file (sparse: 64 GiB of zeros) makes every claimed count possible.
TEST_F(GgufMemory, HostileCountsInABigFileStayBounded) {
  struct Claim {
    GgufValueType element;
    uint64_t count, element_bytes;
  };
  for (const Claim& claim : {Claim{GgufValueType::kString, kGgufArrayElementsMax, 8},
                             Claim{GgufValueType::kFloat64, kGgufArrayElementsMax, 8},
                             Claim{GgufValueType::kString, 1ull << 60, 0},
                             Claim{GgufValueType::kUint8, kGgufArrayElementsMax, 0}}) {
    const std::string path = file_with_array(claim.element, claim.count, {});
    // One key more than there is: the zeros that follow can't be one.
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(16).put(2).flush();
    ASSERT_EQ(::truncate(path.c_str(), off_t{64} << 30), 0);
    const uint64_t read_bytes = header_bytes_ + claim.count * claim.element_bytes;
    EXPECT_EQ(open_within(path, 4 * read_bytes + kSlackBytes), 1);
  }
}

// The count is possible and the second string isn't: no room may have been made for the others.
TEST_F(GgufMemory, CountedStringsMakeNoRoomBeforeTheyAreSeen) {
  Bytes payload;
  append_string(payload, "one");
  append_number<uint64_t>(payload, 1ull << 40);
  const std::string path = file_with_array(GgufValueType::kString, kGgufArrayElementsMax, payload);
  ASSERT_EQ(::truncate(path.c_str(), off_t{64} << 30), 0);
  EXPECT_EQ(open_within(path, 4 * header_bytes_ + kSlackBytes), 1);
}

TEST_F(GgufMemory, TheMeasureItselfBites) {
  const uint64_t count = 2'500'000;
  const std::string path = file_with_array(GgufValueType::kString, count, Bytes(8 * count));
  EXPECT_EQ(open_within(path, 30 * count), 2);  // 32 bytes a string are needed
}

}  // namespace
}  // namespace offstage
