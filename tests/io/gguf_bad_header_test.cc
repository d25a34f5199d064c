// Bad files by name: what the fixed header, keys, values and the alignment can claim wrongly.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/io/gguf_bad.h"

namespace offstage {
namespace {

using testing::append_number;
using testing::append_string;
using testing::Bad;
using testing::BadFile;
using testing::Bytes;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::patch;
using testing::patch_number;
using testing::tiny;
using testing::tiny_model;

constexpr uint64_t kU64Max = std::numeric_limits<uint64_t>::max();
constexpr uint64_t k2to63 = 1ull << 63;
constexpr const char* kNorm = "output_norm.weight";
constexpr const char* kTokens = "tokenizer.ggml.tokens";

Bad first_bytes(uint64_t n) {
  Bytes bytes = tiny();
  bytes.resize(n);
  return {bytes, "header", 0};
}

template <typename T>
Bad header_patch(uint64_t offset, T value) {
  Bytes bytes = tiny();
  patch_number(bytes, offset, value);
  return {bytes, "header", offset};
}

Bad tokens_patch(uint64_t field, uint64_t value) {
  return patch(
      fmt::format("key '{}'", kTokens),
      [=](const GgufBuilder& b) { return b.value_offset(kTokens) + field; }, value);
}

// One more key, of any type and payload, before the tensors.
Bad key(const std::string& name, uint32_t type_id, Bytes payload, int64_t from_value) {
  GgufBuilder builder = tiny_model();
  builder.add_raw(name, type_id, std::move(payload));
  Bytes bytes = builder.build();
  return {bytes, fmt::format("key '{}'", name),
          builder.value_offset(name) + static_cast<uint64_t>(from_value)};
}

Bad array(uint32_t element_type_id, uint64_t count, int64_t from_value) {
  return key("x.array", 9, GgufBuilder::array_head(element_type_id, count), from_value);
}

Bad alignment(uint32_t value) {
  return patch(
      "key 'general.alignment'",
      [](const GgufBuilder& b) { return b.value_offset("general.alignment"); }, value);
}

Bad key_twice() {
  GgufBuilder builder = tiny_model();
  builder.add_uint32("llama.expert_count", 3);
  Bytes bytes = builder.build();
  return {bytes, "key 'llama.expert_count'", builder.value_offset("llama.expert_count")};
}

// The counts one off: the error is wherever the reader stumbles.
Bad count_off(int tensors, int keys, std::string subject, uint64_t offset_from_info) {
  GgufBuilder builder = tiny_model();
  builder.tensor_count = static_cast<uint64_t>(3 + tensors);
  builder.key_count = static_cast<uint64_t>(8 + keys);
  Bytes bytes = builder.build();
  const uint64_t at = builder.info_offset("token_embd.weight");
  return {bytes, std::move(subject), at + offset_from_info};
}

Bad one_key_too_few() {
  GgufBuilder builder = tiny_model();
  builder.key_count = 7;
  Bytes bytes = builder.build();
  // The last key reads as a tensor's name; its value type (9, an array) as the dimension count.
  const std::string name = "tokenizer.ggml.token_type";
  return {bytes, fmt::format("tensor '{}'", name), builder.key_offset(name) + 8 + name.size()};
}

Bad one_tensor_too_few() {
  GgufBuilder builder = tiny_model();
  builder.tensor_count = 2;
  Bytes bytes = builder.build();
  return {bytes, "padding before the tensor data", builder.info_offset(kNorm)};
}

Bad one_tensor_too_many() {
  GgufBuilder builder = tiny_model();
  builder.tensor_count = 4;
  Bytes bytes = builder.build();
  // The padding and the zeros of the data read as a name's length.
  return {bytes, "tensor number 4", builder.header_bytes()};
}

Bytes with_length(uint64_t length) {
  Bytes payload;
  append_number(payload, length);
  return payload;
}

const BadFile kBadFiles[] = {
    // Fixed header.
    {"Empty", ErrorCode::kTruncated, [] { return first_bytes(0); }, "expected 24 bytes, actual 0"},
    {"Bytes4", ErrorCode::kTruncated, [] { return first_bytes(4); }, "expected 24 bytes, actual 4"},
    {"Bytes23", ErrorCode::kTruncated, [] { return first_bytes(23); },
     "expected 24 bytes, actual 23"},
    {"Magic", ErrorCode::kCorrupt, [] { return header_patch<uint32_t>(0, 0x6c6d6767); },
     "expected 'GGUF', actual 'ggml'"},
    {"MagicSwapped", ErrorCode::kUnsupported, [] { return header_patch<uint32_t>(0, 0x47475546); },
     "big-endian"},
    {"VersionSwapped", ErrorCode::kUnsupported,
     [] { return header_patch<uint32_t>(4, 0x03000000); }, "version 3 of a byte-swapped"},
    {"Version0", ErrorCode::kUnsupported, [] { return header_patch<uint32_t>(4, 0); },
     "expected 2 or 3, actual 0"},
    {"Version1", ErrorCode::kUnsupported, [] { return header_patch<uint32_t>(4, 1); },
     "expected 2 or 3, actual 1"},
    {"Version4", ErrorCode::kUnsupported, [] { return header_patch<uint32_t>(4, 4); },
     "expected 2 or 3, actual 4"},
    {"VersionMax", ErrorCode::kUnsupported, [] { return header_patch<uint32_t>(4, 0xffffffff); },
     "expected 2 or 3, actual 4294967295"},
    {"TensorCountMinus1", ErrorCode::kCorrupt, [] { return header_patch(8, kU64Max); },
     "tensor count: expected at most 65536, actual 18446744073709551615"},
    {"TensorCount2to63", ErrorCode::kCorrupt, [] { return header_patch(8, k2to63); },
     "tensor count: expected at most 65536, actual 9223372036854775808"},
    {"KeyCountMinus1", ErrorCode::kCorrupt, [] { return header_patch(16, kU64Max); },
     "key count: expected at most 65536, actual 18446744073709551615"},
    {"KeyCount2to63", ErrorCode::kCorrupt, [] { return header_patch(16, k2to63); },
     "key count: expected at most 65536, actual 9223372036854775808"},
    {"OneTensorTooFew", ErrorCode::kCorrupt, [] { return one_tensor_too_few(); },
     "is the tensor count too small?"},
    {"OneTensorTooMany", ErrorCode::kCorrupt, [] { return one_tensor_too_many(); },
     "name: expected at least 1 byte, actual 0"},
    {"OneKeyTooFew", ErrorCode::kCorrupt, [] { return one_key_too_few(); },
     "dimension count: expected 1 to 4, actual 9"},
    // The first tensor's dimension count, 2, reads as the value type uint16.
    {"OneKeyTooMany", ErrorCode::kCorrupt,
     [] { return count_off(0, 1, "tensor number 1", 8 + 17 + 4 + 2); },
     "name: expected a length of at most 64"},
    // Keys and strings.
    {"KeyLengthMinus1", ErrorCode::kCorrupt,
     [] {
       return patch(
           "key number 2", [](const GgufBuilder& b) { return b.key_offset("general.alignment"); },
           kU64Max);
     },
     "key: expected a length of at most 65535, actual 18446744073709551615"},
    {"KeyLength65536", ErrorCode::kCorrupt,
     [] {
       return patch(
           "key number 2", [](const GgufBuilder& b) { return b.key_offset("general.alignment"); },
           uint64_t{65536});
     },
     "key: expected a length of at most 65535, actual 65536"},
    {"KeyPastTheEnd", ErrorCode::kTruncated,
     [] {
       Bad bad = patch(
           "key number 2", [](const GgufBuilder& b) { return b.key_offset("general.alignment"); },
           uint64_t{60000});
       bad.offset += 8;
       return bad;
     },
     "key: expected 60000 bytes"},
    {"KeyEmpty", ErrorCode::kCorrupt,
     [] {
       return patch(
           "key number 2", [](const GgufBuilder& b) { return b.key_offset("general.alignment"); },
           uint64_t{0});
     },
     "name: expected at least 1 byte, actual 0"},
    {"KeyUnprintable", ErrorCode::kCorrupt,
     [] {
       Bad bad = patch(
           "key number 2",
           [](const GgufBuilder& b) { return b.key_offset("general.alignment") + 8; },
           uint8_t{0x1b});
       bad.offset -= 8;
       return bad;
     },
     "expected printable ASCII, actual '\\x1beneral.alignment'"},
    {"KeyTwice", ErrorCode::kCorrupt, [] { return key_twice(); }, "expected each key once"},
    {"StringLengthMinus1", ErrorCode::kCorrupt,
     [] { return key("x.text", 8, with_length(kU64Max), 0); },
     "string: expected a length of at most 16777216, actual 18446744073709551615"},
    {"StringLength1TiB", ErrorCode::kCorrupt,
     [] { return key("x.text", 8, with_length(1ull << 40), 0); },
     "string: expected a length of at most 16777216, actual 1099511627776"},
    {"StringPastTheEnd", ErrorCode::kTruncated,
     [] { return key("x.text", 8, with_length(100'000), 8); }, "string: expected 100000 bytes"},
    // Values.
    {"ValueTypeUnknown", ErrorCode::kCorrupt, [] { return key("x.odd", 13, Bytes(8), -4); },
     "value type: expected 0 to 12, actual 13"},
    {"ValueTypeMax", ErrorCode::kCorrupt, [] { return key("x.odd", 0xffffffff, Bytes(8), -4); },
     "value type: expected 0 to 12, actual 4294967295"},
    {"Bool2", ErrorCode::kCorrupt, [] { return key("x.bool", 7, {std::byte{2}}, 0); },
     "bool: expected 0 or 1, actual 2"},
    {"ArrayCount2to60", ErrorCode::kCorrupt, [] { return tokens_patch(4, 1ull << 60); },
     "array count: expected at most 4194304, actual 1152921504606846976"},
    {"ArrayCountMinus1", ErrorCode::kCorrupt, [] { return array(4, kU64Max, 4); },
     "array count: expected at most 4194304, actual 18446744073709551615"},
    {"ArrayCountPastTheEnd", ErrorCode::kTruncated, [] { return array(10, 1 << 20, 12); },
     "array elements: expected 8388608 bytes"},
    {"ArrayOfStringsPastTheEnd", ErrorCode::kTruncated, [] { return array(8, 1 << 20, 12); },
     "array elements: expected 8388608 bytes"},
    {"ArrayOfTooManyBytes", ErrorCode::kCorrupt, [] { return array(0, (1 << 21) + 1, 4); },
     "array count: expected at most 2097152 8-bit elements in a file, actual 2097153"},
    {"ArrayOfArrays", ErrorCode::kUnsupported, [] { return array(9, 1, 0); },
     "arrays of arrays aren't supported"},
    {"ArrayOfUnknown", ErrorCode::kCorrupt, [] { return array(77, 1, 0); },
     "array element type: expected 0 to 12, actual 77"},
    {"ArrayOfBadBools", ErrorCode::kCorrupt,
     [] {
       Bytes payload = GgufBuilder::array_head(7, 2);
       payload.push_back(std::byte{1});
       payload.push_back(std::byte{255});
       return key("x.bools", 9, payload, 13);
     },
     "bool 1 of 2: expected 0 or 1, actual 255"},
    // Alignment.
    {"Alignment0", ErrorCode::kCorrupt, [] { return alignment(0); },
     "expected a power of two from 8 to 2097152, actual 0"},
    {"Alignment3", ErrorCode::kCorrupt, [] { return alignment(3); },
     "expected a power of two from 8 to 2097152, actual 3"},
    {"Alignment4", ErrorCode::kCorrupt, [] { return alignment(4); }, "actual 4"},
    {"Alignment24", ErrorCode::kCorrupt, [] { return alignment(24); }, "actual 24"},
    {"Alignment2to31", ErrorCode::kCorrupt, [] { return alignment(1u << 31); },
     "actual 2147483648"},
    {"AlignmentOfAnotherType", ErrorCode::kCorrupt,
     [] {
       GgufBuilder builder;
       builder.add<uint64_t>("general.alignment", GgufValueType::kUint64, 32);
       Bytes bytes = builder.build();
       return Bad{bytes, "key 'general.alignment'", builder.value_offset("general.alignment")};
     },
     "expected type uint32, actual uint64"},
};

class GgufBadHeader : public ::testing::TestWithParam<BadFile> {};

TEST_P(GgufBadHeader, IsNamed) { testing::expect_named_error(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Gguf, GgufBadHeader, ::testing::ValuesIn(kBadFiles),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(GgufBadHeader, FileSizePast2to63IsRefused) {
  const Bytes bytes = tiny();
  for (const uint64_t file_bytes : {k2to63, kU64Max}) {
    const auto model = GgufModel::parse("huge.gguf", bytes, file_bytes);
    ASSERT_FALSE(model);
    EXPECT_EQ(model.error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(GgufBadHeader, LongKeysAreCutInMessages) {
  GgufBuilder builder;
  builder.add<uint8_t>(std::string(kGgufKeyBytesMax, 'k'), GgufValueType::kBool, 2);
  const Bytes bytes = builder.build();
  const auto model = GgufModel::parse("long.gguf", bytes, bytes.size());
  ASSERT_FALSE(model);
  EXPECT_LT(model.error().message.size(), 256u);
}

TEST(GgufBadHeader, HeaderPastItsLimitIsRefused) {
  // Four strings of 16 MiB and one byte more: each allowed, together too long.
  Bytes bytes;
  testing::append_text(bytes, "GGUF");
  append_number<uint32_t>(bytes, 3);
  append_number<uint64_t>(bytes, 0);
  append_number<uint64_t>(bytes, 5);
  for (int i = 0; i < 5; ++i) {
    append_string(bytes, fmt::format("text{}", i));
    append_number<uint32_t>(bytes, 8);
    append_string(bytes, std::string(kGgufStringBytesMax - 1, 'x'));
  }
  const auto model = GgufModel::parse("long.gguf", bytes, bytes.size());
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(model.error().message, HasSubstr("long.gguf: key 'text3' at byte"));
  EXPECT_THAT(model.error().message, HasSubstr("expected a header of at most 67108864 bytes"));
}

}  // namespace
}  // namespace offstage
