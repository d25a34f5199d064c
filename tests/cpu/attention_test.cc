// Attention: bits of the oracle for every window, head count and storage; the oracle against
// doubles.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "cpu_test_data.h"

namespace offstage {
namespace {

struct Shape {
  uint32_t head_dim_k, head_dim_v, n_heads;
};

// Blocks of 64 positions, filled up to `n_positions`; what lies beyond is NaN, so that a read
// shows.
struct Cache {
  Cache(KvType k_type, KvType v_type, const Shape& shape, uint32_t n_positions, uint64_t seed)
      : rng(seed) {
    const auto* scalar = *kernels_for(Isa::kScalar);
    const uint32_t n_blocks = (n_positions + kKvBlockPositions - 1) / kKvBlockPositions;
    fill(*scalar, k_type, shape.head_dim_k, n_positions, n_blocks, &keys, &k_storage, &k_blocks);
    fill(*scalar, v_type, shape.head_dim_v, n_positions, n_blocks, &values, &v_storage, &v_blocks);
    q = random_floats(size_t{shape.n_heads} * shape.head_dim_k, rng);
  }

  void fill(const Kernels& kernels, KvType type, uint32_t dim, uint32_t n_positions,
            uint32_t n_blocks, std::vector<float>* plain,
            std::vector<std::vector<std::byte>>* bytes, std::vector<const std::byte*>* blocks) {
    const size_t row = kv_row_bytes(type, dim);
    *plain = random_floats(size_t{n_positions} * dim, rng);
    for (uint32_t b = 0; b < n_blocks; ++b) {
      bytes->emplace_back(kOffset + row * kKvBlockPositions, std::byte{0xff});
      for (uint32_t i = 0; i < kKvBlockPositions; ++i) {
        const uint32_t position = b * kKvBlockPositions + i;
        if (position < n_positions)
          kernels.store_kv(type, plain->data() + size_t{position} * dim, dim,
                           bytes->back().data() + kOffset + row * i);
      }
    }
    for (const auto& block : *bytes) blocks->push_back(block.data());
  }

  static constexpr uint64_t kOffset = 64;
  Rng rng;
  std::vector<float> keys, values, q;
  std::vector<std::vector<std::byte>> k_storage, v_storage;
  std::vector<const std::byte*> k_blocks, v_blocks;
};

AttentionArgs args_of(const Cache& cache, KvType k, KvType v, const Shape& shape) {
  AttentionArgs args;
  args.k_type = k;
  args.v_type = v;
  args.head_dim_k = shape.head_dim_k;
  args.head_dim_v = shape.head_dim_v;
  args.n_heads = shape.n_heads;
  args.q = cache.q.data();
  args.k_blocks = cache.k_blocks.data();
  args.v_blocks = cache.v_blocks.data();
  args.k_offset = args.v_offset = Cache::kOffset;
  args.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim_k));
  return args;
}

std::vector<float> attend(const Kernels& kernels, AttentionArgs args) {
  std::vector<float> out(size_t{args.n_heads} * args.head_dim_v, -12345.0f);
  args.out = out.data();
  kernels.attention(args);
  return out;
}

class Attention : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    const auto found = kernels_for(GetParam());
    if (!found) GTEST_SKIP() << found.error().message;
    kernels_ = *found;
    ASSERT_EQ(kernels_->isa, GetParam()) << "another table ran";
    scalar_ = *kernels_for(Isa::kScalar);
  }
  const Kernels* kernels_ = nullptr;
  const Kernels* scalar_ = nullptr;
};

TEST_P(Attention, HasTheOraclesBits) {
  constexpr Shape kShapes[] = {{64, 64, 1},  {128, 128, 8}, {128, 128, 5}, {32, 96, 4},
                               {96, 32, 13}, {160, 128, 2}, {576, 512, 16}};
  constexpr uint32_t kWindows[][2] = {{0, 0},   {0, 1},     {0, 62},   {0, 63},   {0, 64},
                                      {0, 200}, {37, 41},   {63, 64},  {64, 127}, {65, 130},
                                      {1, 191}, {127, 128}, {190, 199}};
  for (KvType k : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    for (KvType v : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
      for (const Shape& shape : kShapes) {
        if (k != v && shape.n_heads != 5) continue;
        const Cache cache(k, v, shape, 201, shape.head_dim_k);
        AttentionArgs args = args_of(cache, k, v, shape);
        for (const auto& window : kWindows) {
          args.first = window[0];
          args.last = window[1];
          const auto expected = attend(*scalar_, args), actual = attend(*kernels_, args);
          std::string difference;
          EXPECT_TRUE(same_bits(expected.data(), actual.data(), actual.size(), &difference))
              << shape.head_dim_k << "×" << shape.n_heads << " [" << args.first << ", " << args.last
              << "]: " << difference;
          EXPECT_FALSE(std::isnan(actual[0])) << "a position outside the window was used";
        }
      }
    }
  }
}

TEST_P(Attention, OddHeadDimensions) {
  for (const Shape& shape : {Shape{40, 24, 3}, Shape{7, 5, 9}, Shape{80, 80, 8}}) {
    const Cache cache(KvType::kF16, KvType::kF32, shape, 100, 3);
    AttentionArgs args = args_of(cache, KvType::kF16, KvType::kF32, shape);
    args.last = 99;
    const auto expected = attend(*scalar_, args), actual = attend(*kernels_, args);
    std::string difference;
    EXPECT_TRUE(same_bits(expected.data(), actual.data(), actual.size(), &difference))
        << difference;
  }
}

// A sink far above, near and far below the scores, of one block and of several.
TEST_P(Attention, SinksHaveTheOraclesBits) {
  for (const Shape& shape : {Shape{64, 64, 1}, Shape{64, 64, 8}, Shape{24, 24, 13}}) {
    const Cache cache(KvType::kF16, KvType::kF16, shape, 201, 9);
    AttentionArgs args = args_of(cache, KvType::kF16, KvType::kF16, shape);
    std::vector<float> sinks;
    for (uint32_t h = 0; h < shape.n_heads; ++h)
      sinks.push_back(std::array{0.5f, -200.0f, 9.0f, 200.0f}[h % 4]);
    args.sinks = sinks.data();
    for (const auto& [first, last] : {std::pair{0u, 0u}, {3u, 60u}, {10u, 199u}}) {
      args.first = first;
      args.last = last;
      const auto expected = attend(*scalar_, args), actual = attend(*kernels_, args);
      std::string difference;
      EXPECT_TRUE(same_bits(expected.data(), actual.data(), actual.size(), &difference))
          << difference;
    }
  }
}

// With one position the softmax is known: weight 1 / (1 + exp(sink − score)).
TEST_P(Attention, ASinkTakesItsShare) {
  const Shape shape{16, 8, 2};
  const Cache cache(KvType::kF32, KvType::kF32, shape, 1, 11);
  AttentionArgs args = args_of(cache, KvType::kF32, KvType::kF32, shape);
  const float sinks[] = {0.75f, -1.5f};
  args.sinks = sinks;
  const auto out = attend(*kernels_, args);
  for (uint32_t h = 0; h < 2; ++h) {
    double score = 0;
    for (uint32_t d = 0; d < 16; ++d) score += double{cache.q[h * 16 + d]} * cache.keys[d];
    const double weight = 1 / (1 + std::exp(sinks[h] - score * args.scale));
    for (uint32_t d = 0; d < 8; ++d)
      EXPECT_NEAR(out[h * 8 + d], weight * cache.values[d], 1e-6) << h;
  }
}

// V as the beginning of the K row (MLA), against the same numbers stored apart; as many heads on
// one row as DeepSeek-V3 has, and a number that no kernel's grouping divides.
TEST_P(Attention, ValuesThatBeginTheKeys) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    for (const Shape& shape : {Shape{96, 64, 128}, Shape{576, 512, 21}}) {
      const Cache cache(type, type, shape, 70, 11);
      AttentionArgs args = args_of(cache, type, type, shape);
      args.first = 2;
      args.last = 69;
      args.v_blocks = args.k_blocks;
      args.v_stride = kv_row_bytes(type, shape.head_dim_k);
      const auto actual = attend(*kernels_, args);

      // The same rows' beginnings, moved to where a V without a stride lies.
      const size_t k_row = args.v_stride, v_row = kv_row_bytes(type, shape.head_dim_v);
      std::vector<std::vector<std::byte>> storage;
      std::vector<const std::byte*> blocks;
      for (const auto& keys : cache.k_storage) {
        auto& values = storage.emplace_back(Cache::kOffset + v_row * kKvBlockPositions);
        for (uint32_t i = 0; i < kKvBlockPositions; ++i)
          std::copy_n(&keys[Cache::kOffset + k_row * i], v_row,
                      &values[Cache::kOffset + v_row * i]);
        blocks.push_back(values.data());
      }
      args.v_blocks = blocks.data();
      args.v_stride = 0;
      const auto expected = attend(*scalar_, args);
      std::string difference;
      EXPECT_TRUE(same_bits(expected.data(), actual.data(), actual.size(), &difference))
          << shape.head_dim_k << "×" << shape.n_heads << ": " << difference;
    }
  }
}

// A head's bits don't depend on the heads beside it.
TEST_P(Attention, HeadsAloneAndTogether) {
  const Shape shape{128, 128, 13};
  const Cache cache(KvType::kF16, KvType::kF16, shape, 150, 5);
  AttentionArgs args = args_of(cache, KvType::kF16, KvType::kF16, shape);
  args.first = 3;
  args.last = 149;
  const auto together = attend(*kernels_, args);
  for (uint32_t h = 0; h < shape.n_heads; ++h) {
    AttentionArgs alone = args;
    alone.n_heads = 1;
    alone.q = args.q + size_t{h} * shape.head_dim_k;
    const auto out = attend(*kernels_, alone);
    std::string difference;
    EXPECT_TRUE(same_bits(together.data() + size_t{h} * shape.head_dim_v, out.data(), out.size(),
                          &difference))
        << "head " << h << ": " << difference;
  }
}

// Rows of consecutive positions have the bits that each has alone: whichever blocks they share,
// with windows that begin within a block, at its beginning, and between the rows.
TEST_P(Attention, RowsAloneAndTogether) {
  constexpr uint32_t kRows = 19, kPositions = 420;
  for (const Shape& shape : {Shape{64, 64, 1}, Shape{40, 24, 3}, Shape{64, 32, 8}}) {
    for (const KvType type : {KvType::kF16, KvType::kF32}) {
      Cache cache(type, type, shape, kPositions, 13);
      // Wider than its heads on both sides, as rows of several kv heads are.
      const uint32_t q_stride = shape.n_heads * shape.head_dim_k + 5;
      const uint32_t out_stride = shape.n_heads * shape.head_dim_v + 3;
      const auto q = random_floats(size_t{kRows} * q_stride, cache.rng);
      std::vector<float> sinks(shape.n_heads, 0.5f);
      AttentionArgs args = args_of(cache, type, type, shape);
      args.q_stride = q_stride;
      args.out_stride = out_stride;
      args.sinks = sinks.data();
      for (const auto& [last, window] : {std::pair{0u, 0u},
                                         {50u, 0u},
                                         {63u, 0u},
                                         {250u, 0u},
                                         {401u, 0u},
                                         {10u, 20u},
                                         {300u, 100u},
                                         {255u, 128u},
                                         {255u, 66u},
                                         {60u, 3u},
                                         {390u, 7u},
                                         {120u, 128u}}) {
        args.last = last;
        args.window = window;
        args.n_rows = kRows;
        args.q = q.data();
        std::vector<float> together(size_t{kRows} * out_stride, -12345.0f);
        args.out = together.data();
        kernels_->attention(args);
        std::vector<float> alone(together.size(), -12345.0f);
        for (uint32_t r = 0; r < kRows; ++r) {
          AttentionArgs one = args;
          one.n_rows = 1;
          one.last = last + r;
          one.window = 0;
          one.first = window == 0 || one.last < window ? 0 : one.last - window + 1;
          one.q = q.data() + size_t{r} * q_stride;
          one.out = alone.data() + size_t{r} * out_stride;
          scalar_->attention(one);
        }
        std::string difference;
        EXPECT_TRUE(same_bits(alone.data(), together.data(), alone.size(), &difference))
            << shape.n_heads << " heads, last " << last << ", window " << window << ": "
            << difference;
      }
    }
  }
}

TEST_P(Attention, NearDoublePrecision) {
  const Shape shape{128, 64, 4};
  const Cache cache(KvType::kF32, KvType::kF32, shape, 300, 7);
  AttentionArgs args = args_of(cache, KvType::kF32, KvType::kF32, shape);
  args.first = 10;
  args.last = 299;
  const auto out = attend(*kernels_, args);
  for (uint32_t h = 0; h < shape.n_heads; ++h) {
    std::vector<double> weight(300);
    double max = -INFINITY, sum = 0;
    for (uint32_t i = args.first; i <= args.last; ++i) {
      double dot = 0;
      for (uint32_t d = 0; d < shape.head_dim_k; ++d)
        dot += double{cache.q[h * shape.head_dim_k + d]} * cache.keys[i * shape.head_dim_k + d];
      weight[i] = dot * args.scale;
      max = std::max(max, weight[i]);
    }
    for (uint32_t i = args.first; i <= args.last; ++i) sum += weight[i] = std::exp(weight[i] - max);
    for (uint32_t d = 0; d < shape.head_dim_v; ++d) {
      double expected = 0, magnitude = 0;
      for (uint32_t i = args.first; i <= args.last; ++i) {
        const double term = weight[i] / sum * cache.values[i * shape.head_dim_v + d];
        expected += term;
        magnitude += std::abs(term);
      }
      // Scores of magnitude ~20 carry an absolute error of ~20 · 2⁻²⁴, which exp turns relative.
      EXPECT_NEAR(out[h * shape.head_dim_v + d], expected, 1e-5 * magnitude + 1e-7);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Attention, testing::ValuesIn(kAllIsas),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

}  // namespace
}  // namespace offstage
