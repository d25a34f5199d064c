// Kernels spread over workers: splitting never changes a bit, and a form is made once.
#include "runtime/compute.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/arena.h"
#include "base/check.h"
#include "base/rng.h"

namespace offstage {
namespace {

constexpr uint32_t kK = 256, kRows = 77, kTokens = 5;

struct Aligned {
  explicit Aligned(uint64_t bytes) : arena(*make(bytes)) {}
  static Result<HostArena> make(uint64_t bytes) {
    Notices notices;
    return HostArena::create("test", bytes, notices);
  }
  float* floats() { return reinterpret_cast<float*>(arena.data()); }
  HostArena arena;
};

class ComputeTest : public ::testing::Test {
 protected:
  ComputeTest() : weights_(kRows * kK * sizeof(float)), x_(kTokens * kK * sizeof(float)) {
    Rng rng(1);
    for (uint32_t i = 0; i < kRows * kK; ++i)
      weights_.floats()[i] = static_cast<float>(rng.uniform() - 0.5);
    for (uint32_t i = 0; i < kTokens * kK; ++i)
      x_.floats()[i] = static_cast<float>(rng.uniform() - 0.5);
  }
  Matrix matrix() const { return {TensorType::kF32, weights_.arena.data(), kRows, kK}; }

  Notices notices_;
  Aligned weights_, x_;
  const Kernels& kernels_ = **choose_kernels("");
};

TEST_F(ComputeTest, ThreadsDontChangeABit) {
  std::vector<std::vector<float>> results;
  for (const uint32_t threads : {1u, 2u, 3u}) {
    ThreadPool pool(threads, notices_);
    const Compute compute(kernels_, pool);
    Aligned memory(ActivationCache::memory_bytes(kTokens, kK));
    ActivationCache cache(memory.arena.data(), kTokens, kK);
    cache.reset(x_.floats(), kTokens);
    results.emplace_back(size_t{kTokens} * kRows);
    compute.matmul(matrix(), cache.for_weights(TensorType::kF32, compute), kTokens,
                   results.back().data());
    EXPECT_EQ(std::memcmp(results.back().data(), results.front().data(),
                          results.front().size() * sizeof(float)),
              0)
        << threads;
  }
  // And they are the dot products.
  for (uint32_t t = 0; t < kTokens; ++t)
    for (uint32_t r = 0; r < kRows; ++r) {
      double sum = 0;
      for (uint32_t i = 0; i < kK; ++i)
        sum += static_cast<double>(weights_.floats()[r * kK + i]) *
               static_cast<double>(x_.floats()[t * kK + i]);
      EXPECT_NEAR(results[0][size_t{t} * kRows + r], sum, 1e-4);
    }
}

TEST_F(ComputeTest, NormsEveryRow) {
  ThreadPool pool(2, notices_);
  const Compute compute(kernels_, pool);
  std::vector<float> y(size_t{kTokens} * kK);
  compute.norm({weights_.floats(), nullptr, 1e-5f}, x_.floats(), kTokens, kK, y.data());
  for (uint32_t t = 0; t < kTokens; ++t) {
    std::vector<float> row(kK);
    kernels_.rms_norm(x_.floats() + size_t{t} * kK, weights_.floats(), kK, 1e-5f, row.data());
    EXPECT_EQ(std::memcmp(row.data(), y.data() + size_t{t} * kK, kK * sizeof(float)), 0);
  }
}

TEST_F(ComputeTest, EachFormIsMadeOncePerInput) {
  ThreadPool pool(2, notices_);
  const Compute compute(kernels_, pool);
  Aligned memory(ActivationCache::memory_bytes(kTokens, kK));
  ActivationCache cache(memory.arena.data(), kTokens, kK);
  cache.reset(x_.floats(), kTokens);
  const Activations k_quants = cache.for_weights(TensorType::kQ4_K, compute);
  const Activations blocks = cache.for_weights(TensorType::kQ8_0, compute);
  const Activations floats = cache.for_weights(TensorType::kF16, compute);
  // Apart, so that making one doesn't spoil another.
  EXPECT_NE(k_quants.rows, blocks.rows);
  EXPECT_NE(blocks.rows, floats.rows);
  const std::vector<std::byte> before(
      k_quants.rows, k_quants.rows + kTokens * activation_row_bytes(k_quants.format, kK));
  x_.floats()[3] += 1;
  EXPECT_EQ(cache.for_weights(TensorType::kQ6_K, compute).rows, k_quants.rows);
  EXPECT_EQ(std::memcmp(before.data(), k_quants.rows, before.size()), 0);  // not made again
  cache.reset(x_.floats(), kTokens);
  cache.for_weights(TensorType::kQ6_K, compute);
  EXPECT_NE(std::memcmp(before.data(), k_quants.rows, before.size()), 0);
}

TEST_F(ComputeTest, FormsEqualTheKernelsOwn) {
  ThreadPool pool(2, notices_);
  const Compute compute(kernels_, pool);
  Aligned memory(ActivationCache::memory_bytes(kTokens, kK)), one(1 << 16);
  ActivationCache cache(memory.arena.data(), kTokens, kK);
  cache.reset(x_.floats(), kTokens);
  for (const auto format :
       {ActivationFormat::kF32, ActivationFormat::kQ8_32, ActivationFormat::kQ8_256}) {
    const Activations form = cache.as(format, compute);
    const uint64_t stride = activation_row_bytes(format, kK);
    for (uint32_t t = 0; t < kTokens; ++t) {
      kernels_.quantise_activations(format, x_.floats() + size_t{t} * kK, kK, one.arena.data());
      EXPECT_EQ(std::memcmp(one.arena.data(), form.rows + t * stride, stride), 0);
    }
  }
}

}  // namespace
}  // namespace offstage
