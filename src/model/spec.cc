#include "model/spec.h"

#include <algorithm>
#include <cmath>

#include "model/spec_family.h"
#include "model/spec_mla.h"
#include "model/spec_reader.h"
#include "model/spec_rotary.h"

namespace offstage {
namespace {

constexpr uint64_t kVocabularyMax = 1u << 24;
constexpr uint64_t kLayersMax = 4096;
constexpr uint64_t kExpertsMax = 65536;

bool has(const SpecReader& reader, Has fact, const std::string& tensor) {
  if (fact == Has::kIfPresent) return reader.gguf().find_tensor(tensor) != nullptr;
  return fact == Has::kYes;
}

Status read_layers(const SpecReader& reader, ModelSpec& spec) {
  OFFSTAGE_TRY(const uint32_t blocks, reader.width("block_count", kLayersMax));
  OFFSTAGE_TRY(spec.n_unused_layers, reader.count("nextn_predict_layers", kLayersMax));
  if (spec.n_unused_layers >= blocks)
    return reader.bad_value("nextn_predict_layers", fmt::format("less than block_count {}", blocks),
                            fmt::to_string(spec.n_unused_layers));
  spec.n_layers = blocks - spec.n_unused_layers;
  return {};
}

Status read_norms(const SpecReader& reader, const Family& family, ModelSpec& spec) {
  spec.norm = family.norm;
  OFFSTAGE_TRY(spec.norm_eps, reader.positive_or("attention.layer_norm_rms_epsilon", 1e-5));
  return {};
}

Status read_window(const SpecReader& reader, const Family& family, AttentionSpec& attention) {
  if (family.window_period == 0) return {};
  OFFSTAGE_TRY(attention.window, reader.width("attention.sliding_window", UINT32_MAX));
  OFFSTAGE_TRY(attention.window_period, reader.width_or("attention.sliding_window_pattern",
                                                        family.window_period, kLayersMax));
  return {};
}

Status read_heads(const SpecReader& reader, ModelSpec& spec) {
  AttentionSpec& attention = spec.attention;
  OFFSTAGE_TRY(attention.n_heads, reader.width("attention.head_count"));
  OFFSTAGE_TRY(attention.n_kv_heads, reader.width_or("attention.head_count_kv", attention.n_heads));
  if (attention.n_heads % attention.n_kv_heads != 0)
    return reader.bad_value("attention.head_count_kv",
                            fmt::format("a divisor of head_count {}", attention.n_heads),
                            fmt::to_string(attention.n_kv_heads));
  const uint32_t head_dim = spec.hidden / attention.n_heads;
  OFFSTAGE_TRY(attention.head_dim_k, reader.width_or("attention.key_length", head_dim));
  OFFSTAGE_TRY(attention.head_dim_v, reader.width_or("attention.value_length", head_dim));
  if (attention.head_dim_k == 0 || attention.head_dim_v == 0 ||
      uint64_t{attention.n_heads} * attention.head_dim_k > kWidthMax ||
      uint64_t{attention.n_heads} * attention.head_dim_v > kWidthMax)
    return make_error(ErrorCode::kCorrupt,
                      "{}: key '{}' at offset {}: {} heads of {} (K) and {} (V) are no attention",
                      reader.gguf().path(), reader.key("attention.head_count"),
                      reader.offset("attention.head_count"), attention.n_heads,
                      attention.head_dim_k, attention.head_dim_v);
  return {};
}

Status read_attention(const SpecReader& reader, const Family& family, ModelSpec& spec) {
  AttentionSpec& attention = spec.attention;
  OFFSTAGE_TRY_VOID(read_heads(reader, spec));
  attention.qkv_bias = has(reader, family.qkv_bias, "blk.0.attn_q.bias");
  attention.o_bias = has(reader, family.o_bias, "blk.0.attn_output.bias");
  if (has(reader, family.has_qk_norm, "blk.0.attn_q_norm.weight"))
    attention.qk_norm = family.qk_norm;
  attention.sinks = family.sinks;
  const float scale = 1.0f / std::sqrt(static_cast<float>(attention.head_dim_k));
  attention.scale = scale;
  if (family.scales) {
    OFFSTAGE_TRY(attention.scale, reader.positive_or("attention.scale", double{scale}));
  }
  return read_window(reader, family, attention);
}

Status read_score(const SpecReader& reader, const Family& family, RouterSpec& router) {
  // As the GGUF key numbers them; 0 leaves it to the family.
  constexpr uint64_t kByFamily = 0, kSoftmax = 1, kSigmoid = 2, kSoftmaxOfChosen = 3;
  router.score = family.score;
  OFFSTAGE_TRY(const auto stated, reader.gguf().find_uint(reader.key("expert_gating_func")));
  switch (stated.value_or(kByFamily)) {
    case kByFamily: return {};
    case kSoftmax: router.score = RouterScore::kSoftmax; return {};
    case kSigmoid: router.score = RouterScore::kSigmoid; return {};
    case kSoftmaxOfChosen: router.score = RouterScore::kSoftmaxOfChosen; return {};
    default: break;
  }
  return make_error(ErrorCode::kUnsupported,
                    "{}: key '{}' at offset {}: router function {} is not supported (supported: 1 "
                    "softmax, 2 sigmoid, 3 softmax of the chosen)",
                    reader.gguf().path(), reader.key("expert_gating_func"),
                    reader.offset("expert_gating_func"), *stated);
}

Status read_groups(const SpecReader& reader, RouterSpec& router) {
  OFFSTAGE_TRY(router.n_groups, reader.width_or("expert_group_count", 1));
  OFFSTAGE_TRY(router.n_groups_used, reader.width_or("expert_group_used_count", router.n_groups));
  if (router.n_groups == 1) return {};
  const uint32_t group = router.n_experts / router.n_groups;
  if (router.n_experts % router.n_groups != 0 || group < 2)
    return reader.bad_value(
        "expert_group_count",
        fmt::format("a divisor of expert_count {} into two or more", router.n_experts),
        fmt::to_string(router.n_groups));
  if (router.n_groups_used > router.n_groups || router.n_groups_used * group < router.n_used)
    return reader.bad_value("expert_group_used_count",
                            fmt::format("groups of {} experts, at most {}, that hold {}", group,
                                        router.n_groups, router.n_used),
                            fmt::to_string(router.n_groups_used));
  return {};
}

Status read_router(const SpecReader& reader, const Family& family, ModelSpec& spec) {
  RouterSpec& router = spec.router;
  OFFSTAGE_TRY(router.n_experts, reader.width("expert_count", kExpertsMax));
  OFFSTAGE_TRY(router.n_used, reader.width("expert_used_count", kExpertsMax));
  if (router.n_used > router.n_experts)
    return reader.bad_value("expert_used_count",
                            fmt::format("at most expert_count {}", router.n_experts),
                            fmt::to_string(router.n_used));
  OFFSTAGE_TRY(router.normalise_weights,
               reader.flag_or("expert_weights_norm", family.normalise_weights));
  OFFSTAGE_TRY(router.weights_scale, reader.positive_or("expert_weights_scale", 1));
  OFFSTAGE_TRY_VOID(read_score(reader, family, router));
  router.bias = family.router_bias;
  router.selection_bias = has(reader, family.selection_bias,
                              fmt::format("blk.{}.exp_probs_b.bias", spec.n_dense_layers));
  // Files of a time before the key: such a bias came with the sigmoid.
  if (router.selection_bias && !reader.states("expert_gating_func"))
    router.score = RouterScore::kSigmoid;
  return read_groups(reader, router);
}

Status read_shared_expert(const SpecReader& reader, const Family& family, uint32_t ffn,
                          ModelSpec& spec) {
  if (!family.shared_expert) return {};
  const uint32_t fallback = family.shared_gate ? ffn : 0;
  OFFSTAGE_TRY(spec.shared_ffn, reader.width_or("expert_shared_feed_forward_length", fallback));
  OFFSTAGE_TRY(const uint32_t n_shared, reader.count("expert_shared_count", kExpertsMax));
  // Some families state how many shared experts of an expert's width there are: one wide one.
  if (spec.shared_ffn == 0 && n_shared != 0) {
    if (uint64_t{n_shared} * spec.expert_ffn > kWidthMax)
      return reader.bad_value("expert_shared_count",
                              fmt::format("shared experts of {} that together are at most {} wide",
                                          spec.expert_ffn, kWidthMax),
                              fmt::to_string(n_shared));
    spec.shared_ffn = n_shared * spec.expert_ffn;
  }
  spec.shared_gate = family.shared_gate && spec.shared_ffn != 0;
  return {};
}

Status read_experts(const SpecReader& reader, const Family& family, ModelSpec& spec) {
  OFFSTAGE_TRY(const uint32_t n_dense, reader.count("leading_dense_block_count", kLayersMax));
  spec.n_dense_layers = std::min(n_dense, spec.n_layers);
  OFFSTAGE_TRY_VOID(read_router(reader, family, spec));
  spec.activation = family.activation;
  spec.expert_bias = family.expert_bias;
  // Older files give an expert's width only as feed_forward_length (Mixtral: of one expert;
  // Qwen2-MoE: of all the used ones together). The tensors' own shapes decide, see tensors.cc.
  OFFSTAGE_TRY(const uint32_t ffn, reader.width_or("feed_forward_length", 1));
  OFFSTAGE_TRY(spec.expert_ffn, reader.width_or("expert_feed_forward_length", ffn));
  if (spec.n_dense_layers != 0) {
    OFFSTAGE_TRY(spec.dense_ffn, reader.width("feed_forward_length"));
  }
  return read_shared_expert(reader, family, ffn, spec);
}

Status read_ffn(const SpecReader& reader, const Family& family, ModelSpec& spec) {
  const bool states_experts = reader.states("expert_count");
  if (family.experts == Has::kYes && !states_experts)
    return make_error(ErrorCode::kNotFound, "{}: no key '{}': a '{}' model has experts",
                      reader.gguf().path(), reader.key("expert_count"), family.architecture);
  if (family.experts != Has::kNo && states_experts) return read_experts(reader, family, spec);
  spec.n_dense_layers = spec.n_layers;
  OFFSTAGE_TRY(spec.dense_ffn, reader.width("feed_forward_length"));
  return {};
}

Status read_scales(const SpecReader& reader, const Family& family, ModelSpec& spec) {
  if (!family.scales) return {};
  OFFSTAGE_TRY(spec.embedding_scale, reader.positive_or("embedding_scale", 1));
  OFFSTAGE_TRY(spec.residual_scale, reader.positive_or("residual_scale", 1));
  OFFSTAGE_TRY(const float divisor, reader.positive_or("logit_scale", 1));
  spec.logit_scale = 1.0f / divisor;
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

Result<ModelSpec> ModelSpec::from_gguf(const GgufModel& gguf) {
  ModelSpec spec;
  OFFSTAGE_TRY(const std::string_view architecture, gguf.require_string("general.architecture"));
  const Family* family = find_family(architecture);
  if (family == nullptr)
    return make_error(ErrorCode::kUnsupported,
                      "{}: key 'general.architecture' at offset {}: '{}' is not supported "
                      "(supported: {})",
                      gguf.path(), gguf.find("general.architecture")->offset, architecture,
                      fmt::join(supported_architectures(), ", "));
  spec.architecture = architecture;
  OFFSTAGE_TRY(const auto name, gguf.find_string("general.name"));
  spec.name = name ? std::string(*name) : gguf.path();

  const SpecReader reader(gguf, spec.architecture);
  OFFSTAGE_TRY_VOID(read_layers(reader, spec));
  OFFSTAGE_TRY(spec.hidden, reader.width("embedding_length"));
  OFFSTAGE_TRY(spec.context_train, reader.width("context_length", UINT32_MAX));
  OFFSTAGE_TRY(spec.n_vocab, read_vocabulary_size(gguf));
  spec.output_bias = family->output_bias;
  OFFSTAGE_TRY_VOID(read_norms(reader, *family, spec));
  OFFSTAGE_TRY_VOID(read_attention(reader, *family, spec));
  OFFSTAGE_TRY_VOID(read_rotary(reader, family->rotary, spec));
  if (family->mla) OFFSTAGE_TRY_VOID(read_mla(reader, spec));
  OFFSTAGE_TRY_VOID(read_ffn(reader, *family, spec));
  OFFSTAGE_TRY_VOID(read_scales(reader, *family, spec));
  return spec;
}

}  // namespace offstage
