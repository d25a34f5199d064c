#include <cmath>
#include <limits>

#include "cpu/exp.h"
#include "cpu/scalar.h"

namespace offstage {

float sum_lanes_scalar(float* lanes) {
  for (int width = 8; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] = lanes[l] + lanes[l + width];
  return lanes[0];
}

void rms_norm_scalar(const float* x, const float* weight, uint32_t n, float eps, float* y) {
  float lanes[16] = {};
  for (uint32_t i = 0; i < n; ++i) lanes[i % 16] = __builtin_fmaf(x[i], x[i], lanes[i % 16]);
  const float mean = sum_lanes_scalar(lanes) / static_cast<float>(n);
  const float r = 1.0f / std::sqrt(mean + eps);
  for (uint32_t i = 0; i < n; ++i) y[i] = (x[i] * r) * weight[i];
}

void layer_norm_scalar(const float* x, const float* weight, const float* bias, uint32_t n,
                       float eps, float* y) {
  float lanes[16] = {};
  for (uint32_t i = 0; i < n; ++i) lanes[i % 16] = lanes[i % 16] + x[i];
  const float mean = sum_lanes_scalar(lanes) / static_cast<float>(n);
  float squares[16] = {};
  for (uint32_t i = 0; i < n; ++i) {
    const float d = x[i] - mean;
    squares[i % 16] = __builtin_fmaf(d, d, squares[i % 16]);
  }
  const float variance = sum_lanes_scalar(squares) / static_cast<float>(n);
  const float r = 1.0f / std::sqrt(variance + eps);
  for (uint32_t i = 0; i < n; ++i) y[i] = __builtin_fmaf((x[i] - mean) * r, weight[i], bias[i]);
}

void rope_scalar(const RopeArgs& args) {
  const uint32_t half = args.n_rot / 2;
  for (uint32_t h = 0; h < args.n_heads; ++h) {
    float* x = args.x + size_t{h} * args.head_dim;
    for (uint32_t i = 0; i < half; ++i) {
      float& first = args.neox ? x[i] : x[2 * i];
      float& second = args.neox ? x[i + half] : x[2 * i + 1];
      const float c = args.cos_sin[2 * i], s = args.cos_sin[2 * i + 1];
      const float a = first, b = second;
      first = __builtin_fmaf(a, c, -(b * s));
      second = __builtin_fmaf(a, s, b * c);
    }
  }
}

void swiglu_scalar(float* gate, const float* up, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) gate[i] = (gate[i] / (1.0f + exp_scalar(-gate[i]))) * up[i];
}

void swiglu_clamped_scalar(float* gate, const float* up, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) {
    const float g = gate[i] > kSwigluLimit ? kSwigluLimit : gate[i];
    float u = up[i] > kSwigluLimit ? kSwigluLimit : up[i];
    u = u < -kSwigluLimit ? -kSwigluLimit : u;
    const float divisor = 1.0f + exp_scalar(-(kSwigluAlpha * g));
    gate[i] = (g / divisor) * (u + 1.0f);
  }
}

void sigmoid_scalar(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) x[i] = 1.0f / (1.0f + exp_scalar(-x[i]));
}

void softmax_scalar(float* x, uint32_t n) {
  float max = -std::numeric_limits<float>::infinity();
  for (uint32_t i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  float lanes[16] = {};
  for (uint32_t i = 0; i < n; ++i) {
    x[i] = exp_scalar(x[i] - max);
    lanes[i % 16] = lanes[i % 16] + x[i];
  }
  const float sum = sum_lanes_scalar(lanes);
  for (uint32_t i = 0; i < n; ++i) x[i] = x[i] / sum;
}

void add_scalar(float* x, const float* y, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) x[i] = x[i] + y[i];
}

void scale_scalar(float* x, float w, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) x[i] = x[i] * w;
}

void add_scaled_scalar(float* x, const float* y, float w, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) x[i] = __builtin_fmaf(w, y[i], x[i]);
}

}  // namespace offstage
