#include "cpu/avx2.h"
#include "cpu/scalar.h"
#include "cpu/tables.h"

namespace offstage {
namespace {

void matmul_avx2(const MatmulArgs& args) {
  check_matmul(args);
  switch (activation_format(args.type)) {
    case ActivationFormat::kF32: return matmul_float_avx2(args);
    case ActivationFormat::kQ8_32: return matmul_32_avx2(args);
    case ActivationFormat::kQ8_256: return matmul_k_avx2(args);
  }
}

}  // namespace

const Kernels kKernelsAvx2 = {
    .isa = Isa::kAvx2,
    .dequantise = dequantise_scalar,  // embedding rows alone: a few per token
    .quantise_activations = quantise_activations_avx2,
    .matmul = matmul_avx2,
    .rms_norm = rms_norm_avx2,
    .layer_norm = layer_norm_avx2,
    .rope = rope_avx2,
    .swiglu = swiglu_avx2,
    .swiglu_clamped = swiglu_clamped_avx2,
    .sigmoid = sigmoid_avx2,
    .softmax = softmax_avx2,
    .add = add_avx2,
    .scale = scale_avx2,
    .add_scaled = add_scaled_avx2,
    .store_kv = store_kv_avx2,
    .attention = attention_avx2,
};

}  // namespace offstage
