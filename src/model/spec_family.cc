#include "model/spec_family.h"

#include <algorithm>
#include <array>

namespace offstage {
namespace {

constexpr std::array kFamilies = {
    Family{
        .architecture = "llama",
        .experts = Has::kIfPresent,  // Llama, Mistral; Mixtral
        .rotary = RotaryKind::kAdjacentPairs,
        .normalise_weights = true,
    },
    Family{
        .architecture = "qwen2",
        .experts = Has::kNo,
        .qkv_bias = Has::kYes,
    },
    Family{
        .architecture = "qwen3",
        .experts = Has::kNo,
        .qk_norm = QkNorm::kPerHead,
    },
    Family{
        .architecture = "olmoe",
        .qk_norm = QkNorm::kWhole,
    },
    Family{
        .architecture = "qwen2moe",
        .qkv_bias = Has::kYes,
        .shared_expert = true,
        .shared_gate = true,
    },
    Family{
        .architecture = "qwen3moe",
        .qk_norm = QkNorm::kPerHead,
        .normalise_weights = true,
    },
    Family{
        .architecture = "gpt-oss",
        .qkv_bias = Has::kYes,
        .o_bias = Has::kYes,
        .sinks = true,
        .window_period = 2,
        .activation = Activation::kSwigluClamped,
        .score = RouterScore::kSoftmaxOfChosen,
        .router_bias = true,
        .expert_bias = true,
        .vocabulary = VocabularyCounts::kOutput,
    },
    Family{
        .architecture = "glm4moe",
        .qk_norm = QkNorm::kPerHead,
        .has_qk_norm = Has::kIfPresent,
        .qkv_bias = Has::kIfPresent,
        .score = RouterScore::kSigmoid,
        .selection_bias = Has::kYes,
        .shared_expert = true,
        .vocabulary = VocabularyCounts::kNeither,
    },
    Family{
        .architecture = "granitemoe",
        .rotary = RotaryKind::kAdjacentPairs,
        .o_bias = Has::kIfPresent,
        .normalise_weights = true,
        .shared_expert = true,
        .scales = true,
    },
    Family{
        .architecture = "minimax-m2",
        .qk_norm = QkNorm::kWhole,
        .score = RouterScore::kSigmoid,
        .normalise_weights = true,
        .selection_bias = Has::kYes,
        .vocabulary = VocabularyCounts::kOutput,
    },
    Family{
        // Trained with SparseMixer; its files are run with a plain softmax by everybody.
        .architecture = "phimoe",
        .qkv_bias = Has::kYes,
        .o_bias = Has::kYes,
        .norm = NormKind::kLayer,
        .normalise_weights = true,
        .output_bias = true,
    },
    Family{
        // V2, V3, R1, Kimi-K2, Moonlight
        .architecture = "deepseek2",
        .rotary = RotaryKind::kAdjacentPairs,
        .mla = true,
        .selection_bias = Has::kIfPresent,
        .shared_expert = true,
        .vocabulary = VocabularyCounts::kOutput,
    },
};

constexpr auto kArchitectures = [] {
  std::array<std::string_view, kFamilies.size()> names;
  std::transform(kFamilies.begin(), kFamilies.end(), names.begin(),
                 [](const Family& family) { return family.architecture; });
  return names;
}();

}  // namespace

const Family* find_family(std::string_view architecture) {
  const auto found = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& family) {
    return family.architecture == architecture;
  });
  return found == kFamilies.end() ? nullptr : &*found;
}

std::span<const std::string_view> supported_architectures() { return kArchitectures; }

}  // namespace offstage
