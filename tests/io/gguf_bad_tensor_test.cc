// Bad files by name: what the tensor directory can claim wrongly, and truncated files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/io/gguf_bad.h"

namespace offstage {
namespace {

using testing::Bad;
using testing::BadFile;
using testing::Bytes;
using testing::GgufBuilder;
using testing::patch;
using testing::patch_number;
using testing::tiny_model;

constexpr uint64_t kU64Max = std::numeric_limits<uint64_t>::max();
constexpr uint64_t k2to63 = 1ull << 63;
constexpr const char* kExperts = "blk.0.ffn_gate_exps.weight";
constexpr const char* kNorm = "output_norm.weight";
// Field offsets in a directory entry: of the experts' tensor, and of a tensor 't'.
constexpr uint64_t kExpertsNDims = 8 + 26, kExpertsDims = kExpertsNDims + 4,
                   kExpertsType = kExpertsDims + 3 * 8, kExpertsOffset = kExpertsType + 4;

Bad experts_patch64(uint64_t field, uint64_t value) {
  return patch(
      fmt::format("tensor '{}'", kExperts),
      [=](const GgufBuilder& b) { return b.info_offset(kExperts) + field; }, value);
}

Bad experts_patch32(uint64_t field, uint32_t value) {
  return patch(
      fmt::format("tensor '{}'", kExperts),
      [=](const GgufBuilder& b) { return b.info_offset(kExperts) + field; }, value);
}

// One tensor alone in a file.
Bad tensor(std::vector<uint64_t> dims, uint32_t type_id, uint64_t field) {
  GgufBuilder builder;
  builder.add_tensor({"t", std::move(dims), type_id, {}, {}, Bytes(64)});
  Bytes bytes = builder.build();
  return {bytes, "tensor 't'", builder.info_offset("t") + field};
}
constexpr uint64_t kTDims = 8 + 1 + 4;  // of the tensor 't'

Bad tensor_twice() {
  GgufBuilder builder = tiny_model();
  builder.add_tensor(kNorm, TensorType::kF32, {6});
  Bytes bytes = builder.build();
  return {bytes, fmt::format("tensor '{}'", kNorm), builder.info_offset(kNorm)};
}

Bad cut_from_end(uint64_t n) {
  GgufBuilder builder = tiny_model();
  builder.pads_last_tensor = false;
  Bytes bytes = builder.build();
  bytes.resize(bytes.size() - n);
  return {bytes, fmt::format("tensor '{}'", kNorm),
          builder.info_offset(kNorm) + 8 + 18 + 4 + 8 + 4};
}

Bad cut_by_half() {
  GgufBuilder builder;
  builder.add_tensor("a", TensorType::kF32, {4096}).add_tensor("b", TensorType::kF32, {4096});
  Bytes bytes = builder.build();
  bytes.resize(bytes.size() / 2);
  return {bytes, "tensor 'a'", builder.info_offset("a") + kTDims + 8 + 4};
}

Bad cut_by_sector() {
  GgufBuilder builder;
  builder.add_tensor("a", TensorType::kF32, {4096}).add_tensor("b", TensorType::kF32, {4096});
  Bytes bytes = builder.build();
  bytes.resize(bytes.size() - 4096);
  return {bytes, "tensor 'b'", builder.info_offset("b") + kTDims + 8 + 4};
}

Bad dirty_padding() {
  GgufBuilder builder = tiny_model();
  Bytes bytes = builder.build();
  EXPECT_LT(builder.header_bytes(), builder.data_offset("token_embd.weight"));
  patch_number<uint8_t>(bytes, builder.header_bytes(), 1);
  return {bytes, "padding before the tensor data", builder.header_bytes()};
}

Bad tail(uint64_t n) {
  GgufBuilder builder = tiny_model();
  builder.pads_last_tensor = false;
  Bytes bytes = builder.build();
  const uint64_t end = bytes.size();
  bytes.resize(end + n);
  return {bytes, "end of the tensor data", end};
}

Bad overlap() {
  GgufBuilder builder = tiny_model();
  builder.tensor(kNorm).offset = 384;  // the experts' first byte
  Bytes bytes = builder.build();
  return {bytes, fmt::format("tensor '{}'", kNorm),
          builder.info_offset(kNorm) + 8 + 18 + 4 + 8 + 4};
}

const BadFile kBadFiles[] = {
    // Tensor names.
    {"NameLengthMinus1", ErrorCode::kCorrupt,
     [] {
       Bad bad = experts_patch64(0, kU64Max);
       bad.subject = "tensor number 2";
       return bad;
     },
     "name: expected a length of at most 64, actual 18446744073709551615"},
    {"NameEmpty", ErrorCode::kCorrupt,
     [] {
       Bad bad = experts_patch64(0, 0);
       bad.subject = "tensor number 2";
       return bad;
     },
     "name: expected at least 1 byte, actual 0"},
    {"NameUnprintable", ErrorCode::kCorrupt,
     [] {
       GgufBuilder builder;
       builder.add_tensor("a\xff", TensorType::kF32, {8});
       Bytes bytes = builder.build();
       return Bad{bytes, "tensor number 1", builder.info_offset("a\xff")};
     },
     "expected printable ASCII, actual 'a\\xff'"},
    {"TensorTwice", ErrorCode::kCorrupt, [] { return tensor_twice(); },
     "expected each tensor once"},
    // Shapes.
    {"Dims0", ErrorCode::kCorrupt, [] { return experts_patch32(kExpertsNDims, 0); },
     "dimension count: expected 1 to 4, actual 0"},
    {"Dims5", ErrorCode::kCorrupt, [] { return experts_patch32(kExpertsNDims, 5); },
     "dimension count: expected 1 to 4, actual 5"},
    {"DimsMax", ErrorCode::kCorrupt, [] { return experts_patch32(kExpertsNDims, 0xffffffff); },
     "dimension count: expected 1 to 4, actual 4294967295"},
    {"Dim0Is0", ErrorCode::kCorrupt, [] { return experts_patch64(kExpertsDims, 0); },
     "dimension 0 of 3: expected 1 or more"},
    {"Dim2Is0", ErrorCode::kCorrupt, [] { return experts_patch64(kExpertsDims + 16, 0); },
     "dimension 2 of 3: expected 1 or more"},
    {"DimMinus1", ErrorCode::kCorrupt, [] { return experts_patch64(kExpertsDims + 8, kU64Max); },
     "actual 18446744073709551615 after a product of 32"},
    {"Dim2to63", ErrorCode::kCorrupt, [] { return tensor({k2to63}, 0, kTDims); },
     "actual 9223372036854775808 after a product of 1"},
    {"ProductWrapsTo0", ErrorCode::kCorrupt,
     [] {
       return tensor({1ull << 32, 1ull << 32}, 0, kTDims + 8);
     },
     "dimension 1 of 2"},
    // 32 x (2^59 + 1) = 2^64 + 32.
    {"ProductWrapsTo32", ErrorCode::kCorrupt,
     [] {
       return tensor({32, (1ull << 59) + 1}, 2, kTDims + 8);
     },
     "dimension 1 of 2"},
    // 4 x (2^62 + 1) = 2^64 + 4.
    {"ProductWrapsTo4", ErrorCode::kCorrupt,
     [] {
       return tensor({4, 1, (1ull << 62) + 1}, 0, kTDims + 16);
     },
     "dimension 2 of 3"},
    {"ProductPast2to63", ErrorCode::kCorrupt,
     [] {
       return tensor({1ull << 31, 1ull << 31, 2}, 0, kTDims + 16);
     },
     "dimension 2 of 3"},
    // 2^62 elements of 4 bytes: the elements fit, the bytes wrap to 0.
    {"BytesWrapTo0", ErrorCode::kCorrupt, [] { return tensor({1ull << 62}, 0, kTDims); },
     "size: expected at most 9223372036854775807 bytes"},
    {"BytesPast2to63", ErrorCode::kCorrupt, [] { return tensor({1ull << 61}, 0, kTDims); },
     "size: expected at most 9223372036854775807 bytes"},
    // The largest size that fits: rounding it up to the alignment must not wrap either.
    {"BytesJustBelow2to63", ErrorCode::kTruncated,
     [] { return tensor({(1ull << 61) - 1}, 0, kTDims + 8 + 4); }, "expected a file of at least"},
    {"RowNotAMultipleOf32", ErrorCode::kCorrupt,
     [] {
       Bad bad = tensor({33}, 2, kTDims);
       return bad;
     },
     "row: expected a multiple of 32 elements (Q4_0), actual 33"},
    {"RowNotAMultipleOf256", ErrorCode::kCorrupt,
     [] {
       return tensor({128, 2}, 12, kTDims);
     },
     "row: expected a multiple of 256 elements (Q4_K), actual 128"},
    // Types.
    {"TypeTernary", ErrorCode::kUnsupported, [] { return experts_patch32(kExpertsType, 34); },
     "IQ2_S IQ4_XS IQ1_M BF16 MXFP4, actual TQ1_0 (34)"},
    {"TypeRemoved", ErrorCode::kUnsupported, [] { return experts_patch32(kExpertsType, 4); },
     "actual Q4_2 (4)"},
    {"TypeMax", ErrorCode::kUnsupported, [] { return experts_patch32(kExpertsType, 0xffffffff); },
     "actual unknown (4294967295)"},
    // Places.
    {"OffsetUnaligned", ErrorCode::kCorrupt, [] { return experts_patch64(kExpertsOffset, 385); },
     "data offset: expected a multiple of 32, actual 385"},
    {"OffsetOverlaps", ErrorCode::kCorrupt, [] { return experts_patch64(kExpertsOffset, 352); },
     "expected 384 (behind 'token_embd.weight'), actual 352: tensors overlap"},
    {"OffsetOfAnother", ErrorCode::kCorrupt, [] { return overlap(); }, "tensors overlap"},
    {"OffsetLeavesAHole", ErrorCode::kCorrupt, [] { return experts_patch64(kExpertsOffset, 416); },
     "actual 416: a hole in the data"},
    {"OffsetPastTheEnd", ErrorCode::kCorrupt,
     [] { return experts_patch64(kExpertsOffset, 1 << 20); }, "past the end of the file"},
    {"Offset2to64Minus32", ErrorCode::kCorrupt,
     [] { return experts_patch64(kExpertsOffset, kU64Max - 31); },
     "actual 18446744073709551584: it lies past the end of the file"},
    {"FirstOffsetNot0", ErrorCode::kCorrupt,
     [] {
       GgufBuilder builder;
       builder.add_tensor({"t", {8}, 0, 32, {}, {}});
       Bytes bytes = builder.build();
       return Bad{bytes, "tensor 't'", builder.info_offset("t") + kTDims + 8 + 4};
     },
     "expected 0 (the first tensor), actual 32"},
    {"PaddingNotZero", ErrorCode::kCorrupt, [] { return dirty_padding(); }, "expected 0, actual 1"},
    {"TailBeyondPadding", ErrorCode::kCorrupt, [] { return tail(32); }, "actual 32 more bytes"},
    // Truncated.
    {"TruncatedBy1", ErrorCode::kTruncated, [] { return cut_from_end(1); }, "data of 24 bytes at"},
    {"TruncatedBySector", ErrorCode::kTruncated, [] { return cut_by_sector(); },
     "data of 16384 bytes at"},
    {"TruncatedByHalf", ErrorCode::kTruncated, [] { return cut_by_half(); },
     "data of 16384 bytes at"},
};

class GgufBadTensor : public ::testing::TestWithParam<BadFile> {};

TEST_P(GgufBadTensor, IsNamed) { testing::expect_named_error(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Gguf, GgufBadTensor, ::testing::ValuesIn(kBadFiles),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace offstage
