// One run of 256 elements of a quantised row, unpacked to integers: what the oracle computes with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/tensor_type.h"

namespace offstage {

struct WeightRun {
  int8_t q[256];      // w of the README's table, in K order; 0 beyond the end of the row
  float d_block[8];   // 32-element formats; +0 beyond the end of the row
  float d, dmin;      // K-quants
  int16_t scale[16];  // K-quants, per 16 elements
  int16_t min[16];    // K-quants with minima, per 16 elements; else 0
};

// Run `run` (elements 256·run …) of a row of k elements. `type` must be quantised.
void unpack_run_scalar(TensorType type, const std::byte* row, uint32_t k, uint32_t run,
                       WeightRun* out);

bool has_minima(TensorType type);  // Q2_K, Q4_K, Q5_K

}  // namespace offstage
