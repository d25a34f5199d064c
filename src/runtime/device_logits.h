// The logits of a decoded token on a device: output norm and output matrix in its memory.
//
// In: rows of the residual stream past the last layer. Out: their logits, the CPU's bits. Rows go
// over and logits come back through pinned memory, moved by kernels. Where there is no kernel or no
// room, or after the device failed, the CPU computes them out of the weights that RAM keeps: every
// nullptr below means that. Decode thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/cause_timer.h"
#include "base/notices.h"
#include "base/result.h"
#include "gpu/device.h"
#include "model/spec.h"
#include "runtime/device_dense.h"
#include "runtime/device_experts.h"
#include "runtime/weights.h"

namespace offstage {

class DeviceLogits {
 public:
  // All outlive it.
  struct Parts {
    Device& device;
    const DeviceKernels& kernels;
    const ModelSpec& spec;
    const DenseWeights& weights;
    CauseTimer& timer;
    // What else is on the device, or null: when it fails all of it is lost, and says so once. One
    // of them is there.
    DeviceDense* dense = nullptr;
    DeviceExperts* experts = nullptr;
  };
  struct Options {
    uint32_t rows_max = 1;
    int64_t deadline_ns = 0;
  };

  // What it takes of the device's memory. kUnsupported: there is no kernel.
  static Result<uint64_t> memory_bytes(const ModelSpec& spec, const DenseWeights& weights,
                                       const DeviceKernels& kernels, uint32_t rows_max);
  // Errors: kUnsupported; kOutOfMemory, the device is as before; others: it failed.
  static Result<std::unique_ptr<DeviceLogits>> create(const Parts& parts, const Options& options);
  DeviceLogits(const DeviceLogits&) = delete;
  DeviceLogits& operator=(const DeviceLogits&) = delete;

  // x: so many rows, [hidden] each → [rows][n_vocab], the bias added, unscaled; the caller's until
  // the next call. nullptr: the CPU's.
  float* run(std::span<const float* const> x);

  uint64_t memory_bytes() const { return memory_bytes_; }
  uint64_t rows() const { return rows_; }  // that it computed

 private:
  // In device memory.
  struct Work {
    float *x = nullptr, *normed = nullptr, *logits = nullptr;
    std::byte* forms = nullptr;
    std::byte *norm = nullptr, *norm_bias = nullptr, *matrix = nullptr, *bias = nullptr;
  };

  DeviceLogits(const Parts& parts, const Options& options) : parts_(parts), options_(options) {}
  static uint64_t lay_out(const ModelSpec& spec, const DenseWeights& weights,
                          const DeviceKernels& kernels, uint32_t rows, std::byte* base, Work* work);
  Status open();
  Status launch(uint32_t n_rows);
  Status norm(uint32_t n_rows);
  Status multiply(uint32_t n_rows);
  template <typename Args>
  Status put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel, const Args& args,
             uint64_t bytes = 0, uint64_t host_bytes = 0);
  bool is_lost() const;
  void lose(const Error& error);

  Parts parts_;
  Options options_;
  uint64_t memory_bytes_ = 0;
  Work work_;
  float *x_ = nullptr, *logits_ = nullptr;  // pinned
  uint64_t rows_ = 0;
};

}  // namespace offstage
