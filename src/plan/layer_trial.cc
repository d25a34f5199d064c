#include "plan/layer_trial.h"

#include <algorithm>
#include <vector>

#include "base/notices.h"
#include "base/rng.h"
#include "plan/cache_sweep.h"
#include "plan/planned_model.h"
#include "plan/token_cost.h"
#include "runtime/ceilings.h"
#include "runtime/runtime.h"
#include "runtime/session.h"

namespace offstage {
namespace {

constexpr uint32_t kWarmTokens = 8, kTokens = 64;
constexpr uint32_t kContext = 1 + kWarmTokens + kTokens;
// What a core's share of the last cache may be: more would take seconds.
constexpr size_t kSweptBytesMin = 16u << 20, kSweptBytesMax = 128u << 20;

std::vector<TokenId> drawn_tokens(uint32_t n, uint32_t n_vocab) {
  Rng rng(1);
  std::vector<TokenId> tokens;
  for (uint32_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(rng.below(n_vocab)));
  return tokens;
}

// Of the tokens after the warm ones, by cause. The sweeps are the caller's time.
Result<std::vector<CauseTimes>> decode(Runtime& runtime, size_t swept_bytes) {
  const CacheSweep weights(swept_bytes);
  std::vector<CauseTimes> times;
  GenerateOptions options;
  options.on_record = [&](const TokenRecord& record) {
    times.push_back(record.causes);
    weights.pass();
  };
  const std::vector<TokenId> tokens = drawn_tokens(kContext, runtime.spec().n_vocab);
  Session session(runtime, SequenceId(0));
  OFFSTAGE_TRY_VOID(session.feed({tokens.data(), 1}, std::span(tokens).subspan(1), options));
  times.erase(times.begin(), times.begin() + kWarmTokens);
  return times;
}

double median_ns(std::vector<CauseTimes>& tokens, Cause cause) {
  const auto middle = tokens.begin() + static_cast<ptrdiff_t>(tokens.size() / 2);
  std::nth_element(
      tokens.begin(), middle, tokens.end(),
      [cause](const CauseTimes& a, const CauseTimes& b) { return a[cause] < b[cause]; });
  return static_cast<double>((*middle)[cause]);
}

// The same machine if nothing took time but weights and KV.
HardwareProfile only_flowing(const HardwareProfile& profile) {
  HardwareProfile flowing = profile;
  flowing.dispatch_ns = flowing.product_ns = 0;
  flowing.attention_ns = flowing.router_ns = flowing.experts_ns = 0;
  return flowing;
}

int64_t beside_ns(double measured_ns, double flowing_ns, uint32_t layers) {
  return std::max<int64_t>(static_cast<int64_t>((measured_ns - flowing_ns) / layers), 1);
}

}  // namespace

Result<LayerTrial> try_layers(const LayerTrialParts& parts) {
  RuntimeOptions options;
  options.model_path = parts.model;
  options.context = kContext;
  options.threads = parts.threads;
  options.isa = parts.isa;
  options.warm_start = false;
  options.prefetch = Prefetch::kOff;
  options.probe = Probe::kOff;
  Notices unheard;
  OFFSTAGE_TRY(const auto runtime, Runtime::open(options, unheard, {}));
  const ModelSpec& spec = runtime->spec();
  if (spec.n_moe_layers() == 0)
    return make_error(ErrorCode::kUnsupported, "{}: a layer trial needs a model with experts",
                      parts.model);
  if (!runtime->plan().all_resident(runtime->file().expert_layout()))
    return make_error(ErrorCode::kBudget, "{}: a layer trial needs all experts in RAM",
                      parts.model);
  const size_t swept_bytes = parts.swept_bytes != 0 ? parts.swept_bytes
                                                    : std::clamp(2 * last_level_cache_bytes(),
                                                                 kSweptBytesMin, kSweptBytesMax);
  OFFSTAGE_TRY(std::vector<CauseTimes> tokens, decode(*runtime, swept_bytes));

  const PlannedModel model = planned_file(runtime->shared_file());
  const HardwareProfile flowing = only_flowing(parts.profile);
  const TokenCost cost(model, flowing, options.k_type, options.v_type, unheard);
  const std::vector<uint32_t> called(spec.router.n_used, 1);
  double attention_ns = 0, router_ns = 0, experts_ns = 0;
  for (uint32_t layer = 0; layer < spec.n_layers; ++layer) {
    attention_ns += cost.attention_ns(layer, 1, kWarmTokens + kTokens / 2);
    experts_ns += cost.ffn_ns(layer, 1);
    if (spec.is_dense_layer(layer)) continue;
    router_ns += cost.router_ns(layer, 1);
    experts_ns += cost.batch_ns(layer, called);
  }
  return LayerTrial{
      .attention_ns = beside_ns(median_ns(tokens, Cause::kAttention), attention_ns, spec.n_layers),
      .router_ns = beside_ns(median_ns(tokens, Cause::kRouter), router_ns, spec.n_moe_layers()),
      .experts_ns = beside_ns(median_ns(tokens, Cause::kExperts), experts_ns, spec.n_layers)};
}

}  // namespace offstage
