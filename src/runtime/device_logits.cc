#include "runtime/device_logits.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"

namespace offstage {
namespace {

constexpr uint64_t kAlignment = 256;

uint64_t matrix_bytes(const Matrix& w) { return w.rows * row_bytes(w.type, w.k); }

}  // namespace

// Counts with a null base, else says what lies where: one walk, so that the two can't disagree.
uint64_t DeviceLogits::lay_out(const ModelSpec& spec, const DenseWeights& weights,
                               const DeviceKernels& kernels, uint32_t rows, std::byte* base,
                               Work* work) {
  uint64_t end = 0;
  const auto bytes = [&](uint64_t n) {
    const uint64_t at = std::exchange(end, end + round_up(n, kAlignment));
    return base == nullptr ? nullptr : base + at;
  };
  const auto floats = [&](uint64_t n) {
    return reinterpret_cast<float*>(bytes(rows * n * sizeof(float)));
  };
  work->x = floats(spec.hidden);
  work->normed = floats(spec.hidden);
  work->logits = floats(spec.n_vocab);
  // Q8_0's rows are as long as any format's.
  work->forms = bytes(rows * kernels.activation_row_bytes(TensorType::kQ8_0, spec.hidden));
  work->norm = bytes(spec.hidden * sizeof(float));
  if (weights.output_norm_bias != nullptr) work->norm_bias = bytes(spec.hidden * sizeof(float));
  work->matrix = bytes(matrix_bytes(weights.output));
  if (weights.output_bias != nullptr) work->bias = bytes(spec.n_vocab * sizeof(float));
  return end;
}

Result<uint64_t> DeviceLogits::memory_bytes(const ModelSpec& spec, const DenseWeights& weights,
                                            const DeviceKernels& kernels, uint32_t rows_max) {
  const TensorType type = weights.output.type;
  if (is_quantised(type) && !gpu::has_matvec(type))
    return make_error(ErrorCode::kUnsupported, "there is no kernel for matrices in {}",
                      tensor_type_traits(type).name);
  Work work;
  return lay_out(spec, weights, kernels, rows_max, nullptr, &work);
}

Result<std::unique_ptr<DeviceLogits>> DeviceLogits::create(const Parts& parts,
                                                           const Options& options) {
  std::unique_ptr<DeviceLogits> logits(new DeviceLogits(parts, options));
  OFFSTAGE_TRY(logits->memory_bytes_,
               memory_bytes(parts.spec, parts.weights, parts.kernels, options.rows_max));
  OFFSTAGE_TRY_VOID(logits->open());
  return logits;
}

Status DeviceLogits::open() {
  Device& device = parts_.device;
  const DenseWeights& weights = parts_.weights;
  const uint64_t x_bytes =
      round_up(uint64_t{options_.rows_max} * parts_.spec.hidden * sizeof(float), kAlignment);
  OFFSTAGE_TRY(std::byte* const pinned,
               device.allocate_pinned(x_bytes + uint64_t{options_.rows_max} * parts_.spec.n_vocab *
                                                    sizeof(float)));
  Result<std::byte*> memory = device.allocate(memory_bytes_);
  if (!memory) {
    device.release_pinned(pinned);
    return tl::unexpected(std::move(memory).error());
  }
  x_ = reinterpret_cast<float*>(pinned);
  logits_ = reinterpret_cast<float*>(pinned + x_bytes);
  lay_out(parts_.spec, weights, parts_.kernels, options_.rows_max, *memory, &work_);
  const auto upload = [&](std::byte* to, const void* from, uint64_t bytes) -> Status {
    if (from == nullptr) return {};
    return device.copy(DeviceStream::kToDevice, to, static_cast<const std::byte*>(from), bytes);
  };
  const uint64_t norm_bytes = parts_.spec.hidden * sizeof(float);
  OFFSTAGE_TRY_VOID(upload(work_.norm, weights.output_norm, norm_bytes));
  OFFSTAGE_TRY_VOID(upload(work_.norm_bias, weights.output_norm_bias, norm_bytes));
  OFFSTAGE_TRY_VOID(upload(work_.matrix, weights.output.data, matrix_bytes(weights.output)));
  OFFSTAGE_TRY_VOID(upload(work_.bias, weights.output_bias, parts_.spec.n_vocab * sizeof(float)));
  OFFSTAGE_TRY(const DeviceMark there, device.mark(DeviceStream::kToDevice));
  return device.wait(there, options_.deadline_ns);
}

float* DeviceLogits::run(std::span<const float* const> x) {
  if (x.size() > options_.rows_max || is_lost()) return nullptr;
  const CauseScope scope(parts_.timer, Cause::kGpu);
  const auto n_rows = static_cast<uint32_t>(x.size());
  for (uint32_t i = 0; i < n_rows; ++i)
    std::copy_n(x[i], parts_.spec.hidden, x_ + uint64_t{i} * parts_.spec.hidden);
  if (const Status status = launch(n_rows); !status) {
    lose(status.error());
    return nullptr;
  }
  rows_ += n_rows;
  return logits_;
}

Status DeviceLogits::launch(uint32_t n_rows) {
  const ModelSpec& spec = parts_.spec;
  const uint64_t x_bytes = uint64_t{n_rows} * spec.hidden * sizeof(float);
  const uint64_t logits_bytes = uint64_t{n_rows} * spec.n_vocab * sizeof(float);
  OFFSTAGE_TRY_VOID(put("rows", parts_.kernels.move_words,
                        gpu::MoveWordsArgs{reinterpret_cast<const std::byte*>(x_),
                                           reinterpret_cast<std::byte*>(work_.x), x_bytes},
                        0, x_bytes));
  OFFSTAGE_TRY_VOID(norm(n_rows));
  OFFSTAGE_TRY_VOID(multiply(n_rows));
  OFFSTAGE_TRY_VOID(put("hand back", parts_.kernels.move_words,
                        gpu::MoveWordsArgs{reinterpret_cast<const std::byte*>(work_.logits),
                                           reinterpret_cast<std::byte*>(logits_), logits_bytes},
                        0, logits_bytes));
  OFFSTAGE_TRY(const DeviceMark done, parts_.device.mark(DeviceStream::kCompute));
  return parts_.device.wait(done, options_.deadline_ns);
}

Status DeviceLogits::norm(uint32_t n_rows) {
  const ModelSpec& spec = parts_.spec;
  const auto* weight = reinterpret_cast<const float*>(work_.norm);
  const auto* bias = reinterpret_cast<const float*>(work_.norm_bias);
  if (bias != nullptr)
    return put("norm", parts_.kernels.layer_norm,
               gpu::LayerNormArgs{work_.x, weight, bias, n_rows, spec.hidden, spec.norm_eps,
                                  work_.normed});
  return put("norm", parts_.kernels.rms_norm,
             gpu::RmsNormArgs{work_.x, weight, n_rows, spec.hidden, spec.norm_eps, work_.normed});
}

Status DeviceLogits::multiply(uint32_t n_rows) {
  const Matrix& w = parts_.weights.output;
  const auto* bias = reinterpret_cast<const float*>(work_.bias);
  if (!is_quantised(w.type))
    return put("logits", parts_.kernels.float_matvec,
               gpu::FloatMatvecArgs{w.type, w.k, w.rows, work_.matrix, work_.normed, n_rows, bias,
                                    work_.logits},
               matrix_bytes(w));
  OFFSTAGE_TRY_VOID(put("quantise", parts_.kernels.quantise_activations,
                        gpu::QuantiseArgs{w.type, work_.normed, n_rows, w.k, work_.forms}));
  gpu::MatvecArgs args;
  args.type = w.type;
  args.k = w.k;
  args.n = w.rows;
  args.matrix = work_.matrix;
  args.n_places = n_rows;
  args.activations = work_.forms;
  args.bias = bias;
  args.out = work_.logits;
  return put("logits", parts_.kernels.matvec, args, matrix_bytes(w));
}

// No copy ever meets its memory after open(): there is nothing to check for races.
template <typename Args>
Status DeviceLogits::put(std::string_view name, const DeviceKernels::Kernel<Args>& kernel,
                         const Args& args, uint64_t bytes, uint64_t host_bytes) {
  DeviceWork work;
  work.name = name;
  work.bytes = bytes;
  work.host_bytes = host_bytes;
  work.launch = [&kernel, args](gpu::StreamHandle stream) { return kernel(stream, args); };
  return parts_.device.launch(std::move(work));
}

bool DeviceLogits::is_lost() const {
  return (parts_.dense != nullptr && parts_.dense->is_lost()) ||
         (parts_.experts != nullptr && parts_.experts->is_lost());
}

void DeviceLogits::lose(const Error& error) {
  CHECK(parts_.dense != nullptr || parts_.experts != nullptr);
  if (parts_.dense != nullptr) return parts_.dense->lose(error);
  parts_.experts->lose(error);
}

}  // namespace offstage
