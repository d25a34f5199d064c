#include "model/spec.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>

namespace offstage {
namespace {

// The facts of a family that its files don't state.
struct Family {
  std::string_view architecture;
  RotaryKind rotary;
  QkNorm qk_norm;
  bool qkv_bias;
  bool normalise_weights;
  bool shared_expert;
};

constexpr std::array kFamilies = {
    Family{"llama", RotaryKind::kAdjacentPairs, QkNorm::kNone, false, true, false},
    Family{"olmoe", RotaryKind::kNeox, QkNorm::kWhole, false, false, false},
    Family{"qwen2moe", RotaryKind::kNeox, QkNorm::kNone, true, false, true},
    Family{"qwen3moe", RotaryKind::kNeox, QkNorm::kPerHead, false, true, false},
};

constexpr std::array<std::string_view, kFamilies.size()> kArchitectures = {
    kFamilies[0].architecture, kFamilies[1].architecture, kFamilies[2].architecture,
    kFamilies[3].architecture};

// Widths beyond this are no model of today but a damaged file; it also keeps products in range.
constexpr uint64_t kWidthMax = 1u << 20;
constexpr uint64_t kVocabularyMax = 1u << 24;

class SpecReader {
 public:
  SpecReader(const GgufModel& gguf, std::string architecture)
      : gguf_(gguf), prefix_(std::move(architecture) + ".") {}

  std::string key(std::string_view suffix) const { return prefix_ + std::string(suffix); }

  // A count or width: required, in [1, max].
  Result<uint32_t> width(std::string_view suffix, uint64_t max = kWidthMax) const {
    OFFSTAGE_TRY(const uint64_t value, gguf_.require_uint(key(suffix)));
    return in_range(suffix, value, max);
  }

  Result<uint32_t> width_or(std::string_view suffix, uint32_t fallback) const {
    OFFSTAGE_TRY(const auto value, gguf_.find_uint(key(suffix)));
    if (!value) return fallback;
    return in_range(suffix, *value, kWidthMax);
  }

  // A number that is positive and finite as the float it becomes.
  Result<float> positive_or(std::string_view suffix, double fallback) const {
    OFFSTAGE_TRY(const auto value, gguf_.find_float(key(suffix)));
    if (!value) return static_cast<float>(fallback);
    if (!(*value >= FLT_MIN && *value <= FLT_MAX))
      return make_error(ErrorCode::kCorrupt,
                        "{}: key '{}' at offset {}: expected a finite float > 0, found {}",
                        gguf_.path(), key(suffix), offset(suffix), *value);
    return static_cast<float>(*value);
  }

  uint64_t offset(std::string_view suffix) const {
    const GgufValue* value = gguf_.find(key(suffix));
    return value == nullptr ? 0 : value->offset;
  }

 private:
  Result<uint32_t> in_range(std::string_view suffix, uint64_t value, uint64_t max) const {
    if (value < 1 || value > max)
      return make_error(ErrorCode::kCorrupt,
                        "{}: key '{}' at offset {}: expected 1 to {}, found {}", gguf_.path(),
                        key(suffix), offset(suffix), max, value);
    return static_cast<uint32_t>(value);
  }

  const GgufModel& gguf_;
  std::string prefix_;
};

Status read_attention(const GgufModel& gguf, const SpecReader& reader, const Family& family,
                      ModelSpec& spec) {
  AttentionSpec& attention = spec.attention;
  OFFSTAGE_TRY(attention.n_heads, reader.width("attention.head_count"));
  OFFSTAGE_TRY(attention.n_kv_heads, reader.width_or("attention.head_count_kv", attention.n_heads));
  if (attention.n_heads % attention.n_kv_heads != 0)
    return make_error(ErrorCode::kCorrupt,
                      "{}: key '{}' at offset {}: expected a divisor of head_count {}, found {}",
                      gguf.path(), reader.key("attention.head_count_kv"),
                      reader.offset("attention.head_count_kv"), attention.n_heads,
                      attention.n_kv_heads);
  const uint32_t head_dim = spec.hidden / attention.n_heads;
  OFFSTAGE_TRY(attention.head_dim_k, reader.width_or("attention.key_length", head_dim));
  OFFSTAGE_TRY(attention.head_dim_v, reader.width_or("attention.value_length", head_dim));
  if (attention.head_dim_k == 0 || attention.head_dim_v == 0 ||
      uint64_t{attention.n_heads} * attention.head_dim_k > kWidthMax ||
      uint64_t{attention.n_heads} * attention.head_dim_v > kWidthMax)
    return make_error(ErrorCode::kCorrupt,
                      "{}: key '{}' at offset {}: {} heads of {} (K) and {} (V) are no attention",
                      gguf.path(), reader.key("attention.head_count"),
                      reader.offset("attention.head_count"), attention.n_heads,
                      attention.head_dim_k, attention.head_dim_v);
  attention.qkv_bias = family.qkv_bias;
  attention.qk_norm = family.qk_norm;
  attention.scale = 1.0f / std::sqrt(static_cast<float>(attention.head_dim_k));
  return {};
}

Status read_rotary(const GgufModel& gguf, const SpecReader& reader, const Family& family,
                   ModelSpec& spec) {
  RotarySpec& rotary = spec.rotary;
  rotary.kind = family.rotary;
  OFFSTAGE_TRY(rotary.n_rot, reader.width_or("rope.dimension_count", spec.attention.head_dim_k));
  if (rotary.n_rot % 2 != 0 || rotary.n_rot > spec.attention.head_dim_k)
    return make_error(ErrorCode::kCorrupt,
                      "{}: key '{}' at offset {}: expected an even number up to {}, found {}",
                      gguf.path(), reader.key("rope.dimension_count"),
                      reader.offset("rope.dimension_count"), spec.attention.head_dim_k,
                      rotary.n_rot);
  OFFSTAGE_TRY(rotary.freq_base, reader.positive_or("rope.freq_base", 10000));
  OFFSTAGE_TRY(const auto scaling, gguf.find_string(reader.key("rope.scaling.type")));
  const std::string_view kind = scaling.value_or("none");
  if (kind != "none" && kind != "linear")
    return make_error(ErrorCode::kUnsupported,
                      "{}: key '{}' at offset {}: rotary scaling '{}' is not supported "
                      "(supported: none, linear)",
                      gguf.path(), reader.key("rope.scaling.type"),
                      reader.offset("rope.scaling.type"), kind);
  if (kind == "linear") {
    OFFSTAGE_TRY(const float factor, reader.positive_or("rope.scaling.factor", 1));
    rotary.position_scale = 1.0f / factor;
  }
  return {};
}

Status read_experts(const GgufModel& gguf, const SpecReader& reader, const Family& family,
                    ModelSpec& spec) {
  RouterSpec& router = spec.router;
  if (gguf.find(reader.key("expert_count")) == nullptr)
    return make_error(ErrorCode::kUnsupported,
                      "{}: no key '{}': a dense '{}' model; Offstage runs Mixture-of-Experts "
                      "models",
                      gguf.path(), reader.key("expert_count"), family.architecture);
  OFFSTAGE_TRY(router.n_experts, reader.width("expert_count", 65536));
  OFFSTAGE_TRY(router.n_used, reader.width("expert_used_count", 65536));
  if (router.n_used > router.n_experts)
    return make_error(ErrorCode::kCorrupt,
                      "{}: key '{}' at offset {}: expected at most expert_count {}, found {}",
                      gguf.path(), reader.key("expert_used_count"),
                      reader.offset("expert_used_count"), router.n_experts, router.n_used);
  router.normalise_weights = family.normalise_weights;
  OFFSTAGE_TRY(router.weights_scale, reader.positive_or("expert_weights_scale", 1));

  // Older files give an expert's width only as feed_forward_length (Mixtral: of one expert;
  // Qwen2-MoE: of all the used ones together). The tensors' own shapes decide, see tensors.cc.
  OFFSTAGE_TRY(const uint32_t ffn, reader.width_or("feed_forward_length", 1));
  OFFSTAGE_TRY(spec.expert_ffn, reader.width_or("expert_feed_forward_length", ffn));
  if (family.shared_expert) {
    OFFSTAGE_TRY(spec.shared_ffn, reader.width_or("expert_shared_feed_forward_length", ffn));
    spec.shared_gate = true;
  }
  return {};
}

Result<uint32_t> read_vocabulary_size(const GgufModel& gguf) {
  OFFSTAGE_TRY(const GgufTensor* embedding, gguf.tensor("token_embd.weight"));
  if (embedding->dims[1] < 1 || embedding->dims[1] > kVocabularyMax)
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor '{}' at offset {}: expected 1 to {} rows, found {}", gguf.path(),
                      embedding->name, embedding->info_offset, kVocabularyMax, embedding->dims[1]);
  return static_cast<uint32_t>(embedding->dims[1]);
}

}  // namespace

std::span<const std::string_view> supported_architectures() { return kArchitectures; }

Result<ModelSpec> ModelSpec::from_gguf(const GgufModel& gguf) {
  ModelSpec spec;
  OFFSTAGE_TRY(const std::string_view architecture, gguf.require_string("general.architecture"));
  const auto family =
      std::find_if(kFamilies.begin(), kFamilies.end(),
                   [&](const Family& candidate) { return candidate.architecture == architecture; });
  if (family == kFamilies.end())
    return make_error(ErrorCode::kUnsupported,
                      "{}: key 'general.architecture' at offset {}: '{}' is not supported "
                      "(supported: {})",
                      gguf.path(), gguf.find("general.architecture")->offset, architecture,
                      fmt::join(kArchitectures, ", "));
  spec.architecture = architecture;
  OFFSTAGE_TRY(const auto name, gguf.find_string("general.name"));
  spec.name = name ? std::string(*name) : gguf.path();

  const SpecReader reader(gguf, spec.architecture);
  OFFSTAGE_TRY(spec.n_layers, reader.width("block_count", 4096));
  OFFSTAGE_TRY(spec.hidden, reader.width("embedding_length"));
  OFFSTAGE_TRY(spec.context_train, reader.width("context_length", UINT32_MAX));
  OFFSTAGE_TRY(spec.norm_eps, reader.positive_or("attention.layer_norm_rms_epsilon", 1e-5));
  OFFSTAGE_TRY(spec.n_vocab, read_vocabulary_size(gguf));
  OFFSTAGE_TRY_VOID(read_attention(gguf, reader, *family, spec));
  OFFSTAGE_TRY_VOID(read_rotary(gguf, reader, *family, spec));
  OFFSTAGE_TRY_VOID(read_experts(gguf, reader, *family, spec));
  return spec;
}

}  // namespace offstage
