#include "runtime/compute.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked_math.h"

namespace offstage {
namespace {
constexpr ActivationFormat kFormats[] = {ActivationFormat::kF32, ActivationFormat::kQ8_32,
                                         ActivationFormat::kQ8_256};
}

Activations Compute::quantise(ActivationFormat format, const float* x, uint32_t n_tokens,
                              uint32_t k, std::byte* memory) const {
  const uint64_t stride = activation_row_bytes(format, k);
  workers_.parallel_for(n_tokens, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t t = begin; t < end; ++t)
      kernels_.quantise_activations(format, x + uint64_t{t} * k, k, memory + t * stride);
  });
  return {format, memory, k};
}

void Compute::matmul(const Matrix& w, const Activations& x, uint32_t n_tokens, float* out) const {
  const Product product = {w, x, out};
  matmul({&product, 1}, n_tokens);
}

void Compute::matmul(std::span<const Product> products, uint32_t n_tokens) const {
  uint32_t n_rows = 0;
  for (const Product& product : products) {
    CHECK_EQ(product.w.k, product.x.k);
    DCHECK(activation_format(product.w.type) == product.x.format);
    n_rows += product.w.rows;
  }
  // [begin, end) of all the matrices' rows, one matrix behind the other.
  workers_.parallel_for(n_rows, kMatmulGrain, [&](uint32_t begin, uint32_t end, uint32_t) {
    uint32_t first = 0;
    for (const Product& product : products) {
      const uint32_t last = first + product.w.rows;
      if (begin < last && end > first)
        multiply(product, std::max(begin, first) - first, std::min(end, last) - first, n_tokens);
      first = last;
    }
  });
}

void Compute::multiply(const Product& product, uint32_t row_begin, uint32_t row_end,
                       uint32_t n_tokens) const {
  MatmulArgs args;
  args.type = product.w.type;
  args.weights = product.w.data;
  args.k = product.w.k;
  args.row_begin = row_begin;
  args.row_end = row_end;
  args.activations = product.x.rows;
  args.n_tokens = n_tokens;
  args.out = product.out;
  args.out_stride = product.w.rows;
  kernels_.matmul(args);
}

void Compute::norm(const Norm& norm, const float* x, uint32_t n, uint32_t width, float* y) const {
  workers_.parallel_for(n, 1, [&](uint32_t begin, uint32_t end, uint32_t) {
    for (uint32_t i = begin; i < end; ++i) {
      const float* from = x + uint64_t{i} * width;
      float* to = y + uint64_t{i} * width;
      if (norm.bias == nullptr) {
        kernels_.rms_norm(from, norm.weight, width, norm.eps, to);
      } else {
        kernels_.layer_norm(from, norm.weight, norm.bias, width, norm.eps, to);
      }
    }
  });
}

uint64_t ActivationCache::memory_bytes(uint32_t n_tokens_max, uint32_t k) {
  uint64_t widest = 0;
  for (const ActivationFormat format : kFormats)
    widest = std::max(widest, activation_row_bytes(format, k));
  return 3 * round_up(widest * n_tokens_max, 64);
}

ActivationCache::ActivationCache(std::byte* memory, uint32_t n_tokens_max, uint32_t k) : k_(k) {
  for (int i = 0; i < 3; ++i) regions_[i] = memory + i * (memory_bytes(n_tokens_max, k) / 3);
}

void ActivationCache::reset(const float* x, uint32_t n_tokens) {
  x_ = x;
  n_tokens_ = n_tokens;
  for (bool& made : made_) made = false;
}

const Activations& ActivationCache::as(ActivationFormat format, const Compute& compute) {
  const auto i = static_cast<size_t>(format);
  if (!made_[i]) {
    forms_[i] = compute.quantise(format, x_, n_tokens_, k_, regions_[i]);
    made_[i] = true;
  }
  return forms_[i];
}

}  // namespace offstage
