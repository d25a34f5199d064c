#include "plan/model_shape.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "model/spec_family.h"

namespace offstage {
namespace {

// A config.json is untrusted input: above any model, low enough that products can't wrap.
constexpr uint32_t kLayersMax = 4096;
constexpr uint32_t kWidthMax = 1u << 20;
constexpr uint32_t kVocabMax = 1u << 24;
constexpr uint32_t kExpertsMax = 65535;

constexpr double kParamsMax = 1e15;

double parameters_at_most(const ModelShape& shape, double heads_width) {
  const double hidden = shape.hidden;
  const double experts = 3.0 * shape.n_experts * shape.expert_ffn;
  const double ffn = 3.0 * shape.dense_ffn + 3.0 * shape.shared_ffn;
  const double latents = double{1} * shape.mla.q_rank + shape.mla.kv_rank;
  return shape.n_layers * (hidden * (4 * heads_width + experts + ffn) + latents * heads_width) +
         2 * hidden * shape.n_vocab;
}

struct Bounded {
  std::string_view what;
  uint64_t value = 0, least = 0, most = 0;
};

Status check_sizes(const ModelShape& shape) {
  const bool has_experts = shape.n_experts != 0;
  const bool mla = shape.mla.kv_rank != 0;
  const bool has_dense = !has_experts || shape.n_dense_layers != 0;
  const uint64_t heads_width =
      uint64_t{shape.n_heads} *
      (mla ? std::max(shape.mla.head_dim(), shape.mla.row_dim()) : shape.head_dim);
  const Bounded bounds[] = {
      {"layers", shape.n_layers, 1, kLayersMax},
      {"hidden width", shape.hidden, 1, kWidthMax},
      {"vocabulary", shape.n_vocab, 1, kVocabMax},
      {"heads", shape.n_heads, 1, kWidthMax},
      {"KV heads", mla ? 1 : shape.n_kv_heads, 1, std::max(shape.n_heads, 1u)},
      {"width of all heads", heads_width, 1, kWidthMax},
      {"width of V in a head", mla ? shape.mla.v_dim : 1, 1, kWidthMax},
      {"query rank", shape.mla.q_rank, 0, kWidthMax},
      {"KV rank", shape.mla.kv_rank, 0, kWidthMax},
      {"width of a head that isn't rotated", shape.mla.nope_dim, mla ? 1u : 0u, kWidthMax},
      {"width of a head that is rotated", shape.mla.rope_dim, mla ? 1u : 0u, kWidthMax},
      {"experts", shape.n_experts, 0, kExpertsMax},
      {"experts called", shape.n_used, has_experts ? 1u : 0u, shape.n_experts},
      {"width of an expert", shape.expert_ffn, has_experts ? 1u : 0u, kWidthMax},
      {"width of the shared expert", shape.shared_ffn, 0, kWidthMax},
      {"layers without experts", shape.n_dense_layers, 0,
       has_experts ? std::max(shape.n_layers, 1u) - 1 : shape.n_layers},
      {"width of a dense FFN", shape.dense_ffn, has_dense ? 1u : 0u, kWidthMax},
  };
  for (const Bounded& b : bounds)
    if (b.value < b.least || b.value > b.most)
      return make_error(ErrorCode::kInvalidArgument, "{}: {}: expected {} to {}, found {}",
                        shape.name, b.what, b.least, b.most, b.value);
  // Each width may be large, not all of them together: sums of bytes must not wrap.
  const double params = parameters_at_most(shape, static_cast<double>(heads_width));
  if (params > kParamsMax)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: parameters: expected at most {:.3g}, found about {:.3g}", shape.name,
                      kParamsMax, params);
  if (!mla && shape.n_heads % shape.n_kv_heads != 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: KV heads: expected a divisor of {} heads, found {}", shape.name,
                      shape.n_heads, shape.n_kv_heads);
  return {};
}

bool has(Has rule, bool stated) { return rule == Has::kYes || (rule == Has::kIfPresent && stated); }

void fill_attention(const ModelShape& shape, const Family& family, AttentionSpec& attention) {
  attention.n_heads = shape.n_heads;
  attention.n_kv_heads = shape.n_kv_heads;
  attention.head_dim_k = attention.head_dim_v = shape.head_dim;
  attention.qkv_bias = has(family.qkv_bias, shape.qkv_bias);
  attention.o_bias = has(family.o_bias, shape.o_bias);
  if (has(family.has_qk_norm, shape.qk_norm)) attention.qk_norm = family.qk_norm;
  attention.sinks = family.sinks;
  attention.window = shape.window;
  attention.window_period = shape.window == 0 ? 0 : family.window_period;
  uint32_t scored = shape.head_dim;
  if (family.mla) {
    attention.mla = shape.mla;
    attention.n_kv_heads = 1;  // all heads read one latent
    attention.head_dim_k = shape.mla.row_dim();
    attention.head_dim_v = shape.mla.kv_rank;
    scored = shape.mla.head_dim();
  }
  attention.scale = 1.0f / std::sqrt(static_cast<float>(scored));
}

void fill_experts(const ModelShape& shape, const Family& family, ModelSpec& spec) {
  RouterSpec& router = spec.router;
  router.n_experts = shape.n_experts;
  router.n_used = shape.n_used;
  router.normalise_weights = family.normalise_weights;
  router.score = family.score;
  router.bias = family.router_bias;
  router.selection_bias = has(family.selection_bias, shape.selection_bias);
  spec.activation = family.activation;
  spec.expert_ffn = shape.expert_ffn;
  spec.expert_bias = family.expert_bias;
  spec.shared_ffn = family.shared_expert ? shape.shared_ffn : 0;
  spec.shared_gate = family.shared_gate && spec.shared_ffn != 0;
}

}  // namespace

Result<ModelSpec> spec_of(const ModelShape& shape) {
  const Family* family = find_family(shape.architecture);
  if (family == nullptr)
    return make_error(ErrorCode::kUnsupported, "{}: architecture '{}' isn't one of {}", shape.name,
                      shape.architecture, fmt::join(supported_architectures(), ", "));
  const bool has_experts = shape.n_experts != 0;
  if (has_experts ? family->experts == Has::kNo : family->experts == Has::kYes)
    return make_error(ErrorCode::kInvalidArgument, "{}: '{}' models {} experts, found {}",
                      shape.name, shape.architecture, has_experts ? "have no" : "have",
                      shape.n_experts);
  if (family->mla != (shape.mla.kv_rank != 0))
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: '{}' models have {} latent attention, found a KV rank of {}", shape.name,
                      shape.architecture, family->mla ? "a" : "no", shape.mla.kv_rank);
  OFFSTAGE_TRY_VOID(check_sizes(shape));
  ModelSpec spec;
  spec.architecture = shape.architecture;
  spec.name = shape.name;
  spec.n_layers = shape.n_layers;
  spec.hidden = shape.hidden;
  spec.n_vocab = shape.n_vocab;
  spec.context_train = shape.context_train;
  spec.norm = family->norm;
  spec.output_bias = family->output_bias;
  fill_attention(shape, *family, spec.attention);
  spec.rotary.kind = family->rotary;
  const uint32_t rotated = family->mla ? shape.mla.rope_dim : shape.head_dim;
  spec.rotary.n_rot = shape.n_rot == 0 ? rotated : std::min(shape.n_rot, rotated);
  spec.n_dense_layers = has_experts ? shape.n_dense_layers : shape.n_layers;
  spec.dense_ffn = spec.n_dense_layers == 0 ? 0 : shape.dense_ffn;
  if (has_experts) fill_experts(shape, *family, spec);
  return spec;
}

Result<ModelShape> find_shape(std::string_view name) {
  std::vector<std::string_view> names;
  for (const ModelShape& shape : known_shapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  return make_error(ErrorCode::kNotFound, "--shape: '{}' isn't one of {}", name,
                    fmt::join(names, ", "));
}

}  // namespace offstage
