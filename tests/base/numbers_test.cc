// Numbers people write and files claim: units, and arithmetic that can't wrap.
#include <gmock/gmock.h>

#include <limits>

#include "base/checked_math.h"
#include "base/tensor_type.h"
#include "base/units.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

TEST(ParseBytesTest, ReadsWhatPeopleWrite) {
  const std::pair<const char*, uint64_t> cases[] = {
      {"0", 0},
      {"4096", 4096},
      {"4096b", 4096},
      {"8G", 8ull << 30},
      {"8g", 8ull << 30},
      {"8 GiB", 8ull << 30},
      {"512MiB", 512ull << 20},
      {"512M", 512ull << 20},
      {"1.5g", 3ull << 29},
      {".5K", 512},
      {"2T", 2ull << 40},
      {"3KB", 3000},
      {"3MB", 3000000},
      {"3GB", 3000000000},
      {"1tb", 1000000000000},
      {"34963072", 34963072},
  };
  for (const auto& [text, bytes] : cases) {
    const auto parsed = parse_bytes(text);
    ASSERT_TRUE(parsed) << text;
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseBytesTest, NamesWhatIsNoSize) {
  for (const char* text : {"", "G", "x", "-1", "-8G", "8Q", "8GG", "8G8", "0x10", "nan", "inf",
                           "1e400", "99999999T", "8,5G", "--"}) {
    const auto parsed = parse_bytes(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(parsed.error().message, HasSubstr(fmt::format("'{}'", text)));
  }
}

TEST(FormatTest, SizesTimesAndCounts) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(2778726), "2.65 MiB");
  EXPECT_EQ(format_bytes(4ull << 30), "4.00 GiB");
  EXPECT_EQ(format_bytes(kMax), "16777216.00 TiB");
  EXPECT_EQ(format_duration_ns(999), "999 ns");
  EXPECT_EQ(format_duration_ns(812'000), "812 us");
  EXPECT_EQ(format_duration_ns(12'300'000), "12.3 ms");
  EXPECT_EQ(format_duration_ns(4'210'000'000), "4.21 s");
  EXPECT_EQ(format_count(812), "812");
  EXPECT_EQ(format_count(9'999), "9999");
  EXPECT_EQ(format_count(12'345), "12.3 K");
  EXPECT_EQ(format_count(12'100'000), "12.1 M");
  EXPECT_EQ(format_count(30'530'000'000), "30.53 B");
}

TEST(CheckedMathTest, AnswersNothingWhereItWouldWrap) {
  EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
  EXPECT_EQ(checked_add(kMax, 1), std::nullopt);
  EXPECT_EQ(checked_mul(1ull << 32, (1ull << 32) - 1), kMax - (1ull << 32) + 1);
  EXPECT_EQ(checked_mul(1ull << 32, 1ull << 32), std::nullopt);
  EXPECT_EQ(checked_mul(kMax, 0), 0u);
  EXPECT_EQ(checked_mul((1ull << 63) + 2, 2), std::nullopt);  // would be 4
}

TEST(CheckedMathTest, RoundsUpToAnyMultiple) {
  EXPECT_EQ(checked_round_up(0, 32), 0u);
  EXPECT_EQ(checked_round_up(1, 32), 32u);
  EXPECT_EQ(checked_round_up(32, 32), 32u);
  EXPECT_EQ(checked_round_up(10, 7), 14u);
  EXPECT_EQ(checked_round_up(5, 0), std::nullopt);
  EXPECT_EQ(checked_round_up(kMax, 2), std::nullopt);
  EXPECT_EQ(checked_round_up(kMax - 1, 2), kMax - 1);
  EXPECT_EQ(round_up(4097, 4096), 8192u);
  EXPECT_EQ(round_down(8191, 4096), 4096u);
}

// Block sizes as the formats' definitions have them; ids and names there and back.
TEST(TensorTypeTest, FactsOfEveryFormat) {
  const struct {
    const char* name;
    uint32_t id, elements, bytes;
  } formats[] = {{"F32", 0, 1, 4},         {"F16", 1, 1, 2},         {"Q4_0", 2, 32, 18},
                 {"Q4_1", 3, 32, 20},      {"Q5_0", 6, 32, 22},      {"Q5_1", 7, 32, 24},
                 {"IQ2_XXS", 16, 256, 66}, {"IQ2_XS", 17, 256, 74},  {"IQ3_XXS", 18, 256, 98},
                 {"IQ1_S", 19, 256, 50},   {"IQ4_NL", 20, 32, 18},   {"IQ3_S", 21, 256, 110},
                 {"IQ2_S", 22, 256, 82},   {"IQ4_XS", 23, 256, 136}, {"IQ1_M", 29, 256, 56},
                 {"Q8_0", 8, 32, 34},      {"Q2_K", 10, 256, 84},    {"Q3_K", 11, 256, 110},
                 {"Q4_K", 12, 256, 144},   {"Q5_K", 13, 256, 176},   {"Q6_K", 14, 256, 210},
                 {"BF16", 30, 1, 2},       {"MXFP4", 39, 32, 17}};
  for (const auto& format : formats) {
    const auto type = tensor_type_from_gguf(format.id);
    ASSERT_TRUE(type) << format.name;
    EXPECT_EQ(tensor_type_traits(*type).name, format.name);
    EXPECT_EQ(tensor_type_from_name(format.name), type);
    EXPECT_EQ(gguf_type_name(format.id), format.name);
    EXPECT_EQ(row_bytes(*type, 512), 512 / format.elements * format.bytes) << format.name;
    EXPECT_EQ(is_quantised(*type), format.elements > 1);
  }
}

TEST(TensorTypeTest, OthersHaveANameAtMost) {
  EXPECT_EQ(tensor_type_from_gguf(9), std::nullopt);
  EXPECT_EQ(gguf_type_name(9), "Q8_1");
  EXPECT_EQ(tensor_type_from_gguf(40), std::nullopt);
  EXPECT_EQ(gguf_type_name(40), "unknown");
  EXPECT_EQ(gguf_type_name(UINT32_MAX), "unknown");
  EXPECT_EQ(tensor_type_from_name("q4_k"), std::nullopt);
}

}  // namespace
}  // namespace offstage
