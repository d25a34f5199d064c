#include <immintrin.h>

#include <cstddef>

#include "cpu/avx2.h"
#include "cpu/lanes_avx2.h"

namespace offstage {
namespace {

// 1 + exp(−x), the divisor of sigmoid and silu.
__m256 sigmoid_divisor(__m256 x) {
  const __m256 negated = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
  return _mm256_add_ps(_mm256_set1_ps(1.0f), exp_avx2(negated));
}

// Σ over sixteen lanes of x[i] (or its square); missing elements leave their lanes alone.
template <bool kSquares>
float sum_row(const float* x, uint32_t n) {
  __m256 lanes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256 v = _mm256_maskload_ps(x + i, lanes_from(i, n));
    __m256& sum = lanes[i / 8 % 2];
    sum = kSquares ? _mm256_fmadd_ps(v, v, sum) : _mm256_add_ps(sum, v);
  }
  return sum_lanes_avx2(lanes[0], lanes[1]);
}

}  // namespace

void rms_norm_avx2(const float* x, const float* weight, uint32_t n, float eps, float* y) {
  const float mean = sum_row<true>(x, n) / static_cast<float>(n);
  const __m256 root = _mm256_sqrt_ps(_mm256_set1_ps(mean + eps));
  const __m256 r = _mm256_div_ps(_mm256_set1_ps(1.0f), root);
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 scaled = _mm256_mul_ps(_mm256_maskload_ps(x + i, m), r);
    _mm256_maskstore_ps(y + i, m, _mm256_mul_ps(scaled, _mm256_maskload_ps(weight + i, m)));
  }
}

void layer_norm_avx2(const float* x, const float* weight, const float* bias, uint32_t n, float eps,
                     float* y) {
  const __m256 mean = _mm256_set1_ps(sum_row<false>(x, n) / static_cast<float>(n));
  __m256 lanes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 d =
        _mm256_and_ps(_mm256_sub_ps(_mm256_maskload_ps(x + i, m), mean), _mm256_castsi256_ps(m));
    __m256& sum = lanes[i / 8 % 2];
    sum = _mm256_fmadd_ps(d, d, sum);
  }
  const float variance = sum_lanes_avx2(lanes[0], lanes[1]) / static_cast<float>(n);
  const __m256 root = _mm256_sqrt_ps(_mm256_set1_ps(variance + eps));
  const __m256 r = _mm256_div_ps(_mm256_set1_ps(1.0f), root);
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 scaled = _mm256_mul_ps(_mm256_sub_ps(_mm256_maskload_ps(x + i, m), mean), r);
    _mm256_maskstore_ps(y + i, m,
                        _mm256_fmadd_ps(scaled, _mm256_maskload_ps(weight + i, m),
                                        _mm256_maskload_ps(bias + i, m)));
  }
}

void rope_avx2(const RopeArgs& args) {
  const uint32_t half = args.n_rot / 2;
  for (uint32_t h = 0; h < args.n_heads; ++h) {
    float* x = args.x + size_t{h} * args.head_dim;
    if (!args.neox) {  // four pairs a time, as they lie
      for (uint32_t i = 0; i < half; i += 4) {
        const __m256i m = lanes_from(2 * i, 2 * half);
        const __m256 v = _mm256_maskload_ps(x + 2 * i, m);
        const __m256 table = _mm256_maskload_ps(args.cos_sin + 2 * size_t{i}, m);
        const __m256 c = _mm256_moveldup_ps(table), s = _mm256_movehdup_ps(table);
        const __m256 a = _mm256_moveldup_ps(v), b = _mm256_movehdup_ps(v);
        const __m256 first = _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s));
        const __m256 second = _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c));
        _mm256_maskstore_ps(x + 2 * i, m, _mm256_blend_ps(first, second, 0xaa));
      }
      continue;
    }
    for (uint32_t i = 0; i < half; i += 8) {
      const __m256i m = lanes_from(i, half);
      const float* table = args.cos_sin + 2 * size_t{i};
      const __m256 t0 = _mm256_maskload_ps(table, lanes_from(2 * i, 2 * half));
      const __m256 t1 = _mm256_maskload_ps(table + 8, lanes_from(2 * i + 8, 2 * half));
      const __m256 low = _mm256_permute2f128_ps(t0, t1, 0x20);
      const __m256 high = _mm256_permute2f128_ps(t0, t1, 0x31);
      const __m256 c = _mm256_shuffle_ps(low, high, 0x88), s = _mm256_shuffle_ps(low, high, 0xdd);
      const __m256 a = _mm256_maskload_ps(x + i, m), b = _mm256_maskload_ps(x + half + i, m);
      _mm256_maskstore_ps(x + i, m, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
      _mm256_maskstore_ps(x + half + i, m, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
    }
  }
}

void swiglu_avx2(float* gate, const float* up, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 g = _mm256_maskload_ps(gate + i, m);
    const __m256 silu = _mm256_div_ps(g, sigmoid_divisor(g));
    _mm256_maskstore_ps(gate + i, m, _mm256_mul_ps(silu, _mm256_maskload_ps(up + i, m)));
  }
}

void swiglu_clamped_avx2(float* gate, const float* up, uint32_t n) {
  const __m256 limit = _mm256_set1_ps(kSwigluLimit), lowest = _mm256_set1_ps(-kSwigluLimit);
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    // min and max give their second operand when one is NaN.
    const __m256 g = _mm256_min_ps(limit, _mm256_maskload_ps(gate + i, m));
    const __m256 u = _mm256_max_ps(lowest, _mm256_min_ps(limit, _mm256_maskload_ps(up + i, m)));
    const __m256 divisor = sigmoid_divisor(_mm256_mul_ps(_mm256_set1_ps(kSwigluAlpha), g));
    const __m256 lifted = _mm256_add_ps(u, _mm256_set1_ps(1.0f));
    _mm256_maskstore_ps(gate + i, m, _mm256_mul_ps(_mm256_div_ps(g, divisor), lifted));
  }
}

void sigmoid_avx2(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 divisor = sigmoid_divisor(_mm256_maskload_ps(x + i, m));
    _mm256_maskstore_ps(x + i, m, _mm256_div_ps(_mm256_set1_ps(1.0f), divisor));
  }
}

void softmax_avx2(float* x, uint32_t n) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  __m256 max = lowest;
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 v = _mm256_blendv_ps(lowest, _mm256_maskload_ps(x + i, m), _mm256_castsi256_ps(m));
    max = _mm256_max_ps(v, max);
  }
  const __m256 top = _mm256_set1_ps(max_lanes_avx2(max));
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    _mm256_maskstore_ps(x + i, m, exp_avx2(_mm256_sub_ps(_mm256_maskload_ps(x + i, m), top)));
  }
  const __m256 sum = _mm256_set1_ps(sum_row<false>(x, n));
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    _mm256_maskstore_ps(x + i, m, _mm256_div_ps(_mm256_maskload_ps(x + i, m), sum));
  }
}

void add_avx2(float* x, const float* y, uint32_t n) {
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 sum = _mm256_add_ps(_mm256_maskload_ps(x + i, m), _mm256_maskload_ps(y + i, m));
    _mm256_maskstore_ps(x + i, m, sum);
  }
}

void scale_avx2(float* x, float w, uint32_t n) {
  const __m256 factor = _mm256_set1_ps(w);
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    _mm256_maskstore_ps(x + i, m, _mm256_mul_ps(_mm256_maskload_ps(x + i, m), factor));
  }
}

void add_scaled_avx2(float* x, const float* y, float w, uint32_t n) {
  const __m256 scale = _mm256_set1_ps(w);
  for (uint32_t i = 0; i < n; i += 8) {
    const __m256i m = lanes_from(i, n);
    const __m256 sum =
        _mm256_fmadd_ps(scale, _mm256_maskload_ps(y + i, m), _mm256_maskload_ps(x + i, m));
    _mm256_maskstore_ps(x + i, m, sum);
  }
}

}  // namespace offstage
