// The arithmetic of a forward pass as one table of functions, one table per instruction set.
//
// Every entry gives the same bits in every table (promise 1); scalar is the oracle. The order of
// every sum is specified in cpu/README.md, not here and not in the kernels. Leaves are pure: they
// touch only the ranges named in their arguments, start no thread and allocate nothing, so callers
// split rows, heads or tokens over threads without changing a bit.
//
// Weights are read where they lie: any 32-byte-aligned pointer into a slot, rows contiguous.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/arithmetic.h"
#include "base/result.h"
#include "base/tensor_type.h"

namespace offstage {

enum class Isa { kScalar, kAvx2, kAvx512 };
std::string_view isa_name(Isa isa);  // "scalar", "avx2", "avx512": as OFFSTAGE_ISA spells them

// What a weight format wants its activations as.
enum class ActivationFormat {
  kF32,     // F32, F16, BF16 weights: floats as they are
  kQ8_32,   // 32-element blocks (Q8_0, Q4_0, MXFP4 …): int8 with a float scale per 32
  kQ8_256,  // 256-element blocks (K-quants, most IQ): int8, a float scale per 256, sums per 16
};
ActivationFormat activation_format(TensorType weights);
uint64_t activation_row_bytes(ActivationFormat format, uint32_t k);  // multiple of 64

// out[t][n] = dot(weights[n], x[t]) for n in [row_begin, row_end), t in [0, n_tokens).
struct MatmulArgs {
  TensorType type = TensorType::kF32;
  const std::byte* weights = nullptr;  // [rows][row_bytes(type, k)], the whole matrix
  uint32_t k = 0;                      // multiple of the type's block
  uint32_t row_begin = 0, row_end = 0;
  const std::byte* activations = nullptr;  // rows in activation_format(type), 64-byte aligned
  const uint32_t* token_rows = nullptr;    // row of token t in activations; nullptr: t itself
  uint32_t n_tokens = 0;
  float* out = nullptr;     // [n_tokens][out_stride]
  uint32_t out_stride = 0;  // in floats
};

// How keys and values are stored.
enum class KvType { kF32, kF16, kQ8_0 };
uint64_t kv_row_bytes(KvType type, uint32_t head_dim);  // Q8_0: head_dim multiple of 32

// Query rows of consecutive positions of one sequence, and in them the query heads that share one
// kv head. Row r attends positions [first_of_row, last + r]; block b holds positions 64·b … 64·b +
// 63 as [64][kv_row_bytes]. A row's bits don't depend on the others.
struct AttentionArgs {
  KvType k_type = KvType::kF16, v_type = KvType::kF16;
  uint32_t head_dim_k = 0, head_dim_v = 0;
  uint32_t n_heads = 0;  // query heads in the group
  uint32_t n_rows = 1;
  uint32_t q_stride = 0, out_stride = 0;       // floats from a row to the next one
  const float* q = nullptr;                    // [n_rows][n_heads][head_dim_k]
  const std::byte* const* k_blocks = nullptr;  // by absolute block number, for this kv head
  const std::byte* const* v_blocks = nullptr;
  uint64_t k_offset = 0, v_offset = 0;  // added to every block pointer (layer and head)
  // From a position's V to the next one's; 0: kv_row_bytes(v_type, head_dim_v). Greater where V is
  // the beginning of the K row (MLA).
  uint64_t v_stride = 0;
  const std::byte* then_k = nullptr;  // what is attended next begins here; a hint, to fetch it
  uint32_t first = 0, last = 0;       // of row 0
  uint32_t window = 0;  // positions that a row sees at most, its own included; 0: all from `first`
  float scale = 1;
  const float* sinks = nullptr;  // [n_heads]: a score that takes weight and gives no value
  float* out = nullptr;          // [n_rows][n_heads][head_dim_v]
};

// The first position that row `row` attends.
uint32_t first_of_row(const AttentionArgs& args, uint32_t row);

struct RopeArgs {
  float* x = nullptr;  // [n_heads][head_dim], rotated in place
  uint32_t n_heads = 0, head_dim = 0;
  uint32_t n_rot = 0;              // first n_rot of head_dim are rotated
  bool neox = true;                // pairs (i, i + n_rot/2); else (2i, 2i + 1)
  const float* cos_sin = nullptr;  // [n_rot/2][2] of this position
};

struct Kernels {
  Isa isa = Isa::kScalar;

  // Sources of the weights' formats.
  void (*dequantise)(TensorType type, const std::byte* row, uint32_t k, float* out) = nullptr;
  // x[k] → one activation row. kF32 copies.
  void (*quantise_activations)(ActivationFormat format, const float* x, uint32_t k,
                               std::byte* out) = nullptr;
  void (*matmul)(const MatmulArgs& args) = nullptr;

  // y[i] = x[i] / sqrt(mean(x²) + eps) · weight[i]; y may be x.
  void (*rms_norm)(const float* x, const float* weight, uint32_t n, float eps, float* y) = nullptr;
  // y[i] = (x[i] − mean) / sqrt(variance + eps) · weight[i] + bias[i]; y may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, uint32_t n, float eps,
                     float* y) = nullptr;
  void (*rope)(const RopeArgs& args) = nullptr;
  // gate[i] ← silu(gate[i]) · up[i]
  void (*swiglu)(float* gate, const float* up, uint32_t n) = nullptr;
  // The same of gpt-oss: g = min(gate, 7), u = up within ±7; gate ← g · sigmoid(1.702 g) · (u + 1)
  void (*swiglu_clamped)(float* gate, const float* up, uint32_t n) = nullptr;
  void (*sigmoid)(float* x, uint32_t n) = nullptr;
  void (*softmax)(float* x, uint32_t n) = nullptr;
  void (*add)(float* x, const float* y, uint32_t n) = nullptr;                  // x += y
  void (*scale)(float* x, float w, uint32_t n) = nullptr;                       // x = x · w
  void (*add_scaled)(float* x, const float* y, float w, uint32_t n) = nullptr;  // x = fma(w, y, x)

  void (*store_kv)(KvType type, const float* x, uint32_t n, std::byte* out) = nullptr;
  void (*attention)(const AttentionArgs& args) = nullptr;
};

// The table of an ISA. kUnsupported where this CPU or this build lacks it, naming what is missing.
Result<const Kernels*> kernels_for(Isa isa);

// The best table of this CPU, or the one that `override` names (the value of OFFSTAGE_ISA; empty:
// none). An override that can't be honoured is an error, never a quiet fallback.
Result<const Kernels*> choose_kernels(std::string_view override_name);

}  // namespace offstage
