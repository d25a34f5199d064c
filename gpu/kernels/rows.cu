// What happens to rows of floats between the matrices: norm, rotation, activation, the experts'
// sum.
#include "gpu/kernels/arithmetic.cuh"

namespace offstage::gpu {
namespace {

inline constexpr uint32_t kThreads = 256;
inline constexpr uint32_t kTile = 2048;  // floats; a multiple of sixteen lanes

uint32_t blocks_of(uint64_t n) { return static_cast<uint32_t>((n + kThreads - 1) / kThreads); }

// The mean of what `add` gathers of a row, for the first warp. Sixteen lanes of the block form the
// sum; the others fetch for them.
template <typename Add>
OFFSTAGE_DEVICE float mean_of_row(const float* x, uint32_t n, float* tile, const Add& add) {
  float lane = 0.0f;
  for (uint32_t begin = 0; begin < n; begin += kTile) {
    const uint32_t here = n - begin < kTile ? n - begin : kTile;
    for (uint32_t i = threadIdx.x; i < here; i += kThreads) tile[i] = x[begin + i];
    __syncthreads();
    if (threadIdx.x < 16)
      for (uint32_t i = threadIdx.x; i < here; i += 16) lane = add(tile[i], lane);
    __syncthreads();
  }
  return threadIdx.x < kWarp ? divided(sum_sixteen(lane), static_cast<float>(n)) : 0.0f;
}

// Grid: rows.
__global__ void rms_norm_rows(RmsNormArgs args) {
  OFFSTAGE_SHARED(float, tile, kTile);
  OFFSTAGE_SHARED(float, reciprocal, 1);
  const size_t at = size_t{blockIdx.x} * (args.stride != 0 ? args.stride : args.n);
  const float* x = args.x + at;
  const float mean =
      mean_of_row(x, args.n, tile, [](float value, float sum) { return fused(value, value, sum); });
  if (threadIdx.x == 0) reciprocal[0] = divided(1.0f, root(mean + args.eps));
  __syncthreads();
  float* y = args.y + at;
  for (uint32_t i = threadIdx.x; i < args.n; i += kThreads)
    y[i] = (x[i] * reciprocal[0]) * args.weight[i];
}

// Grid: rows. The variance is of what is left without the mean, so the row is gone through again.
__global__ void layer_norm_rows(LayerNormArgs args) {
  OFFSTAGE_SHARED(float, tile, kTile);
  OFFSTAGE_SHARED(float, of_row, 2);  // the mean, the deviation's reciprocal
  const float* x = args.x + size_t{blockIdx.x} * args.n;
  const float mean_here =
      mean_of_row(x, args.n, tile, [](float value, float sum) { return sum + value; });
  if (threadIdx.x == 0) of_row[0] = mean_here;
  __syncthreads();
  const float mean = of_row[0];
  const float variance = mean_of_row(x, args.n, tile, [mean](float value, float sum) {
    const float d = value - mean;
    return fused(d, d, sum);
  });
  if (threadIdx.x == 0) of_row[1] = divided(1.0f, root(variance + args.eps));
  __syncthreads();
  float* y = args.y + size_t{blockIdx.x} * args.n;
  for (uint32_t i = threadIdx.x; i < args.n; i += kThreads)
    y[i] = fused((x[i] - mean) * of_row[1], args.weight[i], args.bias[i]);
}

// Grid: pairs of all heads, rows.
__global__ void rope_rows(RopeArgs args) {
  const uint32_t half = args.n_rot / 2, pair = blockIdx.x * kThreads + threadIdx.x;
  if (pair >= args.n_heads * half) return;
  const uint32_t head = pair / half, i = pair % half;
  const size_t of_head = size_t{blockIdx.y} * args.n_heads + head;
  float* x = args.x + of_head * args.head_dim;
  const float* from = args.from != nullptr ? args.from + of_head * args.from_stride : x;
  const uint32_t first = args.neox ? i : 2 * i, second = args.neox ? i + half : 2 * i + 1;
  const float* angle = args.cos_sin + (size_t{blockIdx.y} * half + i) * 2;
  const float a = from[first], b = from[second], c = angle[0], s = angle[1];
  x[first] = fused(a, c, -(b * s));
  x[second] = fused(a, s, b * c);
}

__global__ void activate_all(ActivateArgs args) {
  const uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < args.n) args.gate[i] = activated(args.activation, args.gate[i], args.up[i]);
}

__global__ void add_scaled_all(AddScaledArgs args) {
  const uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < args.n) args.x[i] = fused(args.weight, args.y[i], args.x[i]);
}

// Grid: columns, rows. A sum in router order has no other order to give.
__global__ void combine_rows(CombineArgs args) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= args.hidden) return;
  const size_t row = blockIdx.y;
  float sum = 0.0f;
  for (uint32_t j = 0; j < args.n_used; ++j) {
    const size_t call = row * args.n_used + j;
    sum = fused(args.weights[call], args.y[size_t{args.place_of[call]} * args.hidden + i], sum);
  }
  if (args.shared != nullptr) {
    const float gate = args.shared_gate != nullptr ? sigmoid(args.shared_gate[row]) : 1.0f;
    sum = fused(gate, args.shared[row * args.hidden + i], sum);
  }
  float* x = args.x + row * args.hidden + i;
  *x = fused(args.scale, sum, *x);
}

__global__ void set_one_slot(SetSlotArgs args) {
  if (threadIdx.x == 0) *args.entry = args.slot;
}

__global__ void move_all_words(MoveWordsArgs args) {
  const uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  uint64_t bytes = args.bytes;
  if (args.count != nullptr && *args.count * args.bytes_of_each < bytes)
    bytes = *args.count * args.bytes_of_each;
  if (i < bytes / 4)
    reinterpret_cast<uint32_t*>(args.to)[i] = reinterpret_cast<const uint32_t*>(args.from)[i];
}

__global__ void read_words(ReadArgs args) {
  const uint64_t thread = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  uint32_t seen = 0;
  for (uint64_t at = thread * 16; at < args.bytes; at += uint64_t{kReadWords} * 16) {
    const Words4 words = load_16(args.data + at);
    seen ^= words.at[0] ^ words.at[1] ^ words.at[2] ^ words.at[3];
  }
  args.out[thread] = seen;
}

}  // namespace

CallStatus set_slot(StreamHandle stream, const SetSlotArgs& args) {
  return OFFSTAGE_LAUNCH("set_slot", set_one_slot, 1, kWarp, stream, args);
}

CallStatus move_words(StreamHandle stream, const MoveWordsArgs& args) {
  return OFFSTAGE_LAUNCH("move_words", move_all_words, blocks_of(args.bytes / 4), kThreads, stream,
                         args);
}

CallStatus read_all(StreamHandle stream, const ReadArgs& args) {
  return OFFSTAGE_LAUNCH("read_all", read_words, kReadWords / kThreads, kThreads, stream, args);
}

CallStatus rms_norm(StreamHandle stream, const RmsNormArgs& args) {
  return OFFSTAGE_LAUNCH("rms_norm", rms_norm_rows, args.n_rows, kThreads, stream, args);
}

CallStatus layer_norm(StreamHandle stream, const LayerNormArgs& args) {
  return OFFSTAGE_LAUNCH("layer_norm", layer_norm_rows, args.n_rows, kThreads, stream, args);
}

CallStatus rope(StreamHandle stream, const RopeArgs& args) {
  const dim3 grid(blocks_of(uint64_t{args.n_heads} * (args.n_rot / 2)), args.n_rows);
  return OFFSTAGE_LAUNCH("rope", rope_rows, grid, kThreads, stream, args);
}

CallStatus activate(StreamHandle stream, const ActivateArgs& args) {
  return OFFSTAGE_LAUNCH("activate", activate_all, blocks_of(args.n), kThreads, stream, args);
}

CallStatus add_scaled(StreamHandle stream, const AddScaledArgs& args) {
  return OFFSTAGE_LAUNCH("add_scaled", add_scaled_all, blocks_of(args.n), kThreads, stream, args);
}

CallStatus combine(StreamHandle stream, const CombineArgs& args) {
  const dim3 grid(blocks_of(args.hidden), args.n_rows);
  return OFFSTAGE_LAUNCH("combine", combine_rows, grid, kThreads, stream, args);
}

}  // namespace offstage::gpu
