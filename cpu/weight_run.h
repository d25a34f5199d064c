// One run of 256 elements of a quantised row, unpacked to integers: what the oracle computes with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/tensor_type.h"

namespace offstage {

struct WeightRun {
  int8_t q[256];      // w of the README's table, in K order; 0 beyond the end of the row
  float d_block[8];   // 32-element formats; +0 beyond the end of the row
  float m_block[8];   // 32-element formats with minima; else, and beyond the end, +0
  float d, dmin;      // 256-element formats
  int16_t scale[16];  // 256-element formats, per 16 elements
  int16_t min[16];    // K-quants with minima, per 16 elements; else 0
};

// Run `run` (elements 256·run …) of a row of k elements. `type` must be quantised.
void unpack_run_scalar(TensorType type, const std::byte* row, uint32_t k, uint32_t run,
                       WeightRun* out);

// The same for the IQ formats of 256 elements.
void unpack_run_iq(TensorType type, const std::byte* row, uint32_t run, WeightRun* out);

bool has_minima(TensorType type);  // Q4_1, Q5_1, Q2_K, Q4_K, Q5_K

}  // namespace offstage
