#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "cpu/activations.h"
#include "cpu/exp.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

constexpr uint32_t kInfBits = 0x7f800000u;

// Bits of the largest magnitude: as integers, floats without sign order like their values, with Inf
// and NaN above all.
uint32_t amax_bits(const float* x, uint32_t n) {
  uint32_t largest = 0;
  for (uint32_t i = 0; i < n; ++i) largest = std::max(largest, bits_of_float(x[i]) & 0x7fffffffu);
  return largest;
}

// Nearest even of |value| < 2²².
int32_t round_small(float value) {
  return static_cast<int32_t>(bits_of_float(value + kExpRound) - bits_of_float(kExpRound));
}

struct Scale {
  float d, inverse;  // inverse 0: all q are 0
};

Scale activation_scale(uint32_t largest_bits) {
  if (largest_bits >= kInfBits) return {float_of_bits(0x7fc00000u), 0.0f};
  const float amax = float_of_bits(largest_bits);
  if (amax < kTinyActivation) return {0.0f, 0.0f};
  return {amax / 127.0f, 127.0f / amax};
}

// x · 0 is NaN for the Inf that made the scale NaN, so a zero inverse is a branch.
int8_t quantise(float x, float inverse) {
  return inverse == 0.0f ? int8_t{0} : static_cast<int8_t>(round_small(x * inverse));
}

void quantise_run32(const float* x, uint32_t n_blocks, ActivationRun32* out) {
  std::memset(out, 0, sizeof *out);
  for (int position = 0; position < 8; ++position) {
    const uint32_t block = kRunBlockOrder[position];
    if (block >= n_blocks) continue;
    const Scale scale = activation_scale(amax_bits(x + 32 * block, 32));
    out->d[position] = scale.d;
    for (uint32_t i = 0; i < 32; ++i) {
      const int8_t q = quantise(x[32 * block + i], scale.inverse);
      out->q[((2 * (block / 4) + i / 16) * 4 + block % 4) * 16 + i % 16] = q;
      out->sum[position] += q;
    }
  }
}

void quantise_run256(const float* x, uint32_t n, ActivationRun256* out) {
  std::memset(out, 0, sizeof *out);
  const Scale scale = activation_scale(amax_bits(x, n));
  out->d = scale.d;
  for (uint32_t i = 0; i < n; ++i) {
    out->q[i] = quantise(x[i], scale.inverse);
    out->sum16[i / 16] = static_cast<int16_t>(out->sum16[i / 16] + out->q[i]);
  }
}

// 34 bytes, as a Q8_0 weight; but q comes from the rounded d, so that d·q is as near as it can be.
void store_q8_0(const float* x, std::byte* out) {
  const uint32_t largest = amax_bits(x, 32);
  uint16_t d_bits = 0x7e00;  // NaN
  float inverse = 0.0f;
  if (largest < kInfBits) {
    d_bits = f16_of_float(std::min(float_of_bits(largest) / 127.0f, 65504.0f));
    if (d_bits != 0) inverse = 1.0f / float_of_f16(d_bits);
  }
  std::memcpy(out, &d_bits, 2);
  for (int i = 0; i < 32; ++i) {
    const float scaled = std::clamp(inverse == 0.0f ? 0.0f : x[i] * inverse, -127.0f, 127.0f);
    const auto q = static_cast<int8_t>(round_small(scaled));
    std::memcpy(out + 2 + i, &q, 1);
  }
}

}  // namespace

void quantise_activations_scalar(ActivationFormat format, const float* x, uint32_t k,
                                 std::byte* out) {
  check_activations(format, k, out);
  if (format == ActivationFormat::kF32) {
    std::memcpy(out, x, size_t{k} * 4);
    return;
  }
  for (uint32_t begin = 0; begin < k; begin += kRunElements) {
    const uint32_t n = std::min(kRunElements, k - begin);
    if (format == ActivationFormat::kQ8_32)
      quantise_run32(x + begin, n / 32,
                     reinterpret_cast<ActivationRun32*>(out) + begin / kRunElements);
    else
      quantise_run256(x + begin, n,
                      reinterpret_cast<ActivationRun256*>(out) + begin / kRunElements);
  }
}

void store_kv_scalar(KvType type, const float* x, uint32_t n, std::byte* out) {
  check_kv(type, n);
  switch (type) {
    case KvType::kF32: std::memcpy(out, x, size_t{n} * 4); return;
    case KvType::kF16:
      for (uint32_t i = 0; i < n; ++i) {
        const uint16_t half = f16_of_float(x[i]);
        std::memcpy(out + size_t{i} * 2, &half, 2);
      }
      return;
    case KvType::kQ8_0:
      for (uint32_t i = 0; i < n; i += 32) store_q8_0(x + i, out + size_t{i} / 32 * 34);
      return;
  }
}

uint64_t kv_row_bytes(KvType type, uint32_t head_dim) {
  switch (type) {
    case KvType::kF32: return uint64_t{head_dim} * 4;
    case KvType::kF16: return uint64_t{head_dim} * 2;
    case KvType::kQ8_0: return uint64_t{head_dim} / 32 * 34;
  }
  CHECK(false);
}

void check_activations(ActivationFormat format, uint32_t k, const std::byte* out) {
  if (format == ActivationFormat::kQ8_32) CHECK_EQ(k % 32, 0u);
  if (format == ActivationFormat::kQ8_256) CHECK_EQ(k % 256, 0u);
  CHECK_EQ(reinterpret_cast<uintptr_t>(out) % 64, 0u);
}

void check_kv(KvType type, uint32_t n) {
  if (type == KvType::kQ8_0) CHECK_EQ(n % 32, 0u);
}

}  // namespace offstage
