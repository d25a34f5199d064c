// Speed of the matrix kernels: decode (one token, weights streamed from memory) as GB/s and per
// cent of what the same threads can read in the same run, prefill as operations per second.
//
//   kernels_bench [isa] [format …]      OFFSTAGE_BENCH_MIB (256): weights per case, above the L3
//
// Every case alternates with a pass of plain reads over the same memory, because a machine shared
// with others changes from second to second; medians of both are compared. Outputs are checked
// against the scalar oracle on some rows, and hashed.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "base/histogram.h"
#include "base/rng.h"
#include "base/units.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace offstage {
namespace {

constexpr int kPasses = 5;

struct Shape {
  uint32_t n, k;
};
constexpr Shape kShapes[] = {{768, 2048}, {2048, 768}, {2048, 2048}, {151936, 2048}};

constexpr TensorType kTypes[] = {
    TensorType::kQ4_K,   TensorType::kQ6_K,    TensorType::kQ8_0,    TensorType::kMXFP4,
    TensorType::kQ4_0,   TensorType::kQ5_K,    TensorType::kQ5_0,    TensorType::kQ3_K,
    TensorType::kQ2_K,   TensorType::kQ4_1,    TensorType::kQ5_1,    TensorType::kIQ4_NL,
    TensorType::kIQ4_XS, TensorType::kIQ3_S,   TensorType::kIQ3_XXS, TensorType::kIQ2_S,
    TensorType::kIQ2_XS, TensorType::kIQ2_XXS, TensorType::kIQ1_M,   TensorType::kIQ1_S,
    TensorType::kF16,    TensorType::kBF16,    TensorType::kF32};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

uint64_t hash_floats(const float* values, size_t n, uint64_t hash) {
  for (size_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], 4);
    hash = (hash ^ bits) * 0x100000001b3;
  }
  return hash;
}

// Wide plain reads; the compiler's vectors, so that the ceiling owes nothing to our kernels.
typedef uint64_t Wide __attribute__((vector_size(64)));
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
uint64_t
read_all(const std::byte* data, size_t bytes) {
  Wide sums[4] = {};
  for (size_t at = 0; at + 256 <= bytes; at += 256) {
    for (int i = 0; i < 4; ++i) {
      __builtin_prefetch(data + at + 4096 + 64 * i);
      sums[i] += *reinterpret_cast<const Wide*>(data + at + 64 * i);
    }
  }
  const Wide sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  uint64_t total = 0;
  for (int i = 0; i < 8; ++i) total += sum[i];
  return total;
}

// Random blocks with scales of a sane size, repeated over `bytes`.
void fill(TensorType type, std::byte* out, size_t bytes) {
  Rng rng(1);
  const TensorTypeTraits& traits = tensor_type_traits(type);
  const size_t pattern = std::min<size_t>(bytes, size_t{traits.block_bytes} * 4096);
  for (size_t i = 0; i < pattern; ++i) out[i] = static_cast<std::byte>(rng.next_u64());
  const auto set16 = [&](size_t at, uint16_t bits) { std::memcpy(out + at, &bits, 2); };
  for (size_t at = 0; at + traits.block_bytes <= pattern; at += traits.block_bytes) {
    switch (type) {
      case TensorType::kF32: {
        const auto value = static_cast<float>(rng.uniform() - 0.5);
        std::memcpy(out + at, &value, 4);
        break;
      }
      case TensorType::kF16: set16(at, static_cast<uint16_t>(0x2000 + rng.below(0x1800))); break;
      case TensorType::kBF16: set16(at, static_cast<uint16_t>(0x3c00 + rng.below(0x100))); break;
      case TensorType::kMXFP4: out[at] = std::byte{120}; break;
      case TensorType::kQ2_K: set16(at + 80, 0x2400), set16(at + 82, 0x2000); break;
      case TensorType::kQ3_K: set16(at + 108, 0x2400); break;
      case TensorType::kQ6_K: set16(at + 208, 0x2000); break;
      case TensorType::kIQ1_M: set16(at + 54, 0x2000); break;  // d's high nibble
      case TensorType::kQ4_1:
      case TensorType::kQ5_1:
      case TensorType::kQ4_K:
      case TensorType::kQ5_K: set16(at + 2, 0x2000); [[fallthrough]];
      default: set16(at, 0x2400);
    }
  }
  for (size_t at = pattern; at < bytes; at += pattern)
    std::memcpy(out + at, out, std::min(pattern, bytes - at));
}

struct Bench {
  const Kernels* kernels;
  const Kernels* scalar;
  HostArena arena;
  SteadyClock clock;
  uint64_t read_sum = 0;

  double seconds_since(int64_t start) const {
    return static_cast<double>(clock.now_ns() - start) * 1e-9;
  }

  // Plain reads of one piece by all threads, in the chunks that a matrix of `rows` rows is split
  // into.
  void read_piece(ThreadPool& pool, const std::byte* data, size_t bytes, uint32_t rows) {
    std::vector<uint64_t> sums(pool.size());
    const size_t row = bytes / rows;
    pool.parallel_for(rows, 16, [&](uint32_t begin, uint32_t end, uint32_t worker) {
      sums[worker] += read_all(data + row * begin, row * (end - begin));
    });
    for (uint64_t sum : sums) read_sum += sum;  // printed, so the reads are not left out
  }

  std::vector<std::byte> activations(TensorType type, uint32_t k, uint32_t tokens,
                                     std::byte** aligned) {
    const auto format = activation_format(type);
    const size_t row = activation_row_bytes(format, k);
    std::vector<std::byte> storage(row * tokens + 64);
    *aligned = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
    Rng rng(k);
    std::vector<float> x(k);
    for (uint32_t t = 0; t < tokens; ++t) {
      for (float& v : x) v = static_cast<float>(rng.uniform() + rng.uniform() - 1.0);
      kernels->quantise_activations(format, x.data(), k, *aligned + row * t);
    }
    return storage;
  }

  bool matches_oracle(MatmulArgs args) const {
    std::vector<float> expected(args.out_stride);
    const float* actual = args.out;
    args.n_tokens = 1;
    args.row_begin = args.row_end - 9;
    args.out = expected.data();
    scalar->matmul(args);
    return std::memcmp(expected.data() + args.row_begin, actual + args.row_begin, 9 * 4) == 0;
  }

  void decode(TensorType type, const Shape& shape, ThreadPool& pool);
  void prefill(TensorType type, const Shape& shape, uint32_t tokens, ThreadPool& pool);
};

void Bench::decode(TensorType type, const Shape& shape, ThreadPool& pool) {
  const size_t matrix_bytes = row_bytes(type, shape.k) * shape.n;
  const size_t stride = (matrix_bytes + 4095) / 4096 * 4096;
  const size_t n_matrices = arena.size_bytes() / stride;
  if (n_matrices == 0) return;
  std::byte* x;
  const auto storage = activations(type, shape.k, 1, &x);
  std::vector<float> out(shape.n);
  MatmulArgs args;
  args.type = type;
  args.k = shape.k;
  args.activations = x;
  args.n_tokens = 1;
  args.out = out.data();
  args.out_stride = shape.n;
  Samples kernel_ns(100'000), read_ns(100'000);
  uint64_t hash = 0xcbf29ce484222325;
  for (int pass = 0; pass < kPasses; ++pass) {
    for (size_t m = 0; m < n_matrices; ++m) {
      const int64_t start = clock.now_ns();
      // From half the arena away, so that neither finds the other's bytes in a cache.
      read_piece(pool, arena.data() + stride * ((m + n_matrices / 2) % n_matrices), matrix_bytes,
                 shape.n);
      const int64_t middle = clock.now_ns();
      args.weights = arena.data() + stride * m;
      pool.parallel_for(shape.n, 16, [&](uint32_t begin, uint32_t end, uint32_t) {
        MatmulArgs part = args;
        part.row_begin = begin;
        part.row_end = end;
        kernels->matmul(part);
      });
      kernel_ns.add(clock.now_ns() - middle);
      read_ns.add(middle - start);
    }
    hash = hash_floats(out.data(), out.size(), hash);
  }
  args.row_end = shape.n;
  const auto gb_s = [&](double ns) { return static_cast<double>(matrix_bytes) / ns; };
  const double kernel = gb_s(static_cast<double>(kernel_ns.percentile(50)));
  const double read = gb_s(static_cast<double>(read_ns.percentile(50)));
  const double mean_ratio =
      static_cast<double>(read_ns.sum()) / static_cast<double>(kernel_ns.sum());
  fmt::print(
      "{:6} {:6}×{:<4} {:2} thr  {:6.2f} GB/s  {:5.1f} % of {:5.2f} (means {:5.1f} %)  {:>8} "
      "{:>8} {:>8}  {:016x}{}\n",
      tensor_type_traits(type).name, shape.n, shape.k, pool.size(), kernel, 100 * kernel / read,
      read, 100 * mean_ratio, format_duration_ns(kernel_ns.percentile(50)),
      format_duration_ns(kernel_ns.percentile(99)), format_duration_ns(kernel_ns.max()), hash,
      matches_oracle(args) ? "" : "  NOT THE ORACLE'S BITS");
}

void Bench::prefill(TensorType type, const Shape& shape, uint32_t tokens, ThreadPool& pool) {
  const size_t matrix_bytes = row_bytes(type, shape.k) * shape.n;
  const size_t stride = (matrix_bytes + 4095) / 4096 * 4096;
  const size_t n_matrices =
      std::min(std::clamp<size_t>(1024 / tokens, 2, 32), arena.size_bytes() / stride);
  if (n_matrices == 0) return;
  std::byte* x;
  const auto storage = activations(type, shape.k, tokens, &x);
  std::vector<float> out(size_t{tokens} * shape.n);
  MatmulArgs args;
  args.type = type;
  args.k = shape.k;
  args.activations = x;
  args.n_tokens = tokens;
  args.out = out.data();
  args.out_stride = shape.n;
  std::vector<double> seconds;
  for (int round = 0; round < 3; ++round) {
    for (size_t m = 0; m < n_matrices; ++m) {
      const int64_t start = clock.now_ns();
      args.weights = arena.data() + stride * m;
      pool.parallel_for(shape.n, 16, [&](uint32_t begin, uint32_t end, uint32_t) {
        MatmulArgs part = args;
        part.row_begin = begin;
        part.row_end = end;
        kernels->matmul(part);
      });
      seconds.push_back(seconds_since(start));
    }
  }
  args.row_end = shape.n;
  const double operations = 2.0 * shape.n * shape.k * tokens;
  const double best = *std::min_element(seconds.begin(), seconds.end());
  fmt::print(
      "{:6} {:6}×{:<4} {:2} thr  {:4} tokens  {:7.1f} Gop/s median  {:7.1f} best  {:016x}{}\n",
      tensor_type_traits(type).name, shape.n, shape.k, pool.size(), tokens,
      operations / median(seconds) * 1e-9, operations / best * 1e-9,
      hash_floats(out.data(), out.size(), 0xcbf29ce484222325),
      matches_oracle(args) ? "" : "  NOT THE ORACLE'S BITS");
}

int run(int argc, char** argv) {
  Notices notices;
  const auto kernels = choose_kernels(argc > 1 ? argv[1] : "");
  if (!kernels) {
    fmt::print(stderr, "{}\n", kernels.error().message);
    return 1;
  }
  const char* mib = std::getenv("OFFSTAGE_BENCH_MIB");
  const uint64_t bytes = std::strtoull(mib != nullptr ? mib : "256", nullptr, 10) << 20;
  auto arena = HostArena::create("benchmark weights", bytes, notices);
  if (!arena || !arena->populate()) return 1;
  Bench bench{*kernels, *kernels_for(Isa::kScalar), std::move(*arena), {}};
  fmt::print("isa {}, {} of weights, {} passes, each matrix after a plain read of as much\n",
             isa_name((*kernels)->isa), format_bytes(bytes), kPasses);
  for (TensorType type : kTypes) {
    bool wanted = argc <= 2;
    for (int i = 2; i < argc; ++i) wanted |= tensor_type_traits(type).name == argv[i];
    if (!wanted) continue;
    fill(type, bench.arena.data(), bench.arena.size_bytes());
    for (uint32_t threads : {1u, 2u}) {
      ThreadPool pool(threads, notices);
      for (const Shape& shape : kShapes) bench.decode(type, shape, pool);
      for (uint32_t tokens : {2u, 4u, 8u, 64u, 512u}) bench.prefill(type, kShapes[0], tokens, pool);
    }
  }
  fmt::print("reads {:016x}\n", bench.read_sum);
  for (const Notice& notice : notices.list()) fmt::print("{}: {}\n", notice.subject, notice.text);
  return 0;
}

}  // namespace
}  // namespace offstage

int main(int argc, char** argv) { return offstage::run(argc, argv); }
