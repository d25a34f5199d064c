// A row of activations as the quantised matmuls read it: one struct per run of 256 elements
// (README, "Layout of activations"). Facts alone, like blocks.h.
#pragma once

#include <cstdint>

#include "base/arithmetic.h"

namespace offstage {

// d and sum of block kRunBlockOrder[i] lie at i.
inline constexpr uint8_t kRunBlockOrder[8] = {0, 4, 2, 6, 1, 5, 3, 7};

struct alignas(64) ActivationRun32 {
  int8_t q[256];   // block 4g+b, half h, element i at ((2g+h)·4 + b)·16 + i
  float d[8];      // in kRunBlockOrder
  int32_t sum[8];  // Σ q of the block, in kRunBlockOrder
};

struct alignas(64) ActivationRun256 {
  int8_t q[256];
  int16_t sum16[16];  // Σ q of 16 elements
  float d;
  float unused[7];
};

static_assert(sizeof(ActivationRun32) == 320 && sizeof(ActivationRun256) == 320);

}  // namespace offstage
