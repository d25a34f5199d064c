// The dense part of a forward on a device: all that a layer computes whatever its router says.
//
//   begin_forward()  page tables and angles go over, and what the CPU left in RAM's KV
//   run(layer)       x goes over; norm, Q K V, rotation, KV, attention, output, residual, FFN norm,
//                    router and its choice, one behind the other; x, the normed rows, the choice,
//                    and the new keys and values come back. Of a step, chosen experts in VRAM
//                    begin behind that, while the host waits and learns the choice
//   start_ffn()      the FFN that every row takes (the shared expert, or that of a layer without
//                    experts) begins; the CPU computes its own experts meanwhile
//   collect_ffn()    its rows come back
//
// Between layers the residual stream is in RAM, where experts are added in router order, whoever
// computed them. So is the whole KV cache. Whatever comes next, a wider step, or a layer after the
// device failed, is the CPU's without a further word: every answer of "no" below means "compute it
// yourself", and the bits are the same (promise 1). The embedding is the CPU's; logits:
// device_logits.h.
//
// A step's rows cross in pinned memory that kernels read and write. A prompt's chunk takes the
// engines that copy: rows go over from where they are, and come back in pieces (device_pieces.h),
// keys and values as stored, page by page. It is computed slice by slice, so that only the stream,
// the normed rows and the FFN's take memory for all of its rows, and attention in launches of as
// many rows as their blocks' sums have room.
//
// All of it is there or none: weights, KV for the whole context, and what a forward works in are
// one piece of the device's memory. Chunks are left to the CPU, announced, where what they work in
// is too much of it. The weights in RAM stay, for the day the device fails. Decode thread only.
#pragma once

#include <algorithm>
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
#include "runtime/device_pieces.h"
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
    const Kernels& cpu;            // stores a step's keys and values that come back
    std::span<std::byte> scratch;  // where chunks' rows are: pinned, if the system lets us
    CauseTimer& timer;
    Notices& notices;
  };
  struct Options {
    uint64_t vram_bytes = 0;  // all that it may allocate on the device
    uint32_t rows_max = 1;    // of a step
    uint32_t chunk_rows = 0;  // of a prompt's chunk; 0: prompts are the CPU's
    uint32_t n_sequences = 1;
    int64_t deadline_ns = 0;  // of a layer, and of a copy
  };
  // What a router chose, in router order.
  struct Choice {
    const uint32_t* experts = nullptr;   // [n_rows][n_used]
    const float* weights = nullptr;      // [n_rows][n_used]
    const float* last_scores = nullptr;  // [n_experts]: the last row's, as Router::route() has them
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
  // x [n_rows][hidden] ← the stream past the layer's attention; normed ← the input of its FFN;
  // `spare` is as large. False: x is as it was.
  bool run(uint32_t layer, float* x, float* normed, float* spare);
  // Of the layer that run() has just computed; nullptr if it hasn't, or there is no router. Valid
  // until the next run().
  const Choice* choice() const { return has_choice_ ? &choice_ : nullptr; }
  // Likewise: the FFN's input, of all rows, in device memory.
  const float* normed() const { return has_run_ ? on_device_.normed : nullptr; }
  // After run(), of the same rows. False: not begun; collect_ffn() must follow otherwise.
  bool start_ffn();
  // out [n_rows][hidden] ← what the FFN gives.
  bool collect_ffn(float* out);

  // The device was seen to fail, here or by who else uses it.
  void lose(const Error& error);
  bool is_lost() const { return lost_ || (experts_ != nullptr && experts_->is_lost()); }
  uint64_t forwards() const { return forwards_; }              // steps that it took part in
  uint64_t chunks() const { return chunks_; }                  // of prompts, likewise
  uint32_t chunk_rows() const { return options_.chunk_rows; }  // at most; 0: the CPU's
  uint32_t slice_rows() const { return slice_rows_; }
  uint64_t weights_bytes() const { return weights_bytes_; }
  uint64_t kv_bytes() const { return kv_bytes_; }
  uint64_t working_bytes() const { return working_bytes_; }
  uint64_t chunk_bytes() const { return chunk_bytes_; }  // of those, for chunks alone
  uint64_t memory_bytes() const { return weights_bytes_ + kv_bytes_ + working_bytes_; }

 private:
  static constexpr uint64_t kPartAlignment = 64;  // of what goes over together
  // What a layer gives, in one piece. A step's is one slice and comes back as it lies: the same in
  // device and in pinned memory.
  struct Back {
    float *x = nullptr, *normed = nullptr, *weights = nullptr;  // [n_rows]
    uint32_t* experts = nullptr;                                // [n_rows]
    float *k = nullptr, *v = nullptr, *scores = nullptr;        // of a slice
  };
  // In device memory: `positions`, `back` and `ffn_out` for the widest forward, the others for a
  // slice of one.
  struct Work {
    std::byte *positions = nullptr, *back = nullptr;
    float *q = nullptr, *attended = nullptr, *projected = nullptr;
    float *q_low = nullptr, *per_head = nullptr;  // of latent attention
    float *gate = nullptr, *up = nullptr, *ffn_out = nullptr;
    float* attention = nullptr;
    std::byte* forms[2] = {};  // of the widest input: for blocks of 32, and of 256
  };
  // Where the parts of what begin_forward() handed over lie; seen, by window: without, with. Keys'
  // and values' places are those of layer 0.
  struct Positions {
    uint64_t angles = 0, k_rows = 0, v_rows = 0, seen[2] = {};
  };
  // Rows of the forward that are computed together.
  struct Slice {
    uint32_t first = 0, n = 0;
  };
  // Rows as inputs of matrices; its forms are made once.
  struct Input {
    const float* x = nullptr;
    uint32_t k = 0, n_rows = 0;
    bool is_made[2] = {};
  };
  // [rows][n_heads][stride] floats, of which a vector's own length is used.
  struct PerHead {
    float* x = nullptr;
    uint32_t stride = 0;
  };

  DeviceDense(const Parts& parts, const Options& options);
  Status open();
  void count_memory();
  void count_working();
  uint32_t widest_forward() const { return std::max(options_.rows_max, options_.chunk_rows); }
  void make_room_for_chunks(uint32_t chunk_rows);
  void leave_chunks_to_cpu(const std::string& reason);
  uint64_t lay_out_work(std::byte* base);
  Status take_memory();
  void pin_scratch();
  Status upload_weights(std::byte* to);
  uint32_t n_rows() const { return static_cast<uint32_t>(rows_.size()); }
  const MlaSpec& mla() const { return parts_.spec.attention.mla; }
  bool is_latent() const { return mla().kv_rank != 0; }
  // Of the values that a position keeps beside its keys.
  uint32_t v_width() const { return is_latent() ? 0 : parts_.spec.v_width(); }
  uint32_t ffn_width(uint32_t layer) const;
  const FfnWeights& ffn_of(uint32_t layer) const;
  uint64_t back_bytes(uint32_t n_rows, uint32_t slice_rows) const;
  Back lay_out_back(std::byte* memory, uint32_t n_rows, uint32_t slice_rows) const;
  gpu::AttentionArgs attention_args(uint32_t n_rows, uint32_t n_blocks_max) const;
  uint32_t n_blocks_max(Slice rows, uint32_t window) const;

  Status hand_over_positions();
  uint64_t write_tables(uint64_t end);
  Status compute(float* x, float* normed, float* spare);
  Status send_step(const float* x);
  Status start_hits();
  Status send_chunk(const float* x);
  void take_step(float* x, float* normed);
  Status bring_chunk_back(float* normed, float* spare);
  Status bring_kv_back();
  Status launch_layer();
  Status launch_slice(Slice rows);
  Status make_heads(const LayerWeights& weights, Input& input, Slice rows);
  Status rotate(float* x, const float* norm, uint32_t n_heads, Slice rows);
  gpu::RopeArgs rope_args(float* x, uint32_t n_heads, Slice rows) const;
  Status make_latents(const LayerWeights& weights, Input& input, Slice rows);
  Status multiply_heads(const Matrix& w, PerHead from, PerHead to, uint32_t n_rows);
  Status store(Slice rows);
  Status attend(Slice slice);
  Status choose(const LayerWeights& weights, Slice rows);
  Status launch_ffn();
  Status launch_ffn(Slice rows);
  // RMS norm, or with a bias layer norm.
  Status norm(const float* x, const float* weight, const float* bias, uint32_t n_rows, uint32_t n,
              float* y);
  Status multiply(const Matrix& w, Input& input, const float* bias, float* out);
  Status multiply(const gpu::MatvecArgs& args);
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
  uint64_t weights_bytes_ = 0, kv_bytes_ = 0, working_bytes_ = 0, chunk_bytes_ = 0;
  uint64_t positions_bytes_ = 0, attention_bytes_ = 0;
  uint32_t slice_rows_ = 0;
  std::span<std::byte> work_memory_;
  Work work_;
  // Pinned: what goes over, and what comes back; of steps, but for the positions.
  std::byte *positions_ = nullptr, *back_ = nullptr;
  float *x_ = nullptr, *ffn_back_ = nullptr;
  DevicePieces pieces_;
  // What came back of a chunk's router.
  std::vector<uint32_t> chunk_experts_;
  std::vector<float> chunk_weights_, last_scores_;
  // By sequence, scratch of write_tables().
  std::vector<uint32_t> n_blocks_;
  std::vector<uint64_t> table_at_;

  // The forward.
  std::span<const Row> rows_;
  bool takes_part_ = false, in_chunk_ = false;
  Positions at_;
  uint32_t layer_ = 0;
  Back on_device_, in_ram_;  // of its rows; in RAM a step's
  bool has_run_ = false, has_choice_ = false;
  Choice choice_;
  bool lost_ = false;
  uint64_t forwards_ = 0, chunks_ = 0;
};

}  // namespace offstage
