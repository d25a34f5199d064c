// What a file of a model weighs: the type that each of its tensors gets under a published recipe.
//
// `Q4_K_M` isn't a number of bits but a mixture: some layers' V and down projections are kept finer
// than the rest, models with 8 experts keep K and V in 8 bits, rows that aren't a multiple of 256
// get another type. The recipes are those of llama.cpp's quantiser (src/llama-quant.cpp, without an
// importance matrix), because its files are the ones that people have; written down in ours because
// a planner that multiplies by "4.5 bits" is 10 % off. Held against sizes of published files in
// tests/plan/quant_mix_test.cc.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "base/tensor_type.h"
#include "io/gguf.h"
#include "model/spec.h"

namespace offstage {

enum class QuantMix { kF16, kQ8_0, kQ6_K, kQ5_K_M, kQ4_K_M, kQ3_K_M, kQ2_K, kMxfp4 };

// Finest first.
std::span<const QuantMix> quant_mixes();
std::string_view quant_mix_name(QuantMix mix);  // "q4_k_m"
std::optional<QuantMix> quant_mix_from_name(std::string_view name);

// By the tensor's name and dimensions; `tied`: the model has no output matrix of its own.
TensorType mixed_type(QuantMix mix, const GgufTensor& tensor, const ModelSpec& spec, bool tied);

}  // namespace offstage
