// Speed of the experts' matrices on the first card: eight experts times one row per launch, as a
// decode layer has it, rotated over more memory than any cache holds; GB/s of weights, and per cent
// of what plain loads reach in the same run.
//
//   gpu_matvec_bench [format …]
//
// Every case alternates with the plain loads over the same memory; medians are compared. Some rows
// of every case are held against the scalar oracle.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "cpu/kernels.h"
#include "gpu/device.h"

namespace offstage {
namespace {

constexpr int kPasses = 5;
constexpr uint32_t kUsed = 8;  // experts per launch
constexpr int64_t kPatienceNs = 60'000'000'000;
constexpr uint32_t kCheckedRows = 3;

struct Shape {
  const char* model;
  uint32_t n, k;
};
constexpr Shape kShapes[] = {{"mixtral-8x7b gate", 14336, 4096},
                             {"mixtral-8x7b down", 4096, 14336},
                             {"qwen3-30b-a3b gate", 768, 2048},
                             {"qwen3-30b-a3b down", 2048, 768},
                             {"gpt-oss-20b gate", 2880, 2880}};
constexpr TensorType kTypes[] = {TensorType::kQ4_K, TensorType::kQ6_K, TensorType::kQ5_K,
                                 TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kMXFP4};

template <typename T>
T value_of(Result<T> result) {
  if (result) return std::move(*result);
  fmt::print(stderr, "{}\n", result.error().message);
  std::exit(1);
}
void require(const Status& status) {
  if (status) return;
  fmt::print(stderr, "{}\n", status.error().message);
  std::exit(1);
}

class Bench {
 public:
  Bench(Device& device, uint64_t region_bytes)
      : device_(device),
        region_bytes_(region_bytes),
        region_(value_of(device.allocate(region_bytes))),
        seen_(value_of(device.allocate(uint64_t{gpu::kReadWords} * 4))) {}

  void run(TensorType type, const Shape& shape);

 private:
  // Fills the region with blocks of the format that hold no NaN; a copy of the first matrix.
  std::vector<std::byte> fill(TensorType type, uint64_t matrix_bytes, uint64_t n_matrices);
  std::byte* upload(const void* data, uint64_t bytes);
  double seconds(const std::function<gpu::CallStatus(gpu::StreamHandle)>& work);
  bool same_as_oracle(TensorType type, const Shape& shape, const std::vector<std::byte>& matrix,
                      const std::vector<float>& x, const std::byte* out);

  Device& device_;
  uint64_t region_bytes_;
  std::byte *region_, *seen_;
};

std::byte* Bench::upload(const void* data, uint64_t bytes) {
  std::byte* memory = value_of(device_.allocate(bytes));
  require(
      device_.copy(DeviceStream::kToDevice, memory, static_cast<const std::byte*>(data), bytes));
  require(device_.wait(value_of(device_.mark(DeviceStream::kToDevice)), kPatienceNs));
  return memory;
}

std::vector<std::byte> Bench::fill(TensorType type, uint64_t matrix_bytes, uint64_t n_matrices) {
  Rng rng(1);
  const TensorTypeTraits& traits = tensor_type_traits(type);
  std::vector<std::byte> matrix(matrix_bytes);
  for (std::byte& byte : matrix) byte = static_cast<std::byte>(rng.next_u64());
  constexpr uint16_t kSmall = 0x2000;  // 2⁻⁷ as f16
  for (uint64_t block = 0; block < matrix_bytes; block += traits.block_bytes) {
    const bool q6 = type == TensorType::kQ6_K;
    if (type == TensorType::kMXFP4) {
      matrix[block] = std::byte{120};
      continue;
    }
    std::memcpy(&matrix[block + (q6 ? 208 : 0)], &kSmall, 2);
    if (type == TensorType::kQ4_K || type == TensorType::kQ5_K)
      std::memcpy(&matrix[block + 2], &kSmall, 2);
  }
  for (uint64_t i = 0; i < n_matrices; ++i)
    require(device_.copy(DeviceStream::kToDevice, region_ + i * matrix_bytes, matrix.data(),
                         matrix_bytes));
  require(device_.wait(value_of(device_.mark(DeviceStream::kToDevice)), kPatienceNs));
  return matrix;
}

double Bench::seconds(const std::function<gpu::CallStatus(gpu::StreamHandle)>& work) {
  const SteadyClock clock;
  const int64_t begin_ns = clock.now_ns();
  DeviceWork launched;
  launched.name = "bench";
  launched.launch = work;
  require(device_.launch(std::move(launched)));
  require(device_.wait(value_of(device_.mark(DeviceStream::kCompute)), kPatienceNs));
  return static_cast<double>(clock.now_ns() - begin_ns) * 1e-9;
}

bool Bench::same_as_oracle(TensorType type, const Shape& shape,
                           const std::vector<std::byte>& matrix, const std::vector<float>& x,
                           const std::byte* out) {
  const Kernels& oracle = **kernels_for(Isa::kScalar);
  const ActivationFormat format = activation_format(type);
  std::vector<std::byte> storage(activation_row_bytes(format, shape.k) + 64 + matrix.size() + 64);
  auto aligned = [](std::byte* at) {
    return at + (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
  };
  std::byte* activations = aligned(storage.data());
  std::byte* weights = aligned(activations + activation_row_bytes(format, shape.k));
  std::memcpy(weights, matrix.data(), matrix.size());
  oracle.quantise_activations(format, x.data(), shape.k, activations);
  std::vector<float> expected(shape.n), actual(shape.n);
  MatmulArgs args;
  args.type = type;
  args.weights = weights;
  args.k = shape.k;
  args.row_end = kCheckedRows;
  args.activations = activations;
  args.n_tokens = 1;
  args.out = expected.data();
  args.out_stride = shape.n;
  oracle.matmul(args);
  require(device_.copy(DeviceStream::kToHost, reinterpret_cast<std::byte*>(actual.data()), out,
                       uint64_t{shape.n} * 4));
  require(device_.wait(value_of(device_.mark(DeviceStream::kToHost)), kPatienceNs));
  return std::memcmp(expected.data(), actual.data(), kCheckedRows * sizeof(float)) == 0;
}

void Bench::run(TensorType type, const Shape& shape) {
  if (shape.k % tensor_type_traits(type).block_elements != 0) return;
  const uint64_t matrix_bytes = row_bytes(type, shape.k) * shape.n;  // a multiple of 32 in kShapes
  const auto n_matrices = static_cast<uint32_t>(region_bytes_ / matrix_bytes / kUsed * kUsed);
  const std::vector<std::byte> matrix = fill(type, matrix_bytes, n_matrices);
  std::vector<const std::byte*> slots;
  std::vector<gpu::ExpertJob> jobs;
  for (uint32_t i = 0; i < n_matrices; ++i) {
    slots.push_back(region_ + matrix_bytes * i);
    jobs.push_back({i, i % kUsed, 1});
  }
  Rng rng(2);
  std::vector<float> x(shape.k);
  for (float& value : x) value = static_cast<float>(rng.uniform() - 0.5);
  const std::vector<uint32_t> place_rows(kUsed);  // all row 0
  std::byte* memory[] = {upload(slots.data(), slots.size() * sizeof(slots[0])),
                         upload(jobs.data(), jobs.size() * sizeof(jobs[0])),
                         upload(x.data(), x.size() * sizeof(float)),
                         upload(place_rows.data(), place_rows.size() * sizeof(uint32_t)),
                         value_of(device_.allocate(gpu::activation_row_bytes(type, shape.k))),
                         value_of(device_.allocate(uint64_t{kUsed} * shape.n * sizeof(float)))};
  gpu::QuantiseArgs quantise{type, reinterpret_cast<const float*>(memory[2]), 1, shape.k,
                             memory[4]};
  gpu::MatvecArgs args;
  args.type = type;
  args.k = shape.k;
  args.n = shape.n;
  args.slots = reinterpret_cast<const std::byte* const*>(memory[0]);
  args.n_jobs = kUsed;
  args.activations = memory[4];
  args.place_rows = reinterpret_cast<const uint32_t*>(memory[3]);
  args.out = reinterpret_cast<float*>(memory[5]);
  // As often over the region as makes the clock's grain small.
  const uint64_t rounds = std::max<uint64_t>(1, (uint64_t{16} << 30) / (matrix_bytes * n_matrices));
  const auto matvecs = [&](gpu::StreamHandle stream) {
    gpu::CallStatus status = gpu::quantise_activations(stream, quantise);
    for (uint64_t round = 0; round < rounds; ++round)
      for (uint32_t first = 0; status.ok() && first < n_matrices; first += kUsed) {
        args.jobs = reinterpret_cast<const gpu::ExpertJob*>(memory[1]) + first;
        status = gpu::matvec(stream, args);
      }
    return status;
  };
  const auto reads = [&](gpu::StreamHandle stream) {
    gpu::CallStatus status;
    for (uint64_t round = 0; status.ok() && round < rounds; ++round)
      status = gpu::read_all(stream, {region_, matrix_bytes * n_matrices / 16 * 16,
                                      reinterpret_cast<uint32_t*>(seen_)});
    return status;
  };
  std::vector<double> matvec_s, read_s;
  for (int pass = 0; pass < kPasses; ++pass) {
    read_s.push_back(seconds(reads));
    matvec_s.push_back(seconds(matvecs));
  }
  std::sort(matvec_s.begin(), matvec_s.end());
  std::sort(read_s.begin(), read_s.end());
  const double gigabytes = static_cast<double>(matrix_bytes * n_matrices * rounds) * 1e-9;
  const double launches = static_cast<double>(rounds * n_matrices / kUsed);
  fmt::print("{:<6} {:<20} {:8.1f} GB/s {:5.1f} % of {:.1f}  {:7.2f} us a launch  {}\n",
             tensor_type_traits(type).name, shape.model, gigabytes / matvec_s[kPasses / 2],
             100 * read_s[kPasses / 2] / matvec_s[kPasses / 2], gigabytes / read_s[kPasses / 2],
             matvec_s[kPasses / 2] / launches * 1e6,
             same_as_oracle(type, shape, matrix, x, memory[5]) ? "same bits" : "WRONG BITS");
  for (std::byte* part : memory) device_.release(part);
}

}  // namespace
}  // namespace offstage

int main(int argc, char** argv) {
  using namespace offstage;
  auto opened = open_device(0);
  if (!opened) {
    fmt::print("{}\n", opened.error().message);
    return 0;
  }
  Device& device = **opened;
  const uint64_t region = std::min<uint64_t>(uint64_t{1} << 30, device.facts().memory_bytes / 6);
  fmt::print("{}, {} experts a launch, rotated over {} MiB\n", device.facts().name, kUsed,
             region >> 20);
  Bench bench(device, region / 256 * 256);
  for (const TensorType type : kTypes) {
    const std::string name(tensor_type_traits(type).name);
    if (argc > 1 && std::find(argv + 1, argv + argc, name) == argv + argc) continue;
    for (const Shape& shape : kShapes) bench.run(type, shape);
  }
  return 0;
}
