// The dense weights: everything but the experts, resident from start to end.
//
// Each tensor is read once through the same verified path as the experts, into one arena.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/arena.h"
#include "base/result.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "io/hash_index.h"
#include "io/read_scheduler.h"
#include "model/spec.h"
#include "model/tensors.h"
#include "runtime/compute.h"

namespace offstage {

// One gated FFN: of a layer without experts, or the shared expert.
struct FfnWeights {
  Matrix gate, up, down;
};

struct MlaWeights {
  Matrix q_a, q_b, kv_a, k_b, v_b;
  const float *q_a_norm = nullptr, *kv_a_norm = nullptr;
};

// Norms, biases and gates as floats; nullptr where the family has none.
struct LayerWeights {
  const float *attn_norm = nullptr, *attn_norm_bias = nullptr;
  const float *ffn_norm = nullptr, *ffn_norm_bias = nullptr;
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr, *o_bias = nullptr;
  const float *q_norm = nullptr, *k_norm = nullptr;
  const float* sinks = nullptr;
  const float *router_bias = nullptr, *selection_bias = nullptr;
  const float *gate_bias = nullptr, *up_bias = nullptr,
              *down_bias = nullptr;  // of this layer's experts: [n_experts][ffn or hidden]
  const float* shared_gate_input = nullptr;
  Matrix q, k, v, o;
  MlaWeights mla;
  FfnWeights dense;
  Matrix router;
  FfnWeights shared;
  TensorType gate_type = TensorType::kF32, up_type = TensorType::kF32,
             down_type = TensorType::kF32;  // of this layer's experts
};

struct DenseWeights {
  Matrix embedding, output;
  const float *output_norm = nullptr, *output_norm_bias = nullptr, *output_bias = nullptr;
  const float* rope_factors = nullptr;
  const float *rope_factors_short = nullptr, *rope_factors_long = nullptr;
  std::vector<LayerWeights> layers;

  // Those that divide θ_i in a context of this length; nullptr: none. LongRope has one set for the
  // context that the model was first trained with and one for longer ones.
  const float* rope_factors_for(const RotarySpec& rotary, uint32_t context) const {
    if (rotary.scaling != RotaryScaling::kLongRope) return rope_factors;
    return context > rotary.context_original ? rope_factors_long : rope_factors_short;
  }
};

class DenseStore {
 public:
  static uint64_t bytes_needed(const ModelSpec& spec, const ModelTensors& tensors);

  // Takes the arena (bytes_needed). `progress(done, total)` in bytes, from the calling thread.
  struct Loader {
    const ModelSpec& spec;
    const GgufModel& gguf;
    ReadScheduler& reads;
    HashIndex& index;
    ThreadPool& workers;
    const Kernels& kernels;
    Notices& notices;
    std::function<void(uint64_t done, uint64_t total)> progress;
  };
  static Result<DenseStore> load(const ModelTensors& tensors, HostArena arena,
                                 const Loader& loader);

  const DenseWeights& weights() const { return weights_; }
  std::span<const std::byte> memory() const { return {arena_.data(), arena_.used_bytes()}; }

 private:
  explicit DenseStore(HostArena arena) : arena_(std::move(arena)) {}
  HostArena arena_;
  DenseWeights weights_;
};

}  // namespace offstage
