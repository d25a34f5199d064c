// Entries of the AVX2 table, one file of cpu/*_avx2.cc each.
#pragma once

#include "cpu/kernels.h"

namespace offstage {

void matmul_k_avx2(const MatmulArgs& args);      // K-quants
void matmul_32_avx2(const MatmulArgs& args);     // 32-element formats
void matmul_float_avx2(const MatmulArgs& args);  // F32, F16, BF16
void quantise_activations_avx2(ActivationFormat format, const float* x, uint32_t k, std::byte* out);
void store_kv_avx2(KvType type, const float* x, uint32_t n, std::byte* out);
void rms_norm_avx2(const float* x, const float* weight, uint32_t n, float eps, float* y);
void layer_norm_avx2(const float* x, const float* weight, const float* bias, uint32_t n, float eps,
                     float* y);
void rope_avx2(const RopeArgs& args);
void swiglu_avx2(float* gate, const float* up, uint32_t n);
void swiglu_clamped_avx2(float* gate, const float* up, uint32_t n);
void sigmoid_avx2(float* x, uint32_t n);
void softmax_avx2(float* x, uint32_t n);
void add_avx2(float* x, const float* y, uint32_t n);
void scale_avx2(float* x, float w, uint32_t n);
void add_scaled_avx2(float* x, const float* y, float w, uint32_t n);
void attention_avx2(const AttentionArgs& args);

}  // namespace offstage
