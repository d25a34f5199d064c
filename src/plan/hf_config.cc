#include "plan/hf_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

namespace offstage {
namespace {

using Json = nlohmann::json;

// How a family's config.json spells what a shape holds. Empty: it has no such thing.
struct Dialect {
  std::string_view model_type;
  std::string_view architecture;  // as GGUF has it
  std::string_view experts = {};
  std::string_view expert_ffn = {};
  std::string_view dense_ffn = {};
  std::string_view dense_layers = {};  // a count of leading ones
  std::string_view shared_ffn = {};    // a width …
  std::string_view shared_count = {};  // … or how many, each as wide as an expert
  std::string_view window = {};
  std::string_view n_rot = {};
  std::string_view qkv_bias = {};  // a flag
  std::string_view qk_norm = {};   // a flag
  bool mla = false;
  bool selection_bias = false;
};

constexpr std::array kDialects = {
    Dialect{.model_type = "llama", .architecture = "llama", .dense_ffn = "intermediate_size"},
    Dialect{.model_type = "mistral", .architecture = "llama", .dense_ffn = "intermediate_size"},
    Dialect{.model_type = "qwen2", .architecture = "qwen2", .dense_ffn = "intermediate_size"},
    Dialect{.model_type = "qwen3", .architecture = "qwen3", .dense_ffn = "intermediate_size"},
    Dialect{.model_type = "mixtral",
            .architecture = "llama",
            .experts = "num_local_experts",
            .expert_ffn = "intermediate_size"},
    Dialect{.model_type = "qwen2_moe",
            .architecture = "qwen2moe",
            .experts = "num_experts",
            .expert_ffn = "moe_intermediate_size",
            .shared_ffn = "shared_expert_intermediate_size"},
    Dialect{.model_type = "qwen3_moe",
            .architecture = "qwen3moe",
            .experts = "num_experts",
            .expert_ffn = "moe_intermediate_size"},
    Dialect{.model_type = "olmoe",
            .architecture = "olmoe",
            .experts = "num_experts",
            .expert_ffn = "intermediate_size"},
    Dialect{.model_type = "gpt_oss",
            .architecture = "gpt-oss",
            .experts = "num_local_experts",
            .expert_ffn = "intermediate_size",
            .window = "sliding_window"},
    Dialect{.model_type = "glm4_moe",
            .architecture = "glm4moe",
            .experts = "n_routed_experts",
            .expert_ffn = "moe_intermediate_size",
            .dense_ffn = "intermediate_size",
            .dense_layers = "first_k_dense_replace",
            .shared_count = "n_shared_experts",
            .qkv_bias = "attention_bias",
            .qk_norm = "use_qk_norm"},
    Dialect{.model_type = "granitemoe",
            .architecture = "granitemoe",
            .experts = "num_local_experts",
            .expert_ffn = "intermediate_size"},
    Dialect{.model_type = "granitemoeshared",
            .architecture = "granitemoe",
            .experts = "num_local_experts",
            .expert_ffn = "intermediate_size",
            .shared_ffn = "shared_intermediate_size"},
    Dialect{.model_type = "minimax_m2",
            .architecture = "minimax-m2",
            .experts = "num_local_experts",
            .expert_ffn = "intermediate_size",
            .n_rot = "rotary_dim",
            .selection_bias = true},
    Dialect{.model_type = "phimoe",
            .architecture = "phimoe",
            .experts = "num_local_experts",
            .expert_ffn = "intermediate_size"},
    Dialect{.model_type = "deepseek_v2",
            .architecture = "deepseek2",
            .experts = "n_routed_experts",
            .expert_ffn = "moe_intermediate_size",
            .dense_ffn = "intermediate_size",
            .dense_layers = "first_k_dense_replace",
            .shared_count = "n_shared_experts",
            .mla = true},
    Dialect{.model_type = "deepseek_v3",
            .architecture = "deepseek2",
            .experts = "n_routed_experts",
            .expert_ffn = "moe_intermediate_size",
            .dense_ffn = "intermediate_size",
            .dense_layers = "first_k_dense_replace",
            .shared_count = "n_shared_experts",
            .mla = true,
            .selection_bias = true},
    Dialect{.model_type = "kimi_k2",
            .architecture = "deepseek2",
            .experts = "n_routed_experts",
            .expert_ffn = "moe_intermediate_size",
            .dense_ffn = "intermediate_size",
            .dense_layers = "first_k_dense_replace",
            .shared_count = "n_shared_experts",
            .mla = true,
            .selection_bias = true},
};

// Printable and short, for messages.
std::string shown(const Json& value) {
  constexpr size_t kShown = 60;
  return value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, kShown);
}

class ConfigReader {
 public:
  ConfigReader(const Json& json, const std::string& path) : json_(json), path_(path) {}

  Result<uint32_t> count(std::string_view key) const {
    const auto found = json_.find(key);
    if (found == json_.end() || found->is_null())
      return make_error(ErrorCode::kNotFound, "{}: key '{}': expected a count, found none", path_,
                        key);
    if (found->is_number_unsigned() && found->get<uint64_t>() <= UINT32_MAX)
      return static_cast<uint32_t>(found->get<uint64_t>());
    return make_error(ErrorCode::kCorrupt, "{}: key '{}': expected a count, found {}", path_, key,
                      shown(*found));
  }
  // A key that the family has no name for, or that isn't there, is `otherwise`.
  Result<uint32_t> count_or(std::string_view key, uint32_t otherwise) const {
    if (key.empty() || !states(key)) return otherwise;
    return count(key);
  }
  Result<bool> flag_or(std::string_view key, bool otherwise) const {
    if (key.empty() || !states(key)) return otherwise;
    const Json& value = *json_.find(key);
    if (value.is_boolean()) return value.get<bool>();
    return make_error(ErrorCode::kCorrupt, "{}: key '{}': expected true or false, found {}", path_,
                      key, shown(value));
  }
  Result<std::string> text(std::string_view key) const {
    const auto found = json_.find(key);
    if (found != json_.end() && found->is_string()) return found->get<std::string>();
    return make_error(found == json_.end() ? ErrorCode::kNotFound : ErrorCode::kCorrupt,
                      "{}: key '{}': expected text, found {}", path_, key,
                      found == json_.end() ? "none" : shown(*found));
  }
  bool states(std::string_view key) const {
    const auto found = json_.find(key);
    return found != json_.end() && !found->is_null();
  }
  const Json* find(std::string_view key) const {
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }
  const std::string& path() const { return path_; }

 private:
  const Json& json_;
  const std::string& path_;
};

Result<Dialect> dialect_of(const ConfigReader& config) {
  OFFSTAGE_TRY(const std::string model_type, config.text("model_type"));
  std::vector<std::string_view> known;
  for (const Dialect& dialect : kDialects) {
    if (dialect.model_type == model_type) return dialect;
    known.push_back(dialect.model_type);
  }
  return make_error(ErrorCode::kUnsupported, "{}: key 'model_type': {} isn't one of {}",
                    config.path(), shown(model_type), fmt::join(known, ", "));
}

// A shape says "the first ones are dense, the others have experts", and nothing else.
Status check_every_layer_has_experts(const ConfigReader& config) {
  for (const char* key : {"decoder_sparse_step", "moe_layer_freq"}) {
    const Json* step = config.find(key);
    if (step != nullptr && step->is_number() && *step != 1)
      return make_error(ErrorCode::kUnsupported,
                        "{}: key '{}': expected 1 (experts in every layer), found {}",
                        config.path(), key, step->dump());
  }
  const Json* plain = config.find("mlp_only_layers");
  if (plain != nullptr && plain->is_array() && !plain->empty())
    return make_error(ErrorCode::kUnsupported,
                      "{}: key 'mlp_only_layers': expected none, found {} of them", config.path(),
                      plain->size());
  return {};
}

Status read_attention(const ConfigReader& config, const Dialect& dialect, ModelShape& shape) {
  OFFSTAGE_TRY(shape.n_heads, config.count("num_attention_heads"));
  if (shape.n_heads == 0)
    return make_error(ErrorCode::kCorrupt,
                      "{}: key 'num_attention_heads': expected at least 1, found 0", config.path());
  if (dialect.mla) {
    OFFSTAGE_TRY(shape.mla.kv_rank, config.count("kv_lora_rank"));
    OFFSTAGE_TRY(shape.mla.q_rank, config.count_or("q_lora_rank", 0));
    OFFSTAGE_TRY(shape.mla.nope_dim, config.count("qk_nope_head_dim"));
    OFFSTAGE_TRY(shape.mla.rope_dim, config.count("qk_rope_head_dim"));
    OFFSTAGE_TRY(shape.mla.v_dim, config.count("v_head_dim"));
    return {};
  }
  OFFSTAGE_TRY(shape.n_kv_heads, config.count_or("num_key_value_heads", shape.n_heads));
  OFFSTAGE_TRY(shape.head_dim, config.count_or("head_dim", shape.hidden / shape.n_heads));
  OFFSTAGE_TRY(shape.window, config.count_or(dialect.window, 0));
  OFFSTAGE_TRY(shape.n_rot, config.count_or(dialect.n_rot, 0));
  const Json* partial = config.find("partial_rotary_factor");
  if (shape.n_rot == 0 && partial != nullptr && partial->is_number()) {
    const double share = partial->get<double>();
    if (share > 0 && share <= 1) shape.n_rot = static_cast<uint32_t>(share * shape.head_dim);
  }
  OFFSTAGE_TRY(shape.qkv_bias, config.flag_or(dialect.qkv_bias, false));
  OFFSTAGE_TRY(shape.qk_norm, config.flag_or(dialect.qk_norm, false));
  return {};
}

Status read_ffn(const ConfigReader& config, const Dialect& dialect, ModelShape& shape) {
  OFFSTAGE_TRY(shape.dense_ffn, config.count_or(dialect.dense_ffn, 0));
  if (dialect.experts.empty()) return {};
  OFFSTAGE_TRY_VOID(check_every_layer_has_experts(config));
  OFFSTAGE_TRY(shape.n_experts, config.count(dialect.experts));
  OFFSTAGE_TRY(shape.n_used,
               config.count(config.states("num_experts_per_tok") ? "num_experts_per_tok"
                                                                 : "experts_per_token"));
  OFFSTAGE_TRY(shape.expert_ffn, config.count(dialect.expert_ffn));
  OFFSTAGE_TRY(shape.n_dense_layers, config.count_or(dialect.dense_layers, 0));
  OFFSTAGE_TRY(shape.shared_ffn, config.count_or(dialect.shared_ffn, 0));
  OFFSTAGE_TRY(const uint32_t n_shared, config.count_or(dialect.shared_count, 0));
  if (n_shared > 64)
    return make_error(ErrorCode::kCorrupt, "{}: key '{}': expected at most 64, found {}",
                      config.path(), dialect.shared_count, n_shared);
  if (n_shared != 0) {
    const uint64_t width = uint64_t{n_shared} * shape.expert_ffn;
    shape.shared_ffn = static_cast<uint32_t>(std::min<uint64_t>(width, UINT32_MAX));
  }
  shape.selection_bias = dialect.selection_bias;
  return {};
}

// "Qwen3-30B-A3B" of "…/Qwen3-30B-A3B/config.json".
std::string name_of(const std::string& path) {
  const std::filesystem::path file(path);
  const std::string folder = file.parent_path().filename().string();
  return file.filename() == "config.json" && !folder.empty() ? folder : file.stem().string();
}

}  // namespace

Result<ModelShape> shape_from_hf_config(std::string_view text, const std::string& path) {
  const Json document = Json::parse(text, nullptr, false);
  if (!document.is_object())
    return make_error(ErrorCode::kCorrupt, "{}: expected a JSON object, found {}", path,
                      document.is_discarded() ? "no JSON" : document.type_name());
  // A model that sees pictures too keeps its language model's part by itself.
  const auto inner = document.find("text_config");
  const bool nested =
      inner != document.end() && inner->is_object() && !document.contains("num_hidden_layers");
  const ConfigReader config(nested ? *inner : document, path);
  OFFSTAGE_TRY(const Dialect dialect, dialect_of(config));
  ModelShape shape;
  shape.name = name_of(path);
  shape.architecture = dialect.architecture;
  shape.source = path;
  OFFSTAGE_TRY(shape.n_layers, config.count("num_hidden_layers"));
  OFFSTAGE_TRY(shape.hidden, config.count("hidden_size"));
  OFFSTAGE_TRY(shape.n_vocab, config.count("vocab_size"));
  OFFSTAGE_TRY(shape.context_train, config.count_or("max_position_embeddings", 0));
  OFFSTAGE_TRY(shape.tied_embedding, config.flag_or("tie_word_embeddings", false));
  OFFSTAGE_TRY_VOID(read_attention(config, dialect, shape));
  OFFSTAGE_TRY_VOID(read_ffn(config, dialect, shape));
  return shape;
}

}  // namespace offstage
