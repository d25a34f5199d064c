#include "cpu_test_data.h"

#include <fmt/format.h>

#include <cmath>

#include "base/blocks.h"
#include "cpu/float16.h"

namespace offstage {
namespace {

// Offsets of the f16 scales within a block; −1 ends the list.
struct ScaleFields {
  int at[2];
};

ScaleFields scale_fields(TensorType type) {
  switch (type) {
    case TensorType::kQ8_0:
    case TensorType::kQ4_0:
    case TensorType::kQ5_0:
    case TensorType::kIQ4_NL:
    case TensorType::kIQ4_XS:
    case TensorType::kIQ3_S:
    case TensorType::kIQ3_XXS:
    case TensorType::kIQ2_S:
    case TensorType::kIQ2_XS:
    case TensorType::kIQ2_XXS:
    case TensorType::kIQ1_S: return {{0, -1}};
    case TensorType::kQ4_1:
    case TensorType::kQ5_1: return {{0, 2}};
    case TensorType::kQ2_K: return {{80, 82}};
    case TensorType::kQ3_K: return {{108, -1}};
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: return {{0, 2}};
    case TensorType::kQ6_K: return {{208, -1}};
    default: return {{-1, -1}};
  }
}

uint16_t scale_bits(Fill fill, Rng& rng) {
  if (fill != Fill::kWildScales)
    return f16_of_float(static_cast<float>(rng.uniform() * 0.1 - 0.02));
  constexpr uint16_t kEdges[] = {0x0000, 0x8000, 0x0001, 0x03ff, 0x8001,
                                 0x0400, 0x7bff, 0xfbff, 0x3c00, 0xbc00};
  return kEdges[rng.below(std::size(kEdges))];
}

float unquantised_value(Fill fill, Rng& rng) {
  constexpr float kEdges[] = {0.0f, -0.0f, 1.0f, -1.0f, 6e-8f, -6e-8f, 60000.0f, 3e-5f};
  if (fill == Fill::kAllOnes) return 1.0f;
  if (fill == Fill::kAllZeros) return 0.0f;
  if (fill == Fill::kLowest) return -0.0f;
  if (fill == Fill::kWildScales) return kEdges[rng.below(std::size(kEdges))];
  return static_cast<float>(rng.uniform() - 0.5);
}

void fill_unquantised(TensorType type, Fill fill, size_t n, Rng& rng, std::byte* out) {
  for (size_t i = 0; i < n; ++i) {
    const float value = unquantised_value(fill, rng);
    if (type == TensorType::kF32) {
      std::memcpy(out + 4 * i, &value, 4);
      continue;
    }
    const uint16_t half = type == TensorType::kF16
                              ? f16_of_float(value)
                              : static_cast<uint16_t>(bits_of_float(value) >> 16);
    std::memcpy(out + 2 * i, &half, 2);
  }
}

}  // namespace

void fill_weights(TensorType type, Fill fill, uint32_t k, uint32_t rows, Rng& rng, std::byte* out) {
  if (!is_quantised(type)) return fill_unquantised(type, fill, size_t{k} * rows, rng, out);
  const size_t bytes = row_bytes(type, k) * rows;
  const size_t block_bytes = tensor_type_traits(type).block_bytes;
  for (size_t i = 0; i < bytes; ++i) {
    int value = static_cast<int>(rng.next_u64() & 0xff);
    if (fill == Fill::kAllOnes) value = 0xff;
    if (fill == Fill::kAllZeros) value = 0;
    if (fill == Fill::kLowest) value = 0x80;
    out[i] = static_cast<std::byte>(value);
  }
  for (size_t block = 0; block < bytes; block += block_bytes) {
    if (type == TensorType::kMXFP4) {
      const uint64_t e = fill == Fill::kWildScales ? rng.below(256) : 118 + rng.below(12);
      out[block] = static_cast<std::byte>(e);
    }
    if (type == TensorType::kIQ1_M) {  // the high nibbles of its last four words
      const uint16_t bits = scale_bits(fill, rng);
      for (int w = 0; w < 4; ++w) {
        std::byte& high = out[block + 49 + 2 * static_cast<size_t>(w)];
        high = (high & std::byte{15}) | static_cast<std::byte>((bits >> (4 * w) & 15) << 4);
      }
    }
    for (int at : scale_fields(type).at) {
      if (at < 0) break;
      const uint16_t bits = scale_bits(fill, rng);
      std::memcpy(out + block + at, &bits, 2);
    }
  }
}

std::vector<float> random_floats(size_t n, Rng& rng, float scale) {
  std::vector<float> out(n);
  for (float& x : out) {
    double sum = -6;  // of 12 uniforms: variance 1
    for (int i = 0; i < 12; ++i) sum += rng.uniform();
    x = static_cast<float>(sum) * scale * (rng.below(64) == 0 ? 20.0f : 1.0f);
  }
  return out;
}

bool same_bits(const float* a, const float* b, size_t n, std::string* difference) {
  for (size_t i = 0; i < n; ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;  // where, not which
    if (bits_of_float(a[i]) == bits_of_float(b[i])) continue;
    *difference = fmt::format("at {}: {:a} and {:a}", i, a[i], b[i]);
    return false;
  }
  return true;
}

}  // namespace offstage
