#include "plan/token_cost.h"

#include <algorithm>

#include "plan/tier_trial.h"
#include "runtime/ceilings.h"

namespace offstage {
namespace {

// Hand-outs to the workers: norm and Q, K, V with their quantisation, rotary, attention, output …
constexpr double kAttentionDispatches = 7;
constexpr double kRouterDispatches = 2;
// … gate with up, quantisation, down (runtime/moe_block.cc).
constexpr double kFfnDispatches = 3;
// Those of them that are products: Q, K, V and the output; the gates; gate with up and down.
constexpr double kAttentionProducts = 2;
constexpr double kRouterProducts = 1;
constexpr double kFfnProducts = 2;

class Speeds {
 public:
  Speeds(const HardwareProfile& profile, Notices& notices) : profile_(profile), notices_(notices) {}

  // Of all of a tensor, or of one of so many experts in it.
  void add(const GgufTensor* tensor, Work& work, uint64_t share_of = 1) const {
    if (tensor == nullptr) return;
    const KernelSpeed speed = profile_.kernel_of(tensor->type, notices_);
    work.weights_ns +=
        static_cast<double>(tensor->bytes / share_of) * 1e9 / speed.decode_bytes_per_s;
    work.row_ns +=
        static_cast<double>(tensor->elements() / share_of) * 1e9 / speed.prefill_params_per_s;
  }

 private:
  const HardwareProfile& profile_;
  Notices& notices_;
};

uint64_t kv_bytes_of(const AttentionSpec& attention, KvType k_type, KvType v_type) {
  const uint64_t k_row = kv_row_bytes(k_type, attention.head_dim_k);
  const uint64_t v_row =
      attention.mla.kv_rank != 0 ? 0 : kv_row_bytes(v_type, attention.head_dim_v);
  return attention.n_kv_heads * (k_row + v_row);
}

}  // namespace

TokenCost::TokenCost(const PlannedModel& model, const HardwareProfile& profile, KvType k_type,
                     KvType v_type, Notices& notices)
    : ram_bytes_per_s_(profile.ram_read_bytes_per_s),
      dispatch_ns_(static_cast<double>(profile.dispatch_ns)),
      event_ns_(static_cast<double>(profile.event_ns)),
      policy_ns_(static_cast<double>(profile.policy_ns) * model.spec.router.n_experts /
                 kTriedExperts),
      miss_ns_(static_cast<double>(profile.miss_ns)),
      token_ns_(static_cast<double>(profile.token_ns) * model.spec.n_vocab / kLogitsChosenAmong) {
  const bool from_ram = token_weight_bytes(model.tensors, model.layout, model.spec.router.n_used) >
                        profile.cache_bytes;
  const auto beside_ns = [&](int64_t measured_ns, double dispatches, double products) {
    if (from_ram && measured_ns != 0) return static_cast<double>(measured_ns);
    return dispatches * dispatch_ns_ + products * static_cast<double>(profile.product_ns);
  };
  attention_ns_ = beside_ns(profile.attention_ns, kAttentionDispatches, kAttentionProducts);
  router_ns_ = beside_ns(profile.router_ns, kRouterDispatches, kRouterProducts);
  ffn_ns_ = beside_ns(profile.experts_ns, kFfnDispatches, kFfnProducts);
  sum_ns_ = from_ram && profile.experts_ns != 0 ? 0 : dispatch_ns_;
  const Speeds speeds(profile, notices);
  const RouterSpec& router = model.spec.router;
  const uint32_t n_experts = std::max(router.n_experts, 1u);
  called_share_ = static_cast<double>(router.n_used) / n_experts;
  speeds.add(model.tensors.output, output_);
  for (uint32_t l = 0; l < model.spec.n_layers; ++l) {
    const LayerTensors& tensors = model.tensors.layers[l];
    Layer& layer = layers_.emplace_back();
    layer.kv_bytes = kv_bytes_of(model.spec.attention, k_type, v_type);
    layer.window = model.spec.attention.window_of(l);
    const auto is_ffn = [&](const GgufTensor* matrix) {
      for (const FfnTensors& ffn : {tensors.dense, tensors.shared})
        if (matrix == ffn.gate || matrix == ffn.up || matrix == ffn.down) return true;
      return false;
    };
    for (const GgufTensor* matrix : tensors.matrices())
      speeds.add(matrix, matrix == tensors.router ? layer.router
                         : is_ffn(matrix)         ? layer.ffn
                                                  : layer.attention);
    if (!tensors.has_experts()) continue;
    for (const GgufTensor* experts :
         {tensors.gate_experts, tensors.up_experts, tensors.down_experts})
      speeds.add(experts, layer.expert, n_experts);
  }
}

double TokenCost::attention_ns(uint32_t layer, uint32_t rows, uint32_t position) const {
  const Layer& l = layers_[layer];
  const uint32_t middle = position + 1 - std::min(position, rows / 2);
  const uint32_t seen = l.window == 0 ? middle : std::min(middle, l.window);
  const double attended_ns = static_cast<double>(l.kv_bytes) * seen * 1e9 / ram_bytes_per_s_;
  return l.attention.ns(rows) + rows * attended_ns + attention_ns_;
}

double TokenCost::router_ns(uint32_t layer, uint32_t rows) const {
  return layers_[layer].router.ns(rows) + router_ns_;
}

double TokenCost::ffn_ns(uint32_t layer, uint32_t rows) const {
  const Work& ffn = layers_[layer].ffn;
  return ffn.weights_ns == 0 ? 0 : ffn.ns(rows) + ffn_ns_;
}

double TokenCost::batch_ns(uint32_t layer, std::span<const uint32_t> rows_by_expert) const {
  double ns = ffn_ns_;
  for (const uint32_t rows : rows_by_expert) ns += layers_[layer].expert.ns(rows);
  return ns;
}

double TokenCost::row_ns() const {
  const double n_called = called_share_;
  double ns = 0;
  for (const Layer& l : layers_)
    ns += l.attention.row_ns + l.router.row_ns + l.ffn.row_ns + n_called * l.expert.row_ns;
  return ns;
}

}  // namespace offstage
