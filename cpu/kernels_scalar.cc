#include "cpu/scalar.h"
#include "cpu/tables.h"

namespace offstage {

const Kernels kKernelsScalar = {
    .isa = Isa::kScalar,
    .dequantise = dequantise_scalar,
    .quantise_activations = quantise_activations_scalar,
    .matmul = matmul_scalar,
    .rms_norm = rms_norm_scalar,
    .layer_norm = layer_norm_scalar,
    .rope = rope_scalar,
    .swiglu = swiglu_scalar,
    .swiglu_clamped = swiglu_clamped_scalar,
    .sigmoid = sigmoid_scalar,
    .softmax = softmax_scalar,
    .add = add_scalar,
    .scale = scale_scalar,
    .add_scaled = add_scaled_scalar,
    .store_kv = store_kv_scalar,
    .attention = attention_scalar,
};

}  // namespace offstage
