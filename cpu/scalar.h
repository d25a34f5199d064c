// The oracle's entries, one file of cpu/*_scalar.cc each. Baseline instructions only, so the tables
// of other instruction sets may point at these where speed doesn't matter.
#pragma once

#include "cpu/kernels.h"

namespace offstage {

void dequantise_scalar(TensorType type, const std::byte* row, uint32_t k, float* out);
void quantise_activations_scalar(ActivationFormat format, const float* x, uint32_t k,
                                 std::byte* out);
void matmul_scalar(const MatmulArgs& args);
void rms_norm_scalar(const float* x, const float* weight, uint32_t n, float eps, float* y);
void layer_norm_scalar(const float* x, const float* weight, const float* bias, uint32_t n,
                       float eps, float* y);
void rope_scalar(const RopeArgs& args);
void swiglu_scalar(float* gate, const float* up, uint32_t n);
void swiglu_clamped_scalar(float* gate, const float* up, uint32_t n);
void sigmoid_scalar(float* x, uint32_t n);
void softmax_scalar(float* x, uint32_t n);
void add_scalar(float* x, const float* y, uint32_t n);
void scale_scalar(float* x, float w, uint32_t n);
void add_scaled_scalar(float* x, const float* y, float w, uint32_t n);
void store_kv_scalar(KvType type, const float* x, uint32_t n, std::byte* out);
void attention_scalar(const AttentionArgs& args);

// Sixteen lanes and their tree (README, "Sixteen lanes").
float sum_lanes_scalar(float* lanes);  // [16], overwritten

// The block of a head's sink, merged (README, "Attention"): returns what o is multiplied by.
float merge_sink(float sink, float* m, float* l);

// Bugs of the caller, checked once per call by every table. Out of line, so that files compiled for
// wide instruction sets hold no shared inline code.
void check_matmul(const MatmulArgs& args);
void check_attention(const AttentionArgs& args);
void check_activations(ActivationFormat format, uint32_t k, const std::byte* out);
void check_kv(KvType type, uint32_t n);
uint64_t v_stride_of(const AttentionArgs& args);
uint64_t weights_row_bytes(TensorType type, uint32_t k);

}  // namespace offstage
