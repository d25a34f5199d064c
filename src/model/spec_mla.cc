#include "model/spec_mla.h"

#include <cmath>

namespace offstage {
namespace {

// A file says which of two layouts it has. The newer: attn_k_b and attn_v_b, one matrix per head;
// key_length and value_length are those of a cached row, the heads' own stand in *_mla. The older:
// one attn_kv_b, and key_length and value_length are the heads'.
Status read_widths(const SpecReader& reader, uint32_t rope_dim, AttentionSpec& attention) {
  MlaSpec& mla = attention.mla;
  mla.joint_kv_b = !reader.states("attention.key_length_mla");
  const std::string_view suffix = mla.joint_kv_b ? "" : "_mla";
  const std::string key_length = fmt::format("attention.key_length{}", suffix);
  OFFSTAGE_TRY(const uint32_t head_dim, reader.width(key_length));
  OFFSTAGE_TRY(mla.v_dim, reader.width(fmt::format("attention.value_length{}", suffix)));
  OFFSTAGE_TRY(mla.kv_rank, reader.width("attention.kv_lora_rank"));
  OFFSTAGE_TRY(mla.q_rank, reader.count("attention.q_lora_rank", kWidthMax));
  if (head_dim <= rope_dim)
    return reader.bad_value(key_length, fmt::format("more than rope.dimension_count {}", rope_dim),
                            fmt::to_string(head_dim));
  mla.rope_dim = rope_dim;
  mla.nope_dim = head_dim - rope_dim;
  const uint64_t widest = std::max(
      {uint64_t{mla.kv_rank} + rope_dim, uint64_t{head_dim}, uint64_t{mla.nope_dim} + mla.v_dim});
  if (widest * attention.n_heads > kWidthMax)
    return reader.bad_value(
        "attention.kv_lora_rank",
        fmt::format("{} heads of together at most {}", attention.n_heads, kWidthMax),
        fmt::to_string(widest * attention.n_heads));
  return {};
}

// YaRN weighs all of a score, not the rotated part alone: with mscale_all_dim m stated, cos and sin
// keep their magnitude and the score takes (1 + 0.1 m ln factor)². Without it both take YaRN's own
// 1 + 0.1 ln factor, as in llama.cpp. A file's m lies there as 0.1 m.
Status read_score_scale(const SpecReader& reader, ModelSpec& spec) {
  RotarySpec& rotary = spec.rotary;
  const MlaSpec& mla = spec.attention.mla;
  float mscale = 1;
  if (rotary.scaling == RotaryScaling::kYarn) {
    OFFSTAGE_TRY(const float stated, reader.positive_or("rope.scaling.attn_factor", 1));
    const float log_factor = std::max(0.0f, std::log(1.0f / rotary.position_scale));
    OFFSTAGE_TRY(const float log_multiplier,
                 reader.positive_or("rope.scaling.yarn_log_multiplier", 0.1));
    mscale = stated * (1.0f + log_multiplier * log_factor);
    rotary.magnitude = reader.states("rope.scaling.yarn_log_multiplier") ? stated : mscale;
  }
  spec.attention.scale =
      mscale * mscale / std::sqrt(static_cast<float>(mla.nope_dim + mla.rope_dim));
  return {};
}

}  // namespace

Status read_mla(const SpecReader& reader, ModelSpec& spec) {
  AttentionSpec& attention = spec.attention;
  const RotaryScaling scaling = spec.rotary.scaling;
  if (scaling != RotaryScaling::kNone && scaling != RotaryScaling::kYarn)
    return make_error(ErrorCode::kUnsupported,
                      "{}: key '{}' at offset {}: '{}' models are computed with none or yarn",
                      reader.gguf().path(), reader.key("rope.scaling.type"),
                      reader.offset("rope.scaling.type"), spec.architecture);
  if (reader.states("attention.temperature_scale"))
    return make_error(ErrorCode::kUnsupported,
                      "{}: key '{}' at offset {}: a temperature that grows with the position is "
                      "not supported",
                      reader.gguf().path(), reader.key("attention.temperature_scale"),
                      reader.offset("attention.temperature_scale"));
  OFFSTAGE_TRY_VOID(read_widths(reader, spec.rotary.n_rot, attention));
  attention.n_kv_heads = 1;  // all heads read one latent
  attention.head_dim_k = attention.mla.row_dim();
  attention.head_dim_v = attention.mla.kv_rank;
  return read_score_scale(reader, spec);
}

}  // namespace offstage
