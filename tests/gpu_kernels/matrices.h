// Matrices for comparisons, and what the oracle makes of them.
#pragma once

#include <algorithm>
#include <vector>

#include "tests/gpu_kernels/comparison.h"

namespace offstage {

inline std::vector<std::byte> random_weights(TensorType type, Fill fill, uint32_t k, uint32_t rows,
                                             Rng& rng) {
  std::vector<std::byte> weights(row_bytes(type, k) * rows);
  fill_weights(type, fill, k, rows, rng, weights.data());
  return weights;
}

// out [rows of x][n] as the oracle has it.
inline std::vector<float> expected_matmul(TensorType type, const std::vector<std::byte>& weights,
                                          uint32_t k, uint32_t n, const std::vector<float>& x) {
  const auto n_rows = static_cast<uint32_t>(x.size() / k);
  const ActivationFormat format = activation_format(type);
  const uint64_t stride = activation_row_bytes(format, k);
  AlignedBytes matrix(weights.size()), activations(stride * n_rows);
  std::copy(weights.begin(), weights.end(), matrix.data());
  for (uint32_t r = 0; r < n_rows; ++r)
    oracle().quantise_activations(format, x.data() + size_t{r} * k, k,
                                  activations.data() + stride * r);
  std::vector<float> out(size_t{n_rows} * n);
  MatmulArgs args;
  args.type = type;
  args.weights = matrix.data();
  args.k = k;
  args.row_end = n;
  args.activations = activations.data();
  args.n_tokens = n_rows;
  args.out = out.data();
  args.out_stride = n;
  oracle().matmul(args);
  return out;
}

}  // namespace offstage
