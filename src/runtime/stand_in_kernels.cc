#include "runtime/stand_in_kernels.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/checked_math.h"
#include "runtime/router.h"

namespace offstage {
namespace {

constexpr uint64_t kRowAlignment = 64;  // of activations

std::span<const gpu::ExpertJob> jobs_of(const gpu::MatvecArgs& args) {
  CHECK(args.jobs != nullptr && args.slots != nullptr);
  return {args.jobs, args.n_jobs};
}

// out [job's places][n] = bias + matrix · the places' activations. `out` begins at the job's first.
void multiply(const Kernels& kernels, const gpu::MatvecArgs& args, const gpu::ExpertJob& job,
              const std::byte* matrix, const float* bias, float* out) {
  const uint64_t stride = activation_row_bytes(activation_format(args.type), args.k);
  const bool by_rows = args.place_rows != nullptr;
  MatmulArgs matmul;
  matmul.type = args.type;
  matmul.weights = matrix;
  matmul.k = args.k;
  matmul.row_end = args.n;
  matmul.activations = by_rows ? args.activations : args.activations + job.first * stride;
  matmul.token_rows = by_rows ? args.place_rows + job.first : nullptr;
  matmul.n_tokens = job.n;
  matmul.out = out;
  matmul.out_stride = args.n;
  kernels.matmul(matmul);
  for (uint32_t i = 0; bias != nullptr && i < job.n; ++i)
    kernels.add(out + size_t{i} * args.n, bias + size_t{job.expert} * args.n, args.n);
}

// One matrix, or one for each head.
void multiply_heads(const Kernels& kernels, const gpu::MatvecArgs& args) {
  const uint32_t stride = args.out_stride != 0 ? args.out_stride : args.n;
  std::vector<uint32_t> rows(args.n_places);
  for (uint32_t h = 0; h < args.n_heads; ++h) {
    for (uint32_t place = 0; place < args.n_places; ++place) rows[place] = place * args.n_heads + h;
    MatmulArgs matmul;
    matmul.type = args.type;
    matmul.weights = args.matrix + args.offset;
    matmul.k = args.k;
    matmul.row_begin = h * args.n;
    matmul.row_end = matmul.row_begin + args.n;
    matmul.activations = args.activations;
    matmul.token_rows = rows.data();
    matmul.n_tokens = args.n_places;
    matmul.out = args.out + size_t{h} * (stride - args.n);  // it counts rows of the whole matrix
    matmul.out_stride = args.n_heads * stride;
    kernels.matmul(matmul);
    for (uint32_t place = 0; args.bias != nullptr && place < args.n_places; ++place)
      kernels.add(args.out + size_t{rows[place]} * stride, args.bias, args.n);
  }
}

gpu::CallStatus multiply_all(const Kernels& kernels, const gpu::MatvecArgs& args) {
  if (args.slots == nullptr) {
    multiply_heads(kernels, args);
    return {};
  }
  for (const gpu::ExpertJob& job : jobs_of(args)) {
    const std::byte* slot = args.slots[job.expert];
    if (slot == nullptr || job.n == 0) continue;
    multiply(kernels, args, job, slot + args.offset, args.bias,
             args.out + size_t{job.first} * args.n);
  }
  return {};
}

gpu::CallStatus gate_and_up(const Kernels& kernels, const gpu::GateUpArgs& args) {
  const gpu::MatvecArgs& gate = args.gate;
  const auto activate =
      args.activation == gpu::Activation::kSwiglu ? kernels.swiglu : kernels.swiglu_clamped;
  std::vector<float> up;
  for (const gpu::ExpertJob& job : jobs_of(gate)) {
    const std::byte* slot = gate.slots[job.expert];
    if (slot == nullptr || job.n == 0) continue;
    up.resize(size_t{job.n} * gate.n);
    float* out = gate.out + size_t{job.first} * gate.n;
    multiply(kernels, gate, job, slot + gate.offset, gate.bias, out);
    multiply(kernels, gate, job, slot + args.up_offset, args.up_bias, up.data());
    activate(out, up.data(), job.n * gate.n);
  }
  return {};
}

gpu::CallStatus quantise(const Kernels& kernels, const gpu::QuantiseArgs& args) {
  const ActivationFormat format = activation_format(args.weights);
  const uint64_t stride = activation_row_bytes(format, args.k);
  const size_t x_stride = args.x_stride != 0 ? args.x_stride : args.k;
  const uint32_t n_rows = args.count == nullptr ? args.n_rows : std::min(args.n_rows, *args.count);
  for (uint32_t row = 0; row < n_rows; ++row)
    kernels.quantise_activations(format, args.x + row * x_stride, args.k, args.out + row * stride);
  return {};
}

// Rows of floats, one behind the other, as the CPU's kernels want them: each at its alignment.
gpu::CallStatus multiply_floats(const Kernels& kernels, const gpu::FloatMatvecArgs& args) {
  const uint64_t stride = activation_row_bytes(ActivationFormat::kF32, args.k);
  const size_t x_stride = args.x_stride != 0 ? args.x_stride : args.k;
  const uint32_t n_inputs = args.n_rows * args.n_heads;
  std::vector<std::byte> memory(n_inputs * stride + kRowAlignment);
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  std::byte* const rows = memory.data() + (round_up(at, kRowAlignment) - at);
  for (uint32_t r = 0; r < n_inputs; ++r)
    kernels.quantise_activations(ActivationFormat::kF32, args.x + r * x_stride, args.k,
                                 rows + r * stride);
  gpu::MatvecArgs matvec;
  matvec.type = args.type;
  matvec.k = args.k;
  matvec.n = args.n;
  matvec.matrix = args.matrix;
  matvec.n_places = args.n_rows;
  matvec.activations = rows;
  matvec.bias = args.bias;
  matvec.out = args.out;
  matvec.n_heads = args.n_heads;
  matvec.out_stride = args.out_stride;
  multiply_heads(kernels, matvec);
  return {};
}

gpu::CallStatus norm(const Kernels& kernels, const gpu::RmsNormArgs& args) {
  const size_t stride = args.stride != 0 ? args.stride : args.n;
  for (size_t row = 0; row < args.n_rows; ++row)
    kernels.rms_norm(args.x + row * stride, args.weight, args.n, args.eps, args.y + row * stride);
  return {};
}

gpu::CallStatus layer_norm(const Kernels& kernels, const gpu::LayerNormArgs& args) {
  for (size_t row = 0; row < args.n_rows; ++row)
    kernels.layer_norm(args.x + row * args.n, args.weight, args.bias, args.n, args.eps,
                       args.y + row * args.n);
  return {};
}

gpu::CallStatus rotate(const Kernels& kernels, const gpu::RopeArgs& args) {
  for (size_t row = 0; row < args.n_rows; ++row) {
    float* const x = args.x + row * args.n_heads * args.head_dim;
    for (size_t h = 0; args.from != nullptr && h < args.n_heads; ++h)
      std::copy_n(args.from + (row * args.n_heads + h) * args.from_stride, args.n_rot,
                  x + h * args.head_dim);
    kernels.rope(
        {x, args.n_heads, args.head_dim, args.n_rot, args.neox, args.cos_sin + row * args.n_rot});
  }
  return {};
}

KvType kv_type_of(gpu::KvType type) {
  switch (type) {
    case gpu::KvType::kF32: return KvType::kF32;
    case gpu::KvType::kF16: return KvType::kF16;
    case gpu::KvType::kQ8_0: return KvType::kQ8_0;
  }
  return KvType::kF32;
}

gpu::CallStatus store_kv(const Kernels& kernels, const gpu::StoreKvArgs& args) {
  for (size_t row = 0; row < args.n_rows; ++row)
    kernels.store_kv(kv_type_of(args.type), args.x + row * args.n, args.n,
                     args.out[row] + args.offset);
  return {};
}

gpu::CallStatus attend(const Kernels& kernels, const gpu::AttentionArgs& args) {
  const uint32_t group = args.n_heads / args.n_kv_heads;
  for (size_t row = 0; row < args.n_rows; ++row) {
    for (uint32_t head = 0; head < args.n_kv_heads; ++head) {
      const size_t first_head = row * args.n_heads + size_t{head} * group;
      AttentionArgs one;
      one.k_type = kv_type_of(args.k_type);
      one.v_type = kv_type_of(args.v_type);
      one.head_dim_k = args.head_dim_k;
      one.head_dim_v = args.head_dim_v;
      one.n_heads = group;
      one.q = args.q + first_head * args.head_dim_k;
      one.k_blocks = args.rows[row].k_blocks;
      one.v_blocks = args.rows[row].v_blocks;
      one.k_offset = args.k_offset + head * args.k_head_stride;
      one.v_offset = args.v_offset + head * args.v_head_stride;
      one.v_stride = args.v_stride;
      one.first = args.rows[row].first;
      one.last = args.rows[row].last;
      one.scale = args.scale;
      if (args.sinks != nullptr) one.sinks = args.sinks + size_t{head} * group;
      one.out = args.out + first_head * args.head_dim_v;
      kernels.attention(one);
    }
  }
  return {};
}

RouterScore score_of(gpu::RouterScore score) {
  switch (score) {
    case gpu::RouterScore::kSoftmax: return RouterScore::kSoftmax;
    case gpu::RouterScore::kSoftmaxOfChosen: return RouterScore::kSoftmaxOfChosen;
    case gpu::RouterScore::kSigmoid: return RouterScore::kSigmoid;
  }
  return RouterScore::kSoftmax;
}

gpu::CallStatus route(const Kernels& kernels, const gpu::RouteArgs& args) {
  RouterSpec spec;
  spec.n_experts = args.n_experts;
  spec.n_used = args.n_used;
  spec.normalise_weights = args.normalise_weights;
  spec.weights_scale = args.weights_scale;
  spec.score = score_of(args.score);
  spec.n_groups = args.n_groups;
  spec.n_groups_used = args.n_groups_used;
  Router router(spec, kernels, args.n_rows);
  const Routing& routing = router.route(args.logits, args.n_rows, args.selection_bias);
  for (size_t call = 0; call < routing.experts.size(); ++call)
    args.experts[call] = routing.experts[call].value;
  std::copy(routing.weights.begin(), routing.weights.end(), args.weights);
  return {};
}

gpu::CallStatus group(gpu::StreamHandle, const gpu::GroupCallsArgs& args) {
  const uint32_t n_calls = args.n_rows * args.n_used, n_jobs = std::min(args.n_experts, n_calls);
  std::fill_n(args.jobs, n_jobs, gpu::ExpertJob{});
  gpu::ExpertJob* job = args.jobs;
  uint32_t place = 0;
  for (uint32_t e = 0; e < args.n_experts; ++e) {
    const uint32_t first = place;
    if (args.slots != nullptr && args.slots[e] == nullptr) continue;
    for (uint32_t c = 0; c < n_calls; ++c) {
      if (args.experts[c] != e) continue;
      args.place_rows[place] = c / args.n_used;
      if (args.place_of != nullptr) args.place_of[c] = place;
      ++place;
    }
    if (place != first) *job++ = {e, first, place - first};
  }
  if (args.told != nullptr) std::copy_n(args.jobs, n_jobs, args.told);
  if (args.n_places != nullptr) *args.n_places = place;
  return {};
}

gpu::CallStatus activate(const Kernels& kernels, const gpu::ActivateArgs& args) {
  const auto function =
      args.activation == gpu::Activation::kSwiglu ? kernels.swiglu : kernels.swiglu_clamped;
  function(args.gate, args.up, static_cast<uint32_t>(args.n));
  return {};
}

gpu::CallStatus add_scaled(const Kernels& kernels, const gpu::AddScaledArgs& args) {
  kernels.add_scaled(args.x, args.y, args.weight, static_cast<uint32_t>(args.n));
  return {};
}

// The table's form of a function that takes the CPU's kernels.
template <typename Args>
DeviceKernels::Kernel<Args> by(const Kernels& kernels,
                               gpu::CallStatus (*function)(const Kernels&, const Args&)) {
  return
      [&kernels, function](gpu::StreamHandle, const Args& args) { return function(kernels, args); };
}

}  // namespace

DeviceKernels stand_in_kernels(const Kernels& kernels) {
  DeviceKernels table;
  table.activation_row_bytes = [](TensorType weights, uint32_t k) {
    return activation_row_bytes(activation_format(weights), k);
  };
  table.set_slot = [](gpu::StreamHandle, const gpu::SetSlotArgs& args) {
    *args.entry = args.slot;
    return gpu::CallStatus{};
  };
  table.move_words = [](gpu::StreamHandle, const gpu::MoveWordsArgs& args) {
    uint64_t bytes = args.bytes;
    if (args.count != nullptr) bytes = std::min(bytes, *args.count * args.bytes_of_each);
    std::memcpy(args.to, args.from, bytes);
    return gpu::CallStatus{};
  };
  table.quantise_activations = by(kernels, quantise);
  table.expert_gate_up = by(kernels, gate_and_up);
  table.matvec = by(kernels, multiply_all);
  table.float_matvec = by(kernels, multiply_floats);
  table.rms_norm = by(kernels, norm);
  table.layer_norm = by(kernels, layer_norm);
  table.rope = by(kernels, rotate);
  table.store_kv = by(kernels, store_kv);
  table.attention = by(kernels, attend);
  table.add_scaled = by(kernels, add_scaled);
  table.route = by(kernels, route);
  table.activate = by(kernels, activate);
  table.group_calls = group;
  table.matmul = by(kernels, multiply_all);
  return table;
}

}  // namespace offstage
