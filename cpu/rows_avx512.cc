#include <immintrin.h>

#include <cstddef>

#include "cpu/avx512.h"
#include "cpu/lanes_avx512.h"

namespace offstage {
namespace {

// Lanes of the elements at … n − 1, at most sixteen.
__mmask16 lanes_from(uint32_t at, uint32_t n) {
  return n - at >= 16 ? static_cast<__mmask16>(0xffff)
                      : static_cast<__mmask16>((1u << (n - at)) - 1);
}

// 1 + exp(−x), the divisor of sigmoid and silu.
__m512 sigmoid_divisor(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 negated = _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
  return _mm512_add_ps(one, exp_avx512(negated));
}

}  // namespace

void rms_norm_avx512(const float* x, const float* weight, uint32_t n, float eps, float* y) {
  __m512 lanes = _mm512_setzero_ps();
  for (uint32_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(lanes_from(i, n), x + i);
    lanes = _mm512_fmadd_ps(v, v, lanes);
  }
  const float mean = sum_lanes_avx512(lanes) / static_cast<float>(n);
  const __m512 root = _mm512_sqrt_ps(_mm512_set1_ps(mean + eps));
  const __m512 r = _mm512_div_ps(_mm512_set1_ps(1.0f), root);
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), r);
    _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(m, weight + i)));
  }
}

void layer_norm_avx512(const float* x, const float* weight, const float* bias, uint32_t n,
                       float eps, float* y) {
  __m512 lanes = _mm512_setzero_ps();
  for (uint32_t i = 0; i < n; i += 16)
    lanes = _mm512_add_ps(lanes, _mm512_maskz_loadu_ps(lanes_from(i, n), x + i));
  const __m512 mean = _mm512_set1_ps(sum_lanes_avx512(lanes) / static_cast<float>(n));
  lanes = _mm512_setzero_ps();
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    const __m512 d = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, x + i), mean);
    lanes = _mm512_fmadd_ps(d, d, lanes);
  }
  const float variance = sum_lanes_avx512(lanes) / static_cast<float>(n);
  const __m512 root = _mm512_sqrt_ps(_mm512_set1_ps(variance + eps));
  const __m512 r = _mm512_div_ps(_mm512_set1_ps(1.0f), root);
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    const __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), mean), r);
    _mm512_mask_storeu_ps(y + i, m,
                          _mm512_fmadd_ps(scaled, _mm512_maskz_loadu_ps(m, weight + i),
                                          _mm512_maskz_loadu_ps(m, bias + i)));
  }
}

void rope_avx512(const RopeArgs& args) {
  const uint32_t half = args.n_rot / 2;
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (uint32_t i = 0; i < half; i += 16) {
    const __mmask16 m = lanes_from(i, half);
    const uint32_t n_floats = 2 * (half - i);
    const __mmask16 m_low = lanes_from(0, n_floats);
    const __mmask16 m_high = n_floats > 16 ? lanes_from(16, n_floats) : __mmask16{0};
    const float* table = args.cos_sin + 2 * size_t{i};
    const __m512 t0 = _mm512_maskz_loadu_ps(m_low, table);
    const __m512 t1 = _mm512_maskz_loadu_ps(m_high, table + 16);
    const __m512 c = _mm512_permutex2var_ps(t0, even, t1);
    const __m512 s = _mm512_permutex2var_ps(t0, odd, t1);
    for (uint32_t h = 0; h < args.n_heads; ++h) {
      float* x = args.x + size_t{h} * args.head_dim;
      __m512 a, b;
      if (args.neox) {
        a = _mm512_maskz_loadu_ps(m, x + i);
        b = _mm512_maskz_loadu_ps(m, x + half + i);
      } else {
        const __m512 x0 = _mm512_maskz_loadu_ps(m_low, x + 2 * i);
        const __m512 x1 = _mm512_maskz_loadu_ps(m_high, x + 2 * i + 16);
        a = _mm512_permutex2var_ps(x0, even, x1);
        b = _mm512_permutex2var_ps(x0, odd, x1);
      }
      const __m512 first = _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s));
      const __m512 second = _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c));
      if (args.neox) {
        _mm512_mask_storeu_ps(x + i, m, first);
        _mm512_mask_storeu_ps(x + half + i, m, second);
      } else {
        _mm512_mask_storeu_ps(x + 2 * i, m_low, _mm512_permutex2var_ps(first, low, second));
        _mm512_mask_storeu_ps(x + 2 * i + 16, m_high, _mm512_permutex2var_ps(first, high, second));
      }
    }
  }
}

void swiglu_avx512(float* gate, const float* up, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    const __m512 g = _mm512_maskz_loadu_ps(m, gate + i);
    const __m512 silu = _mm512_div_ps(g, sigmoid_divisor(g));
    _mm512_mask_storeu_ps(gate + i, m, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(m, up + i)));
  }
}

void swiglu_clamped_avx512(float* gate, const float* up, uint32_t n) {
  const __m512 limit = _mm512_set1_ps(kSwigluLimit), lowest = _mm512_set1_ps(-kSwigluLimit);
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    // min and max give their second operand when one is NaN.
    const __m512 g = _mm512_min_ps(limit, _mm512_maskz_loadu_ps(m, gate + i));
    const __m512 u = _mm512_max_ps(lowest, _mm512_min_ps(limit, _mm512_maskz_loadu_ps(m, up + i)));
    const __m512 divisor = sigmoid_divisor(_mm512_mul_ps(_mm512_set1_ps(kSwigluAlpha), g));
    const __m512 lifted = _mm512_add_ps(u, _mm512_set1_ps(1.0f));
    _mm512_mask_storeu_ps(gate + i, m, _mm512_mul_ps(_mm512_div_ps(g, divisor), lifted));
  }
}

void sigmoid_avx512(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
    _mm512_mask_storeu_ps(x + i, m, _mm512_div_ps(_mm512_set1_ps(1.0f), sigmoid_divisor(v)));
  }
}

void softmax_avx512(float* x, uint32_t n) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 max = lowest;
  for (uint32_t i = 0; i < n; i += 16)
    max = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, lanes_from(i, n), x + i), max);
  const __m512 m = _mm512_set1_ps(_mm512_reduce_max_ps(max));
  __m512 lanes = _mm512_setzero_ps();
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = lanes_from(i, n);
    const __m512 e = exp_avx512(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), m));
    lanes = _mm512_mask_add_ps(lanes, mask, lanes, e);
    _mm512_mask_storeu_ps(x + i, mask, e);
  }
  const __m512 sum = _mm512_set1_ps(sum_lanes_avx512(lanes));
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = lanes_from(i, n);
    _mm512_mask_storeu_ps(x + i, mask, _mm512_div_ps(_mm512_maskz_loadu_ps(mask, x + i), sum));
  }
}

void add_avx512(float* x, const float* y, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    const __m512 sum =
        _mm512_add_ps(_mm512_maskz_loadu_ps(m, x + i), _mm512_maskz_loadu_ps(m, y + i));
    _mm512_mask_storeu_ps(x + i, m, sum);
  }
}

void scale_avx512(float* x, float w, uint32_t n) {
  const __m512 factor = _mm512_set1_ps(w);
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    _mm512_mask_storeu_ps(x + i, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), factor));
  }
}

void add_scaled_avx512(float* x, const float* y, float w, uint32_t n) {
  const __m512 scale = _mm512_set1_ps(w);
  for (uint32_t i = 0; i < n; i += 16) {
    const __mmask16 m = lanes_from(i, n);
    const __m512 sum =
        _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(m, y + i), _mm512_maskz_loadu_ps(m, x + i));
    _mm512_mask_storeu_ps(x + i, m, sum);
  }
}

}  // namespace offstage
