#include <immintrin.h>

#include <cstddef>

#include "cpu/activations.h"
#include "cpu/avx512.h"
#include "cpu/float16.h"
#include "cpu/scalar.h"

namespace offstage {
namespace {

constexpr uint32_t kInfBits = 0x7f800000u;

__m512i magnitude(__m512 v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
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

__m512i quantise16(__m512 v, __m512 inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
}

void quantise_run32(const float* x, uint32_t n_blocks, ActivationRun32* out) {
  __builtin_memset(out, 0, sizeof *out);
  for (uint32_t position = 0; position < 8; ++position) {
    const uint32_t block = kRunBlockOrder[position];
    if (block >= n_blocks) continue;
    const __m512 a = _mm512_loadu_ps(x + 32 * block), b = _mm512_loadu_ps(x + 32 * block + 16);
    const uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(magnitude(a), magnitude(b)));
    float inverse = 0;
    if (!activation_scale(largest, &out->d[position], &inverse)) continue;
    const __m512i qa = quantise16(a, _mm512_set1_ps(inverse));
    const __m512i qb = quantise16(b, _mm512_set1_ps(inverse));
    int8_t* q = out->q + 128 * (block / 4) + 16 * (block % 4);
    _mm_store_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(qa));
    _mm_store_si128(reinterpret_cast<__m128i*>(q + 64), _mm512_cvtepi32_epi8(qb));
    out->sum[position] = _mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
  }
}

void quantise_run256(const float* x, ActivationRun256* out) {
  __builtin_memset(out, 0, sizeof *out);
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < 256; i += 16)
    largest = _mm512_max_epu32(largest, magnitude(_mm512_loadu_ps(x + i)));
  float inverse = 0;
  if (!activation_scale(_mm512_reduce_max_epu32(largest), &out->d, &inverse)) return;
  for (int i = 0; i < 256; i += 16) {
    const __m512i q = quantise16(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(out->q + i), _mm512_cvtepi32_epi8(q));
  }
  __m512i sum[4];  // sum[i], lane b: four partial sums of group 4i + b
  for (int i = 0; i < 4; ++i)
    sum[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1),
                                 _mm512_load_si512(out->q + 64 * i));
  const __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]),
                                       _mm512_unpackhi_epi32(sum[0], sum[1]));
  const __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]),
                                       _mm512_unpackhi_epi32(sum[2], sum[3]));
  const __m512i all =  // lane b, dword i: group 4i + b
      _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out->sum16),
                     _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(order, all)));
}

void store_q8_0(const float* x, std::byte* out) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(magnitude(a), magnitude(b)));
  uint16_t d_bits = 0x7e00;  // NaN
  float inverse = 0;
  if (largest < kInfBits) {
    const float d = float_of_bits(largest) / 127.0f;
    d_bits = f16_of_float(d < 65504.0f ? d : 65504.0f);
    if (d_bits != 0) inverse = 1.0f / float_of_f16(d_bits);
  }
  __builtin_memcpy(out, &d_bits, 2);
  const __m512 halves[2] = {a, b};
  for (int h = 0; h < 2; ++h) {
    __m512 scaled = _mm512_mul_ps(halves[h], _mm512_set1_ps(inverse));
    scaled = _mm512_max_ps(_mm512_min_ps(scaled, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f));
    __m512i q = _mm512_cvtps_epi32(scaled);
    if (inverse == 0.0f) q = _mm512_setzero_si512();
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 + 16 * h), _mm512_cvtepi32_epi8(q));
  }
}

}  // namespace

void quantise_activations_avx512(ActivationFormat format, const float* x, uint32_t k,
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

void store_kv_avx512(KvType type, const float* x, uint32_t n, std::byte* out) {
  check_kv(type, n);
  switch (type) {
    case KvType::kF32: __builtin_memcpy(out, x, size_t{n} * 4); return;
    case KvType::kF16:
      for (uint32_t i = 0; i < n; i += 16) {
        const auto m = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1u << (n - i)) - 1);
        const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        _mm256_mask_storeu_epi16(out + size_t{i} * 2, m,
                                 _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
      }
      return;
    case KvType::kQ8_0:
      for (uint32_t i = 0; i < n; i += 32) store_q8_0(x + i, out + size_t{i} / 32 * 34);
      return;
  }
}

}  // namespace offstage
