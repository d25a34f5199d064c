// Dequantisation against PyPI gguf's values, bit for bit (tests/data/dequant).
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "cpu_test_data.h"

namespace offstage {
namespace {

struct Golden {
  uint32_t gguf_type = 0, n_elements = 0;
  std::vector<char> raw;
  std::vector<float> values;
};

// 8 bytes "OFSDEQ01" | u32 type | u32 n_elements | u64 n_raw_bytes | raw blocks | float values
Golden read_golden(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  Golden golden;
  if (bytes.size() < 24 || std::memcmp(bytes.data(), "OFSDEQ01", 8) != 0) return golden;
  uint64_t n_raw;
  std::memcpy(&golden.gguf_type, bytes.data() + 8, 4);
  std::memcpy(&golden.n_elements, bytes.data() + 12, 4);
  std::memcpy(&n_raw, bytes.data() + 16, 8);
  if (bytes.size() != 24 + n_raw + size_t{golden.n_elements} * 4) return {};
  golden.raw.assign(bytes.begin() + 24, bytes.begin() + 24 + static_cast<ptrdiff_t>(n_raw));
  golden.values.resize(golden.n_elements);
  std::memcpy(golden.values.data(), bytes.data() + 24 + n_raw, size_t{golden.n_elements} * 4);
  return golden;
}

class Dequantise : public testing::TestWithParam<std::tuple<TensorType, Isa>> {};

TEST_P(Dequantise, EqualsGolden) {
  const auto [type, isa] = GetParam();
  const auto kernels = kernels_for(isa);
  if (!kernels) GTEST_SKIP() << kernels.error().message;
  const std::string name(tensor_type_traits(type).name);
  const Golden golden = read_golden(std::string(OFFSTAGE_TEST_DATA) + "/dequant/" + name + ".bin");
  ASSERT_EQ(golden.gguf_type, static_cast<uint32_t>(type)) << "golden missing or malformed";
  constexpr uint32_t kColumns = 256;
  const uint32_t rows = golden.n_elements / kColumns;
  ASSERT_EQ(golden.raw.size(), row_bytes(type, kColumns) * rows);
  AlignedBytes raw(golden.raw.size(), 32);
  std::memcpy(raw.data(), golden.raw.data(), golden.raw.size());
  std::vector<float> values(golden.n_elements);
  for (uint32_t r = 0; r < rows; ++r)
    (*kernels)->dequantise(type, raw.data() + row_bytes(type, kColumns) * r, kColumns,
                           values.data() + size_t{kColumns} * r);
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t ours, theirs;
    std::memcpy(&ours, &values[i], 4);
    std::memcpy(&theirs, &golden.values[i], 4);
    ASSERT_EQ(ours, theirs) << name << " element " << i << ": " << values[i] << " and "
                            << golden.values[i];
  }
}

std::vector<TensorType> types_with_goldens() {
  std::vector<TensorType> types;
  for (TensorType type : kAllTypes)
    if (type != TensorType::kF32) types.push_back(type);
  return types;
}

INSTANTIATE_TEST_SUITE_P(Types, Dequantise,
                         testing::Combine(testing::ValuesIn(types_with_goldens()),
                                          testing::ValuesIn(kAllIsas)),
                         [](const auto& info) {
                           return std::string(tensor_type_traits(std::get<0>(info.param)).name) +
                                  "_" + std::string(isa_name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace offstage
