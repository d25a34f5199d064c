#include "model/spec_rotary.h"

#include <cmath>

namespace offstage {
namespace {

Result<RotaryScaling> read_scaling_kind(const SpecReader& reader) {
  OFFSTAGE_TRY(const auto stated, reader.gguf().find_string(reader.key("rope.scaling.type")));
  // Phi's files have LongRope's factors and no word about it.
  const bool has_factors = reader.gguf().find_tensor("rope_factors_long.weight") != nullptr;
  const std::string_view kind = stated.value_or(has_factors ? "longrope" : "none");
  if (kind == "none") return RotaryScaling::kNone;
  if (kind == "linear") return RotaryScaling::kLinear;
  if (kind == "yarn") return RotaryScaling::kYarn;
  if (kind == "longrope") return RotaryScaling::kLongRope;
  return make_error(ErrorCode::kUnsupported,
                    "{}: key '{}' at offset {}: rotary scaling '{}' is not supported "
                    "(supported: none, linear, yarn, longrope)",
                    reader.gguf().path(), reader.key("rope.scaling.type"),
                    reader.offset("rope.scaling.type"), kind);
}

// YaRN's own magnitude, ln of the factor on top of 1; the file may state a factor beside it.
Status read_yarn(const SpecReader& reader, float factor, RotarySpec& rotary) {
  OFFSTAGE_TRY(rotary.beta_fast, reader.positive_or("rope.scaling.yarn_beta_fast", 32));
  OFFSTAGE_TRY(rotary.beta_slow, reader.positive_or("rope.scaling.yarn_beta_slow", 1));
  if (factor > 1) rotary.magnitude *= 1.0f + 0.1f * std::log(factor);
  return {};
}

}  // namespace

Status read_rotary(const SpecReader& reader, RotaryKind kind, ModelSpec& spec) {
  RotarySpec& rotary = spec.rotary;
  rotary.kind = kind;
  OFFSTAGE_TRY(rotary.n_rot, reader.width_or("rope.dimension_count", spec.attention.head_dim_k));
  if (rotary.n_rot % 2 != 0 || rotary.n_rot > spec.attention.head_dim_k)
    return reader.bad_value("rope.dimension_count",
                            fmt::format("an even number up to {}", spec.attention.head_dim_k),
                            fmt::to_string(rotary.n_rot));
  OFFSTAGE_TRY(rotary.freq_base, reader.positive_or("rope.freq_base", 10000));
  OFFSTAGE_TRY(rotary.scaling, read_scaling_kind(reader));
  if (rotary.scaling == RotaryScaling::kNone) return {};
  OFFSTAGE_TRY(const float factor, reader.positive_or("rope.scaling.factor", 1));
  rotary.position_scale = 1.0f / factor;
  if (rotary.scaling == RotaryScaling::kLinear) return {};
  OFFSTAGE_TRY(rotary.context_original, reader.width_or("rope.scaling.original_context_length",
                                                        spec.context_train, UINT32_MAX));
  OFFSTAGE_TRY(rotary.magnitude, reader.positive_or("rope.scaling.attn_factor", 1));
  if (rotary.scaling == RotaryScaling::kYarn) return read_yarn(reader, factor, rotary);
  return {};
}

}  // namespace offstage
