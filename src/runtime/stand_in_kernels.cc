#include "runtime/stand_in_kernels.h"

#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"

namespace offstage {
namespace {

std::span<const gpu::ExpertJob> jobs_of(const gpu::MatvecArgs& args) {
  CHECK(args.jobs != nullptr && args.slots != nullptr);  // experts, the only ones that call
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

gpu::CallStatus multiply_all(const Kernels& kernels, const gpu::MatvecArgs& args) {
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
  for (uint32_t row = 0; row < args.n_rows; ++row)
    kernels.quantise_activations(format, args.x + size_t{row} * args.k, args.k,
                                 args.out + row * stride);
  return {};
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
    std::memcpy(args.to, args.from, args.bytes);
    return gpu::CallStatus{};
  };
  table.quantise_activations = [&kernels](gpu::StreamHandle, const gpu::QuantiseArgs& args) {
    return quantise(kernels, args);
  };
  table.expert_gate_up = [&kernels](gpu::StreamHandle, const gpu::GateUpArgs& args) {
    return gate_and_up(kernels, args);
  };
  table.matvec = [&kernels](gpu::StreamHandle, const gpu::MatvecArgs& args) {
    return multiply_all(kernels, args);
  };
  return table;
}

}  // namespace offstage
