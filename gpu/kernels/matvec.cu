// Quantised matrices times a few rows, grouped over the experts of a layer; gate and up fused with
// their activation.
//
// A warp computes one row of a matrix, four runs of 256 at a time, eight lanes each. Integer sums
// are exact; the float additions are cpu/README.md's: the run's tree by shuffles among its eight
// lanes, then the four runs ascending into an accumulator that every lane holds alike. Weights pass
// once for kRows rows of activations.
#include "gpu/kernels/dots.cuh"
#include "gpu/kernels/places.cuh"

namespace offstage::gpu {
namespace {

inline constexpr uint32_t kWarps = 4;  // rows of a matrix per block of threads
inline constexpr uint32_t kRunsAtOnce = kWarp / kRunLanes;

// acc[r] = dot(row, x[r]) for formats of 32 elements.
template <typename Dot, int kRows>
OFFSTAGE_DEVICE void dot_rows_32(const std::byte* row, uint32_t k, const Run32* const* x,
                                 float* acc) {
  const uint32_t lane = threadIdx.x % kWarp, b = lane % kRunLanes;
  const uint32_t n_blocks = k / 32, n_runs = (n_blocks + kRunBlocks - 1) / kRunBlocks;
  for (uint32_t first = 0; first < n_runs; first += kRunsAtOnce) {
    const uint32_t run = first + lane / kRunLanes, block = run * kRunBlocks + b;
    const bool inside = block < n_blocks;
    Dot weights = {};
    if (inside) weights.load(row + size_t{block} * Dot::kBlockBytes);
    OFFSTAGE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float f = 0.0f;
      if (inside) f = static_cast<float>(weights.sum(x[r][run], b)) * (weights.d * x[r][run].d[b]);
      // ((f0+f4)+(f2+f6)) + ((f1+f5)+(f3+f7)), on all eight lanes since adding commutes.
      f = f + shuffle_xor(f, 4u);
      f = f + shuffle_xor(f, 2u);
      f = f + shuffle_xor(f, 1u);
      for (uint32_t g = 0; g < kRunsAtOnce; ++g) {
        const float of_run = shuffle(f, g * kRunLanes);
        if (first + g < n_runs) acc[r] = acc[r] + of_run;
      }
    }
  }
}

// The same for superblocks of 256.
template <typename Dot, int kRows>
OFFSTAGE_DEVICE void dot_rows_256(const std::byte* row, uint32_t k, const Run256* const* x,
                                  float* acc) {
  const uint32_t lane = threadIdx.x % kWarp, b = lane % kRunLanes;
  const uint32_t n_runs = k / kRunElements;
  for (uint32_t first = 0; first < n_runs; first += kRunsAtOnce) {
    const uint32_t run = first + lane / kRunLanes;
    const bool inside = run < n_runs;
    Dot weights = {};
    if (inside) weights.load(row + size_t{run} * Dot::kBlockBytes, b);
    OFFSTAGE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      SuperblockSums sums = {};
      if (inside) sums = weights.sums(x[r][run], b);
      float t = weights.d * static_cast<float>(sum_eight(sums.isum));
      if (Dot::kMinima) t = fused(-weights.dmin, static_cast<float>(sum_eight(sums.msum)), t);
      for (uint32_t g = 0; g < kRunsAtOnce; ++g) {
        const float of_run = shuffle(t, g * kRunLanes);
        if (first + g < n_runs) acc[r] = fused(x[r][first + g].d, of_run, acc[r]);
      }
    }
  }
}

template <typename Dot, int kRows>
OFFSTAGE_DEVICE void dot_rows(const std::byte* row, uint32_t k, const typename Dot::Run* const* x,
                              float* acc) {
  OFFSTAGE_UNROLL
  for (int r = 0; r < kRows; ++r) acc[r] = 0.0f;
  if constexpr (Dot::kBlockElements == 32)
    dot_rows_32<Dot, kRows>(row, k, x, acc);
  else
    dot_rows_256<Dot, kRows>(row, k, x, acc);
}

// Activation rows of places first … first + kRows − 1; those beyond `end` are the last one again,
// and their results nobody takes.
template <typename Run, int kRows>
OFFSTAGE_DEVICE void rows_of(const MatvecArgs& args, uint32_t first, uint32_t end,
                             const Run** rows) {
  const size_t n_runs = (args.k + kRunElements - 1) / kRunElements;
  OFFSTAGE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const uint32_t place = first + r < end ? first + r : end - 1;
    rows[r] = reinterpret_cast<const Run*>(args.activations) + row_in(args, place) * n_runs;
  }
}

// Grid: kWarps rows of the matrix, jobs or heads.
template <typename Dot, int kRows>
__global__ void matvec_rows(MatvecArgs args) {
  const ExpertJob job = job_of(args);
  const std::byte* slot = args.slots != nullptr ? args.slots[job.expert] : args.matrix;
  const uint32_t i = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (slot == nullptr || job.n == 0 || i >= args.n) return;
  const size_t row_bytes = args.k / Dot::kBlockElements * size_t{Dot::kBlockBytes};
  const std::byte* row = slot + args.offset + row_bytes * (size_t{head_of(args)} * args.n + i);
  const uint32_t end = job.first + job.n;
  for (uint32_t first = job.first; first < end; first += kRows) {
    const typename Dot::Run* x[kRows];
    float acc[kRows];
    rows_of<typename Dot::Run, kRows>(args, first, end, x);
    dot_rows<Dot, kRows>(row, args.k, x, acc);
    OFFSTAGE_UNROLL
    for (uint32_t r = 0; r < kRows; ++r) {
      if (args.bias != nullptr) acc[r] = acc[r] + args.bias[size_t{job.expert} * args.n + i];
      if (lane == r && first + r < end) row_out(args, first + r)[i] = acc[r];
    }
  }
}

template <typename Dot, int kRows>
__global__ void gate_up_rows(GateUpArgs args) {
  const MatvecArgs& gate = args.gate;
  const ExpertJob job = job_of(gate);
  const std::byte* slot = gate.slots != nullptr ? gate.slots[job.expert] : gate.matrix;
  const uint32_t i = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (slot == nullptr || job.n == 0 || i >= gate.n) return;
  const std::byte* up_slot = gate.slots != nullptr ? slot : args.up_matrix;
  const size_t row_at = gate.k / Dot::kBlockElements * size_t{Dot::kBlockBytes} * i;
  const uint32_t end = job.first + job.n;
  for (uint32_t first = job.first; first < end; first += kRows) {
    const typename Dot::Run* x[kRows];
    float of_gate[kRows], of_up[kRows];
    rows_of<typename Dot::Run, kRows>(gate, first, end, x);
    dot_rows<Dot, kRows>(slot + gate.offset + row_at, gate.k, x, of_gate);
    dot_rows<Dot, kRows>(up_slot + args.up_offset + row_at, gate.k, x, of_up);
    OFFSTAGE_UNROLL
    for (uint32_t r = 0; r < kRows; ++r) {
      const size_t bias_at = size_t{job.expert} * gate.n + i;
      if (gate.bias != nullptr) of_gate[r] = of_gate[r] + gate.bias[bias_at];
      if (args.up_bias != nullptr) of_up[r] = of_up[r] + args.up_bias[bias_at];
      if (lane == r && first + r < end)
        row_out(gate, first + r)[i] = activated(args.activation, of_gate[r], of_up[r]);
    }
  }
}

constexpr CallStatus kNoKernel = {"matvec", "unsupported format",
                                  "has_matvec() says which there are"};

dim3 grid_of(const MatvecArgs& args) {
  return dim3((args.n + kWarps - 1) / kWarps, jobs_or_heads(args));
}

// One row of activations is what decode has; more share the weights four at a time.
template <typename Dot>
CallStatus launch(StreamHandle stream, const MatvecArgs& args) {
  const auto kernel = args.n_places == 1 ? matvec_rows<Dot, 1> : matvec_rows<Dot, 4>;
  return OFFSTAGE_LAUNCH("matvec", kernel, grid_of(args), kWarps * kWarp, stream, args);
}

template <typename Dot>
CallStatus launch(StreamHandle stream, const GateUpArgs& args) {
  const auto kernel = args.gate.n_places == 1 ? gate_up_rows<Dot, 1> : gate_up_rows<Dot, 4>;
  return OFFSTAGE_LAUNCH("expert_gate_up", kernel, grid_of(args.gate), kWarps * kWarp, stream,
                         args);
}

template <typename Args>
CallStatus launch_for(TensorType type, StreamHandle stream, const Args& args) {
  switch (type) {
    case TensorType::kQ8_0: return launch<DotQ8_0>(stream, args);
    case TensorType::kQ4_0: return launch<DotQ4_0>(stream, args);
    case TensorType::kQ5_0: return launch<DotQ5_0>(stream, args);
    case TensorType::kMXFP4: return launch<DotMxfp4>(stream, args);
    case TensorType::kQ4_K: return launch<DotQ4_K>(stream, args);
    case TensorType::kQ5_K: return launch<DotQ5_K>(stream, args);
    case TensorType::kQ6_K: return launch<DotQ6_K>(stream, args);
    default: return kNoKernel;
  }
}

}  // namespace

CallStatus matvec(StreamHandle stream, const MatvecArgs& args) {
  return launch_for(args.type, stream, args);
}

CallStatus expert_gate_up(StreamHandle stream, const GateUpArgs& args) {
  return launch_for(args.gate.type, stream, args);
}

}  // namespace offstage::gpu
