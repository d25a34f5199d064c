#include <algorithm>
#include <cstring>

#include "base/blocks.h"
#include "base/check.h"
#include "cpu/activations.h"
#include "cpu/float16.h"
#include "cpu/scalar.h"
#include "cpu/weight_run.h"

namespace offstage {
namespace {

float unquantised_at(TensorType type, const std::byte* row, uint32_t i) {
  if (type == TensorType::kF32) {
    float value;
    std::memcpy(&value, row + size_t{i} * 4, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, row + size_t{i} * 2, 2);
  return type == TensorType::kF16 ? float_of_f16(half) : float_of_bf16(half);
}

float dot_unquantised(TensorType type, const std::byte* row, const float* x, uint32_t k) {
  float acc = 0.0f;
  for (uint32_t begin = 0; begin < k; begin += kRunElements) {
    float slice = 0.0f;
    const uint32_t end = std::min(k, begin + kRunElements);
    for (uint32_t i = begin; i < end; ++i)
      slice = __builtin_fmaf(unquantised_at(type, row, i), x[i], slice);
    acc = acc + slice;
  }
  return acc;
}

float add_run32(float acc, const WeightRun& weights, const ActivationRun32& a, bool minima) {
  float f[8];  // in kRunBlockOrder
  for (int position = 0; position < 8; ++position) {
    const int block = kRunBlockOrder[position];
    const int group = block / 4, lane = block % 4;
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i)
      sum += weights.q[32 * block + i] * a.q[((2 * group + i / 16) * 4 + lane) * 16 + i % 16];
    f[position] = static_cast<float>(sum) * (weights.d_block[block] * a.d[position]);
    if (minima)
      f[position] = __builtin_fmaf(
          weights.m_block[block], static_cast<float>(a.sum[position]) * a.d[position], f[position]);
  }
  // In kRunBlockOrder the tree is neighbours first.
  return acc + (((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7])));
}

float add_run256(float acc, const WeightRun& weights, const ActivationRun256& a, bool minima) {
  int32_t isum = 0, msum = 0;
  for (int j = 0; j < 16; ++j) {
    int32_t sum = 0;
    for (int i = 16 * j; i < 16 * j + 16; ++i) sum += weights.q[i] * a.q[i];
    isum += weights.scale[j] * sum;
    msum += weights.min[j] * a.sum16[j];
  }
  float t = weights.d * static_cast<float>(isum);
  if (minima) t = __builtin_fmaf(-weights.dmin, static_cast<float>(msum), t);
  return __builtin_fmaf(a.d, t, acc);
}

void matmul_row_quantised(const MatmulArgs& args, const std::byte* row, uint64_t x_bytes,
                          float* out) {
  const bool blocks32 = activation_format(args.type) == ActivationFormat::kQ8_32;
  const bool minima = has_minima(args.type);
  const uint32_t n_runs = (args.k + kRunElements - 1) / kRunElements;
  for (uint32_t t = 0; t < args.n_tokens; ++t) out[size_t{t} * args.out_stride] = 0.0f;
  for (uint32_t run = 0; run < n_runs; ++run) {
    WeightRun weights;
    unpack_run_scalar(args.type, row, args.k, run, &weights);
    for (uint32_t t = 0; t < args.n_tokens; ++t) {
      const uint32_t x_row = args.token_rows ? args.token_rows[t] : t;
      const std::byte* x = args.activations + x_bytes * x_row;
      float& acc = out[size_t{t} * args.out_stride];
      acc =
          blocks32
              ? add_run32(acc, weights, reinterpret_cast<const ActivationRun32*>(x)[run], minima)
              : add_run256(acc, weights, reinterpret_cast<const ActivationRun256*>(x)[run], minima);
    }
  }
}

}  // namespace

void matmul_scalar(const MatmulArgs& args) {
  check_matmul(args);
  const uint64_t w_bytes = weights_row_bytes(args.type, args.k);
  const uint64_t x_bytes = activation_row_bytes(activation_format(args.type), args.k);
  for (uint32_t n = args.row_begin; n < args.row_end; ++n) {
    const std::byte* row = args.weights + w_bytes * n;
    if (is_quantised(args.type)) {
      matmul_row_quantised(args, row, x_bytes, args.out + n);
      continue;
    }
    for (uint32_t t = 0; t < args.n_tokens; ++t) {
      const uint32_t x_row = args.token_rows ? args.token_rows[t] : t;
      const auto* x = reinterpret_cast<const float*>(args.activations + x_bytes * x_row);
      args.out[size_t{t} * args.out_stride + n] = dot_unquantised(args.type, row, x, args.k);
    }
  }
}

void dequantise_scalar(TensorType type, const std::byte* row, uint32_t k, float* out) {
  if (!is_quantised(type)) {
    for (uint32_t i = 0; i < k; ++i) out[i] = unquantised_at(type, row, i);
    return;
  }
  const bool blocks32 = activation_format(type) == ActivationFormat::kQ8_32;
  const bool minima = has_minima(type);
  for (uint32_t begin = 0; begin < k; begin += kRunElements) {
    WeightRun run;
    unpack_run_scalar(type, row, k, begin / kRunElements, &run);
    for (uint32_t i = 0; i < std::min(kRunElements, k - begin); ++i) {
      const float q = run.q[i];
      if (blocks32) {
        const float value = run.d_block[i / 32] * q;
        out[begin + i] = minima ? value + run.m_block[i / 32] : value;
        continue;
      }
      const float value = (run.d * static_cast<float>(run.scale[i / 16])) * q;
      out[begin + i] = minima ? value - run.dmin * static_cast<float>(run.min[i / 16]) : value;
    }
  }
}

ActivationFormat activation_format(TensorType weights) {
  if (!is_quantised(weights)) return ActivationFormat::kF32;
  return tensor_type_traits(weights).block_elements == 32 ? ActivationFormat::kQ8_32
                                                          : ActivationFormat::kQ8_256;
}

uint64_t activation_row_bytes(ActivationFormat format, uint32_t k) {
  if (format == ActivationFormat::kF32) return (uint64_t{k} * 4 + 63) / 64 * 64;
  const uint64_t n_runs = (uint64_t{k} + kRunElements - 1) / kRunElements;
  return n_runs *
         (format == ActivationFormat::kQ8_32 ? sizeof(ActivationRun32) : sizeof(ActivationRun256));
}

uint64_t weights_row_bytes(TensorType type, uint32_t k) { return row_bytes(type, k); }

void check_matmul(const MatmulArgs& args) {
  CHECK_EQ(args.k % tensor_type_traits(args.type).block_elements, 0u);
  CHECK_LE(args.row_begin, args.row_end);
  CHECK_EQ(reinterpret_cast<uintptr_t>(args.weights) % 32, 0u);
  CHECK_EQ(reinterpret_cast<uintptr_t>(args.activations) % 64, 0u);
}

}  // namespace offstage
