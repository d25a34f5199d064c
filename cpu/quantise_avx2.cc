#include <immintrin.h>

#include <cstddef>

#include "cpu/activations.h"
#include "cpu/avx2.h"
#include "cpu/float16.h"
#include "cpu/lanes_avx2.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

constexpr uint32_t kInfBits = 0x7f800000u;

__m256i magnitude(const float* x) {
  return _mm256_and_si256(load32(x), _mm256_set1_epi32(0x7fffffff));
}

uint32_t amax_bits(const float* x, uint32_t n) {
  __m256i largest = _mm256_setzero_si256();
  for (uint32_t i = 0; i < n; i += 8) largest = _mm256_max_epu32(largest, magnitude(x + i));
  return max_lanes_epu32(largest);
}

// d and 127 / amax of a scale group; false where all q are 0.
bool activation_scale(uint32_t largest, float* d, float* inverse) {
  const float amax = float_of_bits(largest);
  *d = largest >= kInfBits ? float_of_bits(0x7fc00000u) : 0.0f;
  if (largest >= kInfBits || amax < kTinyActivation) return false;
  *d = amax / 127.0f;
  *inverse = 127.0f / amax;
  return true;
}

// 32 scaled floats → 32 bytes in order.
__m256i pack32(const __m256* v) {
  const __m256i a = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
  const __m256i b = _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
  // The packs work within 128-bit halves: dwords 0 2 4 6 hold the first half's, 1 3 5 7 the other.
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

__m256i quantise32(const float* x, float inverse) {
  __m256 v[4];
  for (int i = 0; i < 4; ++i)
    v[i] = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse));
  return pack32(v);
}

// Sums of 16 bytes: dword 0 of either half.
__m256i sums16(__m256i q) {
  const __m256i words = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  __m256i sum = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
  sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4e));
  return _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0xb1));
}

void quantise_run32(const float* x, uint32_t n_blocks, ActivationRun32* out) {
  __builtin_memset(out, 0, sizeof *out);
  for (uint32_t position = 0; position < 8; ++position) {
    const uint32_t block = kRunBlockOrder[position];
    if (block >= n_blocks) continue;
    float inverse = 0;
    if (!activation_scale(amax_bits(x + 32 * block, 32), &out->d[position], &inverse)) continue;
    const __m256i q = quantise32(x + 32 * block, inverse);
    auto* to = reinterpret_cast<__m128i*>(out->q + 128 * (block / 4) + 16 * (block % 4));
    _mm_store_si128(to, _mm256_castsi256_si128(q));
    _mm_store_si128(to + 4, _mm256_extracti128_si256(q, 1));
    const __m256i sums = sums16(q);
    out->sum[position] = _mm256_extract_epi32(sums, 0) + _mm256_extract_epi32(sums, 4);
  }
}

void quantise_run256(const float* x, ActivationRun256* out) {
  __builtin_memset(out, 0, sizeof *out);
  float inverse = 0;
  if (!activation_scale(amax_bits(x, 256), &out->d, &inverse)) return;
  for (int i = 0; i < 8; ++i) {
    const __m256i q = quantise32(x + 32 * i, inverse);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out->q + 32 * i), q);
    const __m256i sums = sums16(q);
    out->sum16[2 * i] = static_cast<int16_t>(_mm256_extract_epi32(sums, 0));
    out->sum16[2 * i + 1] = static_cast<int16_t>(_mm256_extract_epi32(sums, 4));
  }
}

void store_q8_0(const float* x, std::byte* out) {
  const uint32_t largest = amax_bits(x, 32);
  uint16_t d_bits = 0x7e00;  // NaN
  float inverse = 0;
  if (largest < kInfBits) {
    const float d = float_of_bits(largest) / 127.0f;
    d_bits = f16_of_float(d < 65504.0f ? d : 65504.0f);
    if (d_bits != 0) inverse = 1.0f / float_of_f16(d_bits);
  }
  __m256 v[4];
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse));
    v[i] = _mm256_max_ps(_mm256_min_ps(v[i], _mm256_set1_ps(127.0f)), _mm256_set1_ps(-127.0f));
    if (inverse == 0.0f) v[i] = _mm256_setzero_ps();
  }
  __builtin_memcpy(out, &d_bits, 2);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2), pack32(v));
}

}  // namespace

void quantise_activations_avx2(ActivationFormat format, const float* x, uint32_t k,
                               std::byte* out) {
  check_activations(format, k, out);
  if (format == ActivationFormat::kF32) {
    __builtin_memcpy(out, x, size_t{k} * 4);
    return;
  }
  for (uint32_t begin = 0; begin < k; begin += kRunElements) {
    const uint32_t n = k - begin < kRunElements ? k - begin : kRunElements;
    if (format == ActivationFormat::kQ8_32)
      quantise_run32(x + begin, n / 32,
                     reinterpret_cast<ActivationRun32*>(out) + begin / kRunElements);
    else
      quantise_run256(x + begin, reinterpret_cast<ActivationRun256*>(out) + begin / kRunElements);
  }
}

void store_kv_avx2(KvType type, const float* x, uint32_t n, std::byte* out) {
  check_kv(type, n);
  switch (type) {
    case KvType::kF32: __builtin_memcpy(out, x, size_t{n} * 4); return;
    case KvType::kF16:
      for (uint32_t i = 0; i < n; i += 8) {
        const uint32_t left = n - i < 8 ? n - i : 8;
        const __m128i halves = _mm256_cvtps_ph(_mm256_maskload_ps(x + i, first_lanes(left)),
                                               _MM_FROUND_TO_NEAREST_INT);
        alignas(16) uint16_t stored[8];
        _mm_store_si128(reinterpret_cast<__m128i*>(stored), halves);
        __builtin_memcpy(out + size_t{i} * 2, stored, left * 2);
      }
      return;
    case KvType::kQ8_0:
      for (uint32_t i = 0; i < n; i += 32) store_q8_0(x + i, out + size_t{i} / 32 * 34);
      return;
  }
}

}  // namespace offstage
