#include "base/tensor_type.h"

#include <array>

#include "base/check.h"

namespace offstage {
namespace {

constexpr std::array kTraits = {
    TensorTypeTraits{TensorType::kF32, "F32", 1, 4},
    TensorTypeTraits{TensorType::kF16, "F16", 1, 2},
    TensorTypeTraits{TensorType::kBF16, "BF16", 1, 2},
    TensorTypeTraits{TensorType::kQ8_0, "Q8_0", 32, 34},
    TensorTypeTraits{TensorType::kQ4_0, "Q4_0", 32, 18},
    TensorTypeTraits{TensorType::kQ4_1, "Q4_1", 32, 20},
    TensorTypeTraits{TensorType::kQ5_0, "Q5_0", 32, 22},
    TensorTypeTraits{TensorType::kQ5_1, "Q5_1", 32, 24},
    TensorTypeTraits{TensorType::kQ2_K, "Q2_K", 256, 84},
    TensorTypeTraits{TensorType::kQ3_K, "Q3_K", 256, 110},
    TensorTypeTraits{TensorType::kQ4_K, "Q4_K", 256, 144},
    TensorTypeTraits{TensorType::kQ5_K, "Q5_K", 256, 176},
    TensorTypeTraits{TensorType::kQ6_K, "Q6_K", 256, 210},
    TensorTypeTraits{TensorType::kMXFP4, "MXFP4", 32, 17},
    TensorTypeTraits{TensorType::kIQ4_NL, "IQ4_NL", 32, 18},
    TensorTypeTraits{TensorType::kIQ4_XS, "IQ4_XS", 256, 136},
    TensorTypeTraits{TensorType::kIQ3_S, "IQ3_S", 256, 110},
    TensorTypeTraits{TensorType::kIQ3_XXS, "IQ3_XXS", 256, 98},
    TensorTypeTraits{TensorType::kIQ2_S, "IQ2_S", 256, 82},
    TensorTypeTraits{TensorType::kIQ2_XS, "IQ2_XS", 256, 74},
    TensorTypeTraits{TensorType::kIQ2_XXS, "IQ2_XXS", 256, 66},
    TensorTypeTraits{TensorType::kIQ1_M, "IQ1_M", 256, 56},
    TensorTypeTraits{TensorType::kIQ1_S, "IQ1_S", 256, 50},
};

// ggml's type ids in order; empty where an id was retired before GGUF v2.
constexpr std::array<std::string_view, 40> kGgufTypeNames = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

}  // namespace

std::optional<TensorType> tensor_type_from_gguf(uint32_t gguf_type_id) {
  for (const TensorTypeTraits& traits : kTraits)
    if (static_cast<uint32_t>(traits.type) == gguf_type_id) return traits.type;
  return std::nullopt;
}

std::string_view gguf_type_name(uint32_t gguf_type_id) {
  return gguf_type_id < kGgufTypeNames.size() ? kGgufTypeNames[gguf_type_id] : "unknown";
}

const TensorTypeTraits& tensor_type_traits(TensorType type) {
  for (const TensorTypeTraits& traits : kTraits)
    if (traits.type == type) return traits;
  CHECK(false);
}

std::optional<TensorType> tensor_type_from_name(std::string_view name) {
  for (const TensorTypeTraits& traits : kTraits)
    if (traits.name == name) return traits.type;
  return std::nullopt;
}

}  // namespace offstage
