#include "plan/quant_mix.h"

#include <array>
#include <charconv>

#include "base/check.h"

namespace offstage {
namespace {

constexpr std::array kMixes = {QuantMix::kF16,    QuantMix::kQ8_0,   QuantMix::kQ6_K,
                               QuantMix::kQ5_K_M, QuantMix::kQ4_K_M, QuantMix::kQ3_K_M,
                               QuantMix::kQ2_K,   QuantMix::kMxfp4};

// What a tensor of no particular role gets.
TensorType base_type(QuantMix mix) {
  switch (mix) {
    case QuantMix::kF16: return TensorType::kF16;
    case QuantMix::kQ8_0: return TensorType::kQ8_0;
    case QuantMix::kQ6_K: return TensorType::kQ6_K;
    case QuantMix::kQ5_K_M: return TensorType::kQ5_K;
    case QuantMix::kQ4_K_M: return TensorType::kQ4_K;
    case QuantMix::kQ3_K_M: return TensorType::kQ3_K;
    case QuantMix::kQ2_K: return TensorType::kQ2_K;
    case QuantMix::kMxfp4: return TensorType::kQ8_0;  // all but the experts
  }
  CHECK(false);
}

// "blk.12.…": 12; 0 for a tensor outside the layers.
uint32_t layer_of(std::string_view name) {
  uint32_t layer = 0;
  if (name.starts_with("blk.")) std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return layer;
}

bool contains(std::string_view name, std::string_view part) {
  return name.find(part) != std::string_view::npos;
}

// Vectors, norms and routers stay as they are: they weigh nothing and decide much.
bool stays_float(const GgufTensor& tensor) {
  return tensor.n_dims < 2 || !tensor.name.ends_with("weight") ||
         contains(tensor.name, "_norm.weight") || contains(tensor.name, "ffn_gate_inp.weight");
}

// The first and the last eighth of the layers, and every third between.
bool gets_more_bits(uint32_t layer, uint32_t n_layers) {
  return layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2;
}

TensorType type_of_v(QuantMix mix, uint32_t layer, const ModelSpec& spec) {
  if (spec.router.n_experts == 8) return TensorType::kQ8_0;
  TensorType type = base_type(mix);
  const uint32_t heads_per_kv = spec.attention.n_heads / spec.attention.n_kv_heads;
  if (mix == QuantMix::kQ2_K) type = heads_per_kv >= 4 ? TensorType::kQ4_K : TensorType::kQ3_K;
  if (mix == QuantMix::kQ3_K_M) type = layer < 2 ? TensorType::kQ5_K : TensorType::kQ4_K;
  if ((mix == QuantMix::kQ4_K_M || mix == QuantMix::kQ5_K_M) &&
      gets_more_bits(layer, spec.n_layers))
    type = TensorType::kQ6_K;
  // Llama's 70 B, told by its layers as there: V is an eighth of Q, so more bits cost little.
  const bool is_70b = spec.architecture == "llama" && spec.n_layers == 80;
  if (is_70b && (type == TensorType::kQ3_K || type == TensorType::kQ4_K)) type = TensorType::kQ5_K;
  return type;
}

TensorType type_of_down(QuantMix mix, uint32_t layer, const ModelSpec& spec) {
  switch (mix) {
    case QuantMix::kQ2_K: return TensorType::kQ3_K;
    case QuantMix::kQ3_K_M:
      return layer < spec.n_layers / 16 ? TensorType::kQ5_K : TensorType::kQ4_K;
    case QuantMix::kQ4_K_M:
    case QuantMix::kQ5_K_M:
      if (gets_more_bits(layer, spec.n_layers)) return TensorType::kQ6_K;
      break;
    default: break;
  }
  return base_type(mix);
}

TensorType type_of_attention_output(QuantMix mix, const ModelSpec& spec) {
  const bool few_bits =
      mix == QuantMix::kQ2_K || mix == QuantMix::kQ3_K_M || mix == QuantMix::kQ4_K_M;
  if (spec.router.n_experts == 8) return few_bits ? TensorType::kQ5_K : base_type(mix);
  if (mix == QuantMix::kQ2_K) return TensorType::kQ3_K;
  if (mix == QuantMix::kQ3_K_M) return TensorType::kQ4_K;
  return base_type(mix);
}

TensorType type_of_output(QuantMix mix, const GgufTensor& tensor) {
  const TensorType base = base_type(mix);
  const bool fits = tensor.dims[0] % tensor_type_traits(base).block_elements == 0;
  return base == TensorType::kQ8_0 || !fits ? TensorType::kQ8_0 : TensorType::kQ6_K;
}

TensorType type_by_role(QuantMix mix, const GgufTensor& tensor, const ModelSpec& spec, bool tied) {
  const std::string_view name = tensor.name;
  if (name == "output.weight" || (tied && name == "token_embd.weight"))
    return type_of_output(mix, tensor);
  if (mix == QuantMix::kMxfp4) return tensor.dims[2] > 1 ? TensorType::kMXFP4 : TensorType::kQ8_0;
  const uint32_t layer = layer_of(name);
  if (contains(name, "attn_v.weight") || contains(name, "attn_kv_b.weight"))
    return type_of_v(mix, layer, spec);
  if (contains(name, "attn_k.weight") && spec.router.n_experts == 8) return TensorType::kQ8_0;
  if (contains(name, "attn_output.weight")) return type_of_attention_output(mix, spec);
  if (contains(name, "ffn_down")) return type_of_down(mix, layer, spec);
  return base_type(mix);
}

// A row has to be whole blocks.
TensorType type_that_fits(TensorType type, uint64_t row) {
  const auto fits = [row](TensorType t) { return row % tensor_type_traits(t).block_elements == 0; };
  if (fits(type)) return type;
  switch (type) {
    case TensorType::kQ2_K:
    case TensorType::kQ3_K: type = TensorType::kQ4_0; break;
    case TensorType::kQ4_K: type = TensorType::kQ5_0; break;
    case TensorType::kQ5_K: type = TensorType::kQ5_1; break;
    case TensorType::kQ6_K: type = TensorType::kQ8_0; break;
    default: break;
  }
  return fits(type) ? type : TensorType::kF16;
}

}  // namespace

std::span<const QuantMix> quant_mixes() { return kMixes; }

std::string_view quant_mix_name(QuantMix mix) {
  switch (mix) {
    case QuantMix::kF16: return "f16";
    case QuantMix::kQ8_0: return "q8_0";
    case QuantMix::kQ6_K: return "q6_k";
    case QuantMix::kQ5_K_M: return "q5_k_m";
    case QuantMix::kQ4_K_M: return "q4_k_m";
    case QuantMix::kQ3_K_M: return "q3_k_m";
    case QuantMix::kQ2_K: return "q2_k";
    case QuantMix::kMxfp4: return "mxfp4";
  }
  CHECK(false);
}

std::optional<QuantMix> quant_mix_from_name(std::string_view name) {
  for (const QuantMix mix : kMixes)
    if (quant_mix_name(mix) == name) return mix;
  return std::nullopt;
}

TensorType mixed_type(QuantMix mix, const GgufTensor& tensor, const ModelSpec& spec, bool tied) {
  if (stays_float(tensor)) return TensorType::kF32;
  if (mix == QuantMix::kF16) return TensorType::kF16;
  return type_that_fits(type_by_role(mix, tensor, spec, tied), tensor.dims[0]);
}

}  // namespace offstage
