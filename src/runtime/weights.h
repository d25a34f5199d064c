// The dense weights: everything but the experts, resident from start to end.
//
// Each tensor is read once through the same verified path as the experts, into one arena.
#pragma once

#include <functional>
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

// Norms, biases and gates as floats; nullptr where the family has none.
struct LayerWeights {
  const float *attn_norm = nullptr, *ffn_norm = nullptr;
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;
  const float *q_norm = nullptr, *k_norm = nullptr;
  const float* shared_gate_input = nullptr;
  Matrix q, k, v, o;
  Matrix router;
  Matrix shared_gate, shared_up, shared_down;
  TensorType gate_type = TensorType::kF32, up_type = TensorType::kF32,
             down_type = TensorType::kF32;  // of this layer's experts
};

struct DenseWeights {
  Matrix embedding, output;
  const float* output_norm = nullptr;
  const float* rope_factors = nullptr;
  std::vector<LayerWeights> layers;
};

class DenseStore {
 public:
  static uint64_t bytes_needed(const ModelTensors& tensors);

  // Takes the arena (bytes_needed). `progress(done, total)` in bytes, from the calling thread.
  struct Loader {
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

 private:
  explicit DenseStore(HostArena arena) : arena_(std::move(arena)) {}
  HostArena arena_;
  DenseWeights weights_;
};

}  // namespace offstage
