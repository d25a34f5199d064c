// A row of activations as the device's quantised matmuls read it: the values of cpu/README.md,
// "Activations of quantised weights", in an order of their own. Private to gpu/kernels and its
// tests.
#pragma once

#include <cstdint>

#include "base/arithmetic.h"

namespace offstage::gpu {

struct alignas(64) Run32 {
  int8_t q[kRunElements];  // in K order
  float d[kRunBlocks];
  int32_t sum[kRunBlocks];  // Σ q of the block
};

struct alignas(64) Run256 {
  int8_t q[kRunElements];
  int16_t sum16[16];  // Σ q of 16 elements
  float d;
  float unused[7];
};

static_assert(sizeof(Run32) == 320 && sizeof(Run256) == 320);

}  // namespace offstage::gpu
