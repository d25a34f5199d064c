// Kernels spread over the workers: the only place where arithmetic meets threads.
//
// Each call splits rows of weights (or rows of tokens) and returns when all is done. Splitting
// never changes a bit: see cpu/kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace offstage {

// A weight matrix in memory: [rows][k] in its storage format.
struct Matrix {
  TensorType type = TensorType::kF32;
  const std::byte* data = nullptr;
  uint32_t rows = 0, k = 0;
};

// Token rows in the form a weight format wants; made once, read by several matmuls.
// Memory: [n_tokens][activation_row_bytes(format, k)], the caller's.
struct Activations {
  ActivationFormat format = ActivationFormat::kF32;
  const std::byte* rows = nullptr;
  uint32_t k = 0;
};

// A product to be made: out [n_tokens][w.rows] = x · wᵀ
struct Product {
  const Matrix& w;
  const Activations& x;
  float* out = nullptr;
};

// RMS norm, or where there is a bias layer norm.
struct Norm {
  const float* weight = nullptr;
  const float* bias = nullptr;
  float eps = 0;
};

class Compute {
 public:
  Compute(const Kernels& kernels, ThreadPool& workers) : kernels_(kernels), workers_(workers) {}

  const Kernels& kernels() const { return kernels_; }
  ThreadPool& workers() const { return workers_; }

  // x [n_tokens][k] → memory.
  Activations quantise(ActivationFormat format, const float* x, uint32_t n_tokens, uint32_t k,
                       std::byte* memory) const;
  // out [n_tokens][w.rows] = x · wᵀ
  void matmul(const Matrix& w, const Activations& x, uint32_t n_tokens, float* out) const;
  // Several, in one hand-out: at one token that of a small matrix costs a tenth of its time.
  void matmul(std::span<const Product> products, uint32_t n_tokens) const;
  // y [n][width] = norm(x [n][width]); y may be x.
  void norm(const Norm& norm, const float* x, uint32_t n, uint32_t width, float* y) const;

 private:
  void multiply(const Product& product, uint32_t row_begin, uint32_t row_end,
                uint32_t n_tokens) const;

  const Kernels& kernels_;
  ThreadPool& workers_;
};

// Weight rows one work item takes: enough to hide a hand-out, few enough to balance.
inline constexpr uint32_t kMatmulGrain = 16;

// The quantised forms of one float activation, each made at most once, on first use.
class ActivationCache {
 public:
  // `memory`: three regions of memory_bytes(n_tokens_max, k) / 3.
  ActivationCache(std::byte* memory, uint32_t n_tokens_max, uint32_t k);
  static uint64_t memory_bytes(uint32_t n_tokens_max, uint32_t k);

  void reset(const float* x, uint32_t n_tokens);
  const Activations& as(ActivationFormat format, const Compute& compute);
  const Activations& for_weights(TensorType type, const Compute& compute) {
    return as(activation_format(type), compute);
  }

 private:
  uint32_t k_;
  const float* x_ = nullptr;
  uint32_t n_tokens_ = 0;
  Activations forms_[3];
  std::byte* regions_[3] = {};
  bool made_[3] = {};
};

}  // namespace offstage
