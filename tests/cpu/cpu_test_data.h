// Weights and activations for the tests of kernels: random, and as hostile as the formats allow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/rng.h"
#include "base/tensor_type.h"
#include "cpu/kernels.h"

namespace offstage {

inline constexpr TensorType kAllTypes[] = {
    TensorType::kF32,     TensorType::kF16,     TensorType::kBF16,  TensorType::kQ8_0,
    TensorType::kQ4_0,    TensorType::kQ4_1,    TensorType::kQ5_0,  TensorType::kQ5_1,
    TensorType::kMXFP4,   TensorType::kIQ4_NL,  TensorType::kQ2_K,  TensorType::kQ3_K,
    TensorType::kQ4_K,    TensorType::kQ5_K,    TensorType::kQ6_K,  TensorType::kIQ4_XS,
    TensorType::kIQ3_S,   TensorType::kIQ3_XXS, TensorType::kIQ2_S, TensorType::kIQ2_XS,
    TensorType::kIQ2_XXS, TensorType::kIQ1_M,   TensorType::kIQ1_S};

inline constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512};

// Bytes at a 64-byte boundary plus `offset`, so that kernels meet what slots hand them. Bytes
// around the payload belong to the vector: a sanitizer sees a kernel that reads beyond.
class AlignedBytes {
 public:
  AlignedBytes(size_t bytes, size_t offset = 0) : storage_(bytes + offset + 64) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    begin_ = (64 - address % 64) % 64 + offset;
    storage_.resize(begin_ + bytes);  // ends exactly at the payload's end
  }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  std::byte* data() { return storage_.data() + begin_; }
  const std::byte* data() const { return storage_.data() + begin_; }
  size_t size() const { return storage_.size() - begin_; }

 private:
  std::vector<std::byte> storage_;
  size_t begin_;
};

enum class Fill {
  kRandom,      // any bits, scales of a sane size
  kWildScales,  // any finite scale: subnormal, zero, negative, largest
  kAllOnes,     // every quant and small scale at its maximum
  kAllZeros,    // every bit clear except the scales
  kLowest,      // every byte 0x80: −128s, lone high bits
};
inline constexpr Fill kAllFills[] = {Fill::kRandom, Fill::kWildScales, Fill::kAllOnes,
                                     Fill::kAllZeros, Fill::kLowest};

void fill_weights(TensorType type, Fill fill, uint32_t k, uint32_t rows, Rng& rng, std::byte* out);

// Gaussian-like floats with a few outliers, as hidden states are.
std::vector<float> random_floats(size_t n, Rng& rng, float scale = 1.0f);

bool same_bits(const float* a, const float* b, size_t n, std::string* difference);

}  // namespace offstage
