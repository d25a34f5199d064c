// The dense part of a decoded token on a device: all that a layer computes whatever its router
// says.
//
//   begin_forward()  page tables and angles go over, and what a prompt left in RAM's KV
//   run(layer)       x goes over; norm, Q K V, rotation, KV, attention, output, residual, FFN norm,
//                    router and its choice, one behind the other; x, the normed rows, the choice,
//                    and the new keys and values come back
//   start_ffn()      the FFN that every row takes (the shared expert, or that of a layer without
//                    experts) begins; the CPU computes its own experts meanwhile
//   collect_ffn()    its rows come back
//
// Between layers the residual stream is in RAM, where experts are added in router order, whoever
// computed them. So is the whole KV cache. Whatever comes next, a prompt, a wider step, or a layer
// after the device failed, is the CPU's without a further word: every answer of "no" below means
// "compute it yourself", and the bits are the same (promise 1). Prompts are the CPU's, and so are
// forwards of more rows than `rows_max`, and the embedding; logits: device_logits.h.
//
// All of it is there or none: weights, KV for the whole context, and what a forward works in are
// one piece of the device's memory. The weights in RAM stay, for prompts and for the day the device
// fails. Decode thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/cause_timer.h"
#include "base/notices.h"
#include "base/result.h"
#include "cache/ram_tier.h"
#include "cpu/kernels.h"
#include "gpu/device.h"
#include "model/spec.h"
#include "runtime/attention.h"
#include "runtime/device_experts.h"
#include "runtime/device_kv.h"
#include "runtime/kv_cache.h"
#include "runtime/rotary.h"
#include "runtime/weights.h"

namespace offstage {

class DeviceDense {
 public:
  // All outlive it.
  struct Parts {
    Device& device;
    const DeviceKernels& kernels;
    const ModelSpec& spec;
    const DenseWeights& weights;
    const RotaryTable& rotary;
    KvCache& kv;
    KvType k_type, v_type;
    const Kernels& cpu;  // stores the keys and values that come back
    CauseTimer& timer;
    Notices& notices;
  };
  struct Options {
    uint64_t vram_bytes = 0;  // all that it may allocate on the device
    uint32_t rows_max = 1;
    uint32_t n_sequences = 1;
    int64_t deadline_ns = 0;  // of a layer, and of a copy
  };
  // What a router chose, in router order; `scores` as Router::route() leaves them.
  struct Choice {
    const uint32_t* experts = nullptr;  // [n_rows][n_used]
    const float* weights = nullptr;     // [n_rows][n_used]
    const float* scores = nullptr;      // [n_rows][n_experts]
  };

  // Errors: kUnsupported (the model has what no kernel computes), kBudget (what it takes),
  // kOutOfMemory; after these the device is as before. Others: the device's, which failed.
  static Result<std::unique_ptr<DeviceDense>> create(const Parts& parts, const Options& options);
  DeviceDense(const DeviceDense&) = delete;
  DeviceDense& operator=(const DeviceDense&) = delete;

  // The experts on the same device: when it fails, both are lost, and say so once.
  void set_experts(DeviceExperts* experts) { experts_ = experts; }

  // `rows` must stay until the forward is over.
  void begin_forward(std::span<const Row> rows, Phase phase);
  // x [n_rows][hidden] ← the stream past the layer's attention; normed ← the input of its FFN.
  // False: neither was touched.
  bool run(uint32_t layer, float* x, float* normed);
  // Of the layer that run() has just computed; nullptr if it hasn't, or there is no router. Valid
  // until the next run().
  const Choice* choice() const { return has_choice_ ? &choice_ : nullptr; }
  // Likewise: the FFN's input in device memory.
  const float* normed() const { return has_run_ ? on_device_.normed : nullptr; }
  // After run(), of the same rows. False: not begun; collect_ffn() must follow otherwise.
  bool start_ffn();
  // out [n_rows][hidden] ← what the FFN gives.
  bool collect_ffn(float* out);

  // The device was seen to fail, here or by who else uses it.
  void lose(const Error& error);
  bool is_lost() const { return lost_ || (experts_ != nullptr && experts_->is_lost()); }
  uint64_t forwards() const { return forwards_; }  // that it took part in
  uint64_t weights_bytes() const { return weights_bytes_; }
  uint64_t kv_bytes() const { return kv_bytes_; }
  uint64_t working_bytes() const { return working_bytes_; }
  uint64_t memory_bytes() const { return weights_bytes_ + kv_bytes_ + working_bytes_; }

 private:
  static constexpr uint64_t kPartAlignment = 64;  // of what goes over together
  // What comes back from a layer, [n_rows] of each, in one piece: the same in device and in pinned
  // memory.
  struct Back {
    float *x = nullptr, *normed = nullptr, *k = nullptr, *v = nullptr;
    float *scores = nullptr, *weights = nullptr;
    uint32_t* experts = nullptr;
  };
  // In device memory, for rows_max rows.
  struct Work {
    std::byte *positions = nullptr, *back = nullptr;
    float *q = nullptr, *attended = nullptr, *projected = nullptr;
    float *gate = nullptr, *up = nullptr, *ffn_out = nullptr;
    float* attention = nullptr;
    std::byte* forms[2] = {};  // of the widest input: for blocks of 32, and of 256
  };
  // Where the parts of what begin_forward() handed over lie; by window: without, with.
  struct Positions {
    uint64_t angles = 0, kv_rows = 0, seen[2] = {};
    uint32_t n_blocks_max[2] = {};
  };
  // Rows as inputs of matrices; its forms are made once.
  struct Input {
    const float* x = nullptr;
    uint32_t k = 0;
    bool is_made[2] = {};
  };

  DeviceDense(const Parts& parts, const Options& options);
  Status open();
  void count_memory();
  uint64_t lay_out_work(std::byte* base);
  Status upload_weights(std::byte* to);
  uint32_t n_rows() const { return static_cast<uint32_t>(rows_.size()); }
  uint32_t ffn_width(uint32_t layer) const;
  const FfnWeights& ffn_of(uint32_t layer) const;
  uint64_t back_bytes(uint32_t n_rows) const;
  Back lay_out_back(std::byte* memory, uint32_t n_rows) const;
  gpu::AttentionArgs attention_args(uint32_t n_rows, uint32_t n_blocks_max) const;

  Status hand_over_positions();
  Status launch(uint32_t layer, const float* x);
  Status project(const LayerWeights& weights);
  Status rotate(float* x, const float* norm, uint32_t n_heads);
  Status store(uint32_t layer);
  Status attend(uint32_t layer);
  Status choose(const LayerWeights& weights);
  Status launch_ffn();
  void take_back(float* x, float* normed);
  Status norm(const float* x, const float* weight, uint32_t n_rows, uint32_t n, float* y);
  Status multiply(const Matrix& w, Input& input, const float* bias, float* out);
  Status move(std::string_view name, const std::byte* from, std::byte* to, uint64_t bytes);
  template <typename Args>
  Status put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel, const Args& args,
             uint64_t bytes = 0, uint64_t host_bytes = 0);
  Status wait_for_all();

  Parts parts_;
  Options options_;
  DeviceExperts* experts_ = nullptr;
  DeviceKv kv_;
  std::vector<LayerWeights> layers_;  // their matrices and vectors on the device
  uint64_t weights_bytes_ = 0, kv_bytes_ = 0, working_bytes_ = 0, positions_bytes_ = 0;
  Work work_;
  // Pinned: what goes over, and what comes back.
  std::byte *positions_ = nullptr, *back_ = nullptr;
  float *x_ = nullptr, *ffn_back_ = nullptr;

  // The forward.
  std::span<const Row> rows_;
  bool takes_part_ = false;
  Positions at_;
  uint32_t layer_ = 0;
  Back on_device_, in_ram_;  // of its rows
  bool has_run_ = false, has_choice_ = false;
  Choice choice_;
  bool lost_ = false;
  uint64_t forwards_ = 0;
};

}  // namespace offstage
