#include "cpu/avx512.h"
#include "cpu/scalar.h"
#include "cpu/tables.h"

namespace offstage {
namespace {

void matmul_avx512(const MatmulArgs& args) {
  check_matmul(args);
  switch (activation_format(args.type)) {
    case ActivationFormat::kF32: return matmul_float_avx512(args);
    case ActivationFormat::kQ8_32: return matmul_32_avx512(args);
    case ActivationFormat::kQ8_256: return matmul_k_avx512(args);
  }
}

}  // namespace

const Kernels kKernelsAvx512 = {
    .isa = Isa::kAvx512,
    .dequantise = dequantise_scalar,  // embedding rows alone: a few per token
    .quantise_activations = quantise_activations_avx512,
    .matmul = matmul_avx512,
    .rms_norm = rms_norm_avx512,
    .layer_norm = layer_norm_avx512,
    .rope = rope_avx512,
    .swiglu = swiglu_avx512,
    .swiglu_clamped = swiglu_clamped_avx512,
    .sigmoid = sigmoid_avx512,
    .softmax = softmax_avx512,
    .add = add_avx512,
    .scale = scale_avx512,
    .add_scaled = add_scaled_avx512,
    .store_kv = store_kv_avx512,
    .attention = attention_avx512,
};

}  // namespace offstage
