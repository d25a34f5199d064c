// The device's kernels as plain functions: what they compute is cpu/README.md's arithmetic, bit for
// bit. No vendor type, so everybody may include this.
//
// A launch puts work on a stream and returns; its status is that of the launch alone, the work's
// own errors come with the next synchronisation. All pointers are device pointers (the shim's:
// host), and every range ends at a multiple of 4 bytes. Matrices lie at multiples of 32 bytes, rows
// contiguous. A call that the arguments' comments forbid is a bug of the caller, and unchecked
// here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/tensor_type.h"
#include "gpu/kernels/attention.h"
#include "gpu/kernels/stream.h"

namespace offstage::gpu {

enum class Activation : uint32_t { kSwiglu, kSwigluClamped };

// True: matvec and expert_gate_up know the format. The others are the CPU's alone.
constexpr bool has_matvec(TensorType type) {
  return type == TensorType::kQ8_0 || type == TensorType::kQ4_0 || type == TensorType::kQ5_0 ||
         type == TensorType::kMXFP4 || type == TensorType::kQ4_K || type == TensorType::kQ5_K ||
         type == TensorType::kQ6_K;
}
// Bytes of one row of `k` activations in the form that `weights` wants (activations.h); floats for
// unquantised weights.
uint64_t activation_row_bytes(TensorType weights, uint32_t k);

// *entry ← slot: a change of a table of slots, in the order of the stream.
struct SetSlotArgs {
  const std::byte** entry = nullptr;
  const std::byte* slot = nullptr;
};
CallStatus set_slot(StreamHandle stream, const SetSlotArgs& args);

// to ← from: device memory and pinned host memory, which kernels reach over the bus, in either
// direction. In the order of the kernels' stream, and without the engines that copy: one of those
// may be busy with megabytes when a layer hands over kilobytes.
struct MoveWordsArgs {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  uint64_t bytes = 0;  // a multiple of 4; both at multiples of 4
  // Or null; a number that the device made: of `bytes`, so many times `bytes_of_each` at most.
  const uint32_t* count = nullptr;
  uint64_t bytes_of_each = 0;
};
CallStatus move_words(StreamHandle stream, const MoveWordsArgs& args);

// x [n_rows][k] → rows of activations for `weights`, a quantised format; k a multiple of its block.
struct QuantiseArgs {
  TensorType weights = TensorType::kQ8_0;
  const float* x = nullptr;
  uint32_t n_rows = 0, k = 0;
  std::byte* out = nullptr;         // [n_rows][activation_row_bytes], at a multiple of 64
  uint32_t x_stride = 0;            // from a row of x to the next one; 0: k
  const uint32_t* count = nullptr;  // or null; a number that the device made: of rows, at most
};
CallStatus quantise_activations(StreamHandle stream, const QuantiseArgs& args);

// The calls of one expert, as places in the order of group_calls(): [first, first + n).
struct ExpertJob {
  uint32_t expert = 0, first = 0, n = 0;
};

// out[p][i] = bias[e][i] + dot(matrix of e, row i, x of place p) for every place of every job.
// Without experts, jobs and slots null: n_heads matrices, one below the other, and n_places inputs
// of each; head h's input of place p is row p · n_heads + h, and so is its output.
struct MatvecArgs {
  TensorType type = TensorType::kQ4_K;
  uint32_t k = 0, n = 0;  // columns and rows of a matrix; k a multiple of the type's block
  const std::byte* matrix = nullptr;        // where slots is null
  const std::byte* const* slots = nullptr;  // by expert; null: not resident, its job is passed over
  uint64_t offset = 0;                      // of the matrix in a slot
  const ExpertJob* jobs = nullptr;
  uint32_t n_jobs = 1;    // length of jobs; n = 0 marks one that isn't used
  uint32_t n_places = 1;  // without jobs: the places; with: the most places a job may have
  const std::byte* activations = nullptr;
  const uint32_t* place_rows = nullptr;  // place → row of activations; null: the place itself
  const float* bias = nullptr;           // [experts][n], or null: as of several heads
  float* out = nullptr;                  // [places][n_heads][out_stride]
  uint32_t n_heads = 1;                  // 1 with jobs
  uint32_t out_stride = 0;               // 0: n
};
CallStatus matvec(StreamHandle stream, const MatvecArgs& args);

// The same for many places (prefill): tiles of 64 rows by 32 places share their weights. The same
// bits as matvec. With jobs, n_places bounds one job's.
CallStatus matmul(StreamHandle stream, const MatvecArgs& args);

// out[p][i] = activation(gate row i · x + bias, up row i · x + bias): MatvecArgs describes gate
// (its offset and bias) and the output; up has the same type and shape.
struct GateUpArgs {
  MatvecArgs gate;
  const std::byte* up_matrix = nullptr;  // where slots is null
  uint64_t up_offset = 0;
  const float* up_bias = nullptr;
  Activation activation = Activation::kSwiglu;
};
CallStatus expert_gate_up(StreamHandle stream, const GateUpArgs& args);

// F32, F16, BF16: out[r][i] = bias[i] + dot(weights row i, x row r). Heads as MatvecArgs has them.
struct FloatMatvecArgs {
  TensorType type = TensorType::kF32;
  uint32_t k = 0, n = 0;
  const std::byte* matrix = nullptr;
  const float* x = nullptr;  // [n_rows][n_heads][x_stride]
  uint32_t n_rows = 1;
  const float* bias = nullptr;  // [n], or null
  float* out = nullptr;         // [n_rows][n_heads][out_stride]
  uint32_t n_heads = 1;
  uint32_t x_stride = 0, out_stride = 0;  // 0: k, n
};
CallStatus float_matvec(StreamHandle stream, const FloatMatvecArgs& args);

// y[r] = x[r] / rms · weight; y may be x.
struct RmsNormArgs {
  const float* x = nullptr;  // [n_rows][stride]
  const float* weight = nullptr;
  uint32_t n_rows = 0, n = 0;
  float eps = 0;
  float* y = nullptr;
  uint32_t stride = 0;  // from a row of x, and of y, to the next one; 0: n
};
CallStatus rms_norm(StreamHandle stream, const RmsNormArgs& args);

// y[r] = (x[r] − mean) / deviation · weight + bias; y may be x.
struct LayerNormArgs {
  const float* x = nullptr;  // [n_rows][n]
  const float *weight = nullptr, *bias = nullptr;
  uint32_t n_rows = 0, n = 0;
  float eps = 0;
  float* y = nullptr;
};
CallStatus layer_norm(StreamHandle stream, const LayerNormArgs& args);

// Rotates x [n_rows][n_heads][head_dim] in place; cos_sin [n_rows][n_rot/2][2], made on the host.
// With `from`, what is rotated stands there.
struct RopeArgs {
  float* x = nullptr;
  uint32_t n_rows = 0, n_heads = 0, head_dim = 0, n_rot = 0;
  bool neox = true;  // pairs (i, i + n_rot/2); else (2i, 2i + 1)
  const float* cos_sin = nullptr;
  const float* from = nullptr;  // [n_rows][n_heads][from_stride], or null: x
  uint32_t from_stride = 0;
};
CallStatus rope(StreamHandle stream, const RopeArgs& args);

// gate[i] ← activation(gate[i], up[i]), where gate and up are matrices of their own.
struct ActivateArgs {
  Activation activation = Activation::kSwiglu;
  float* gate = nullptr;
  const float* up = nullptr;
  uint64_t n = 0;
};
CallStatus activate(StreamHandle stream, const ActivateArgs& args);

// x[i] ← fma(weight, y[i], x[i]): what a block adds to the residual stream.
struct AddScaledArgs {
  float* x = nullptr;
  const float* y = nullptr;
  float weight = 1;
  uint64_t n = 0;
};
CallStatus add_scaled(StreamHandle stream, const AddScaledArgs& args);

// x[r] += scale · (Σ_j weights[r][j] · y[place_of[r][j]] in router order, then the shared
// expert's).
struct CombineArgs {
  float* x = nullptr;  // [n_rows][hidden]
  uint32_t n_rows = 0, hidden = 0, n_used = 0;
  const float* y = nullptr;            // [places][hidden]: the device's and the CPU's alike
  const uint32_t* place_of = nullptr;  // [n_rows][n_used]
  const float* weights = nullptr;      // [n_rows][n_used]
  const float* shared = nullptr;       // [n_rows][hidden], or null
  const float* shared_gate = nullptr;  // [n_rows], before its sigmoid; null: 1
  float scale = 1;
};
CallStatus combine(StreamHandle stream, const CombineArgs& args);

// Reads `bytes` (a multiple of 16) and leaves a word per thread, [kReadWords], that depends on all
// of them: what the memory gives to loads that nothing else hinders. For measurements.
inline constexpr uint32_t kReadWords = 1024 * 256;
struct ReadArgs {
  const std::byte* data = nullptr;
  uint64_t bytes = 0;
  uint32_t* out = nullptr;
};
CallStatus read_all(StreamHandle stream, const ReadArgs& args);

enum class RouterScore : uint32_t { kSoftmax, kSoftmaxOfChosen, kSigmoid };

// logits [n_rows][n_experts] → experts and weights in router order. Bounds: n_experts ≤
// kRouterExpertsMax, n_used ≤ kRouterUsedMax, n_groups ≤ kRouterGroupsMax.
inline constexpr uint32_t kRouterExpertsMax = 1024, kRouterUsedMax = 64, kRouterGroupsMax = 64;
struct RouteArgs {
  float* logits = nullptr;  // overwritten with the scores
  uint32_t n_rows = 0, n_experts = 0, n_used = 0;
  RouterScore score = RouterScore::kSoftmax;
  const float* selection_bias = nullptr;  // [n_experts], for the choice alone; or null
  uint32_t n_groups = 1, n_groups_used = 1;
  bool normalise_weights = false;
  float weights_scale = 1;
  uint32_t* experts = nullptr;  // [n_rows][n_used]
  float* weights = nullptr;     // [n_rows][n_used]
};
CallStatus route(StreamHandle stream, const RouteArgs& args);

// experts [n_rows][n_used] → the same calls by expert: jobs ascending by expert id, those beyond
// the called ones empty; within one, calls ascending. With a table of slots, calls of the experts
// alone that are there: what the device may begin with before the host knows the choice.
struct GroupCallsArgs {
  const uint32_t* experts = nullptr;
  uint32_t n_rows = 0, n_used = 0, n_experts = 0;  // n_experts ≤ kRouterExpertsMax
  ExpertJob* jobs = nullptr;                       // [min(n_experts, n_rows · n_used)]
  uint32_t* place_rows = nullptr;                  // [n_rows · n_used]
  uint32_t* place_of = nullptr;                    // [n_rows][n_used], or null
  const std::byte* const* slots = nullptr;         // by expert, null: not there; or null: all are
  uint32_t* n_places = nullptr;                    // of the jobs; or null
  ExpertJob* told = nullptr;                       // the jobs once more, for the host; or null
};
CallStatus group_calls(StreamHandle stream, const GroupCallsArgs& args);

}  // namespace offstage::gpu
