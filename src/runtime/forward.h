// One forward pass over rows of any sequences: a prefill chunk, one decode step, or a step of
// several requests are the same call.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <variant>

#include "base/cause_timer.h"
#include "base/result.h"
#include "base/trace.h"
#include "base/types.h"
#include "cache/ram_tier.h"
#include "model/spec.h"
#include "runtime/attention_gqa.h"
#include "runtime/attention_mla.h"
#include "runtime/compute.h"
#include "runtime/device_dense.h"
#include "runtime/device_logits.h"
#include "runtime/ffn_block.h"
#include "runtime/kv_cache.h"
#include "runtime/moe_block.h"
#include "runtime/read_ahead.h"
#include "runtime/rotary.h"
#include "runtime/routing_watchers.h"
#include "runtime/scratch.h"
#include "runtime/weights.h"

namespace offstage {

// Called once per row that wants logits, in row order; `logits` [n_vocab] is valid during the call.
using LogitsSink = std::function<void(size_t row, std::span<const float> logits)>;

class Forward {
 public:
  struct Parts {
    const ModelSpec& spec;
    const DenseWeights& weights;
    const Compute& compute;
    const RotaryTable& rotary;
    KvCache& kv;
    KvType k_type, v_type;
    MoeBlock& moe;
    ReadAhead& read_ahead;
    RoutingWatchers& watchers;
    CauseTimer& timer;
    Trace& trace;
    Scratch scratch;
    uint32_t rows_max;
    DeviceDense* device = nullptr;   // computes the dense part of what it takes part in
    DeviceLogits* logits = nullptr;  // computes those of decoded tokens
  };
  explicit Forward(const Parts& parts);

  // At most rows_max rows (CHECK); tokens must be in the vocabulary and positions in the context
  // (kInvalidArgument). A row's result doesn't depend on the other rows' company. After an error
  // the rows' KV is undefined; the sequences concerned must be released.
  Status run(std::span<const Row> rows, Phase phase, const LogitsSink& sink);

  uint32_t rows_max() const { return parts_.rows_max; }

 private:
  using Attention = std::variant<GqaAttention, MlaAttention>;
  static Attention make_attention(const Parts& parts);
  Status check_rows(std::span<const Row> rows) const;
  void embed(std::span<const Row> rows);
  void attention_block(uint32_t layer, std::span<const Row> rows);
  Status ffn_block(uint32_t layer, uint32_t n_rows, Phase phase);
  Status experts(uint32_t layer, uint32_t n_rows, Phase phase);
  void dense_ffn(uint32_t layer, uint32_t n_rows);
  void output(std::span<const Row> rows, Phase phase, const LogitsSink& sink);
  float* logits_of(std::span<const float* const> x, Phase phase);

  Parts parts_;
  Scratch& s_;
  ActivationCache input_;  // forms of `normed`
  Attention attention_;
  FfnBlock dense_;
};

}  // namespace offstage
