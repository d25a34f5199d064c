// The storage formats of weights: facts alone (sizes), no arithmetic.
//
// Numbers are GGUF's type ids (ggml's `enum ggml_type`), so a file's value casts directly after
// tensor_type_from_gguf() accepted it. Rows are stored contiguously, K (the input dimension)
// fastest; a row is a whole number of blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace offstage {

enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kIQ1_M = 29,
  kBF16 = 30,
  kMXFP4 = 39,
};

struct TensorTypeTraits {
  TensorType type;
  std::string_view name;  // as `gguf` spells it: "Q4_K"
  uint32_t block_elements;
  uint32_t block_bytes;
};

// nullopt for a type id Offstage has no kernels for.
std::optional<TensorType> tensor_type_from_gguf(uint32_t gguf_type_id);
// The name of any type id ggml has ever used, also of those not supported; "unknown" beyond.
std::string_view gguf_type_name(uint32_t gguf_type_id);
const TensorTypeTraits& tensor_type_traits(TensorType type);
std::optional<TensorType> tensor_type_from_name(std::string_view name);

inline bool is_quantised(TensorType type) {
  return type != TensorType::kF32 && type != TensorType::kF16 && type != TensorType::kBF16;
}

// Bytes of one row of `k` elements. `k` must be a multiple of the type's block.
inline uint64_t row_bytes(TensorType type, uint64_t k) {
  const TensorTypeTraits& traits = tensor_type_traits(type);
  return k / traits.block_elements * traits.block_bytes;
}

}  // namespace offstage
