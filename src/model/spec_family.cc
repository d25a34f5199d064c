#include "model/spec_family.h"

#include <algorithm>
#include <array>

namespace offstage {
namespace {

constexpr std::array kFamilies = {
    Family{
        .architecture = "llama",
        .rotary = RotaryKind::kAdjacentPairs,
        .normalise_weights = true,
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
