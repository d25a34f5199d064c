// Matrices: every instruction set gives the oracle's bits, whatever the shape, the split and the
// company; the oracle itself is near a double-precision reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/activations.h"
#include "cpu_test_data.h"

namespace offstage {
namespace {

constexpr uint32_t kRowsMax = 37, kTokensMax = 17;

// One matrix, its activations, and out = NaN before every call, so that what isn't written shows.
struct Problem {
  Problem(TensorType type, uint32_t k, Fill fill, uint64_t seed, float scale = 1.0f)
      : rng(seed),
        weights(row_bytes(type, k) * kRowsMax, 32),
        x_bytes(activation_row_bytes(activation_format(type), k)),
        activations(x_bytes * kTokensMax) {
    fill_weights(type, fill, k, kRowsMax, rng, weights.data());
    x = random_floats(size_t{k} * kTokensMax, rng, scale);
    const auto* scalar = *kernels_for(Isa::kScalar);
    for (uint32_t t = 0; t < kTokensMax; ++t)
      scalar->quantise_activations(activation_format(type), x.data() + size_t{k} * t, k,
                                   activations.data() + x_bytes * t);
    args.type = type;
    args.weights = weights.data();
    args.k = k;
    args.row_end = kRowsMax;
    args.activations = activations.data();
    args.n_tokens = kTokensMax;
    args.out_stride = kRowsMax + 3;
  }

  std::vector<float> run(const Kernels& kernels, MatmulArgs with) const {
    std::vector<float> out(size_t{kTokensMax} * with.out_stride, -12345.0f);
    with.out = out.data();
    kernels.matmul(with);
    return out;
  }

  Rng rng;
  AlignedBytes weights;
  uint64_t x_bytes;
  AlignedBytes activations;
  std::vector<float> x;
  MatmulArgs args;
};

std::vector<uint32_t> shapes(TensorType type) {
  switch (tensor_type_traits(type).block_elements) {
    case 1: return {1, 7, 16, 64, 250, 256, 288, 512, 771};
    case 32: return {32, 64, 224, 256, 288, 768, 2880};
    default: return {256, 512, 768, 2048};
  }
}

class Matmul : public testing::TestWithParam<std::tuple<TensorType, Isa>> {
 protected:
  void SetUp() override {
    const auto found = kernels_for(std::get<1>(GetParam()));
    if (!found) GTEST_SKIP() << found.error().message;
    kernels_ = *found;
    ASSERT_EQ(kernels_->isa, std::get<1>(GetParam())) << "another table ran";
    scalar_ = *kernels_for(Isa::kScalar);
  }

  void expect_same(const Problem& problem, const MatmulArgs& args, const char* what) {
    const auto expected = problem.run(*scalar_, args), actual = problem.run(*kernels_, args);
    std::string difference;
    EXPECT_TRUE(same_bits(expected.data(), actual.data(), expected.size(), &difference))
        << what << ", k " << args.k << ", " << args.n_tokens << " tokens, rows " << args.row_begin
        << " to " << args.row_end << ": " << difference;
  }

  TensorType type() const { return std::get<0>(GetParam()); }
  const Kernels* kernels_ = nullptr;
  const Kernels* scalar_ = nullptr;
};

TEST_P(Matmul, EveryFillAndShape) {
  for (Fill fill : kAllFills) {
    for (uint32_t k : shapes(type())) {
      const Problem problem(type(), k, fill, 7 * k + static_cast<uint64_t>(fill));
      for (uint32_t n_tokens : {1u, 8u}) {
        MatmulArgs args = problem.args;
        args.n_tokens = n_tokens;
        expect_same(problem, args, "fill");
      }
    }
  }
}

TEST_P(Matmul, EveryNumberOfTokens) {
  const Problem problem(type(), shapes(type())[4 % shapes(type()).size()], Fill::kRandom, 11);
  for (uint32_t n = 0; n <= kTokensMax; ++n) {
    MatmulArgs args = problem.args;
    args.n_tokens = n;
    expect_same(problem, args, "tokens");
  }
}

TEST_P(Matmul, RowsSplitAnywhere) {
  const Problem problem(type(), shapes(type())[2], Fill::kRandom, 13);
  for (uint32_t n_tokens : {1u, 3u, 9u}) {
    MatmulArgs args = problem.args;
    args.n_tokens = n_tokens;
    const auto whole = problem.run(*kernels_, args);
    for (uint32_t cut = 0; cut <= kRowsMax; ++cut) {
      std::vector<float> out(whole.size(), -12345.0f);
      args.out = out.data();
      args.row_begin = 0;
      args.row_end = cut;
      kernels_->matmul(args);
      args.row_begin = cut;
      args.row_end = kRowsMax;
      kernels_->matmul(args);
      std::string difference;
      EXPECT_TRUE(same_bits(whole.data(), out.data(), out.size(), &difference)) << difference;
    }
  }
}

// Kernels may read a row's end together with what lies behind it.
TEST_P(Matmul, WhatIsWrongWithARowIsItsOwn) {
  constexpr uint32_t kBad = 9;
  for (uint32_t k : shapes(type())) {
    Problem problem(type(), k, Fill::kRandom, 29);
    problem.args.n_tokens = 2;
    const auto before = problem.run(*kernels_, problem.args);
    const uint64_t bytes = row_bytes(type(), k);
    std::memset(problem.weights.data() + bytes * kBad, 0xff, bytes);  // NaNs, where there can be
    const auto after = problem.run(*kernels_, problem.args);
    for (uint32_t t = 0; t < problem.args.n_tokens; ++t) {
      for (uint32_t n = 0; n < kRowsMax; ++n) {
        const size_t at = size_t{t} * problem.args.out_stride + n;
        if (n == kBad) continue;
        EXPECT_EQ(before[at], after[at]) << "k " << k << ", row " << n << ", token " << t;
      }
    }
  }
}

TEST_P(Matmul, TokensAloneAndInCompany) {
  const Problem problem(type(), shapes(type())[3], Fill::kRandom, 17);
  const auto together = problem.run(*kernels_, problem.args);
  for (uint32_t t = 0; t < kTokensMax; ++t) {
    MatmulArgs args = problem.args;
    args.token_rows = &t;
    args.n_tokens = 1;
    const auto alone = problem.run(*kernels_, args);
    std::string difference;
    EXPECT_TRUE(same_bits(together.data() + size_t{t} * args.out_stride, alone.data(), kRowsMax,
                          &difference))
        << difference;
  }
}

TEST_P(Matmul, TokensGathered) {
  const Problem problem(type(), shapes(type())[1], Fill::kRandom, 19);
  const uint32_t rows[] = {16, 0, 3, 3, 9, 1, 12, 5, 5, 2, 7};
  for (uint32_t n = 1; n <= std::size(rows); ++n) {
    MatmulArgs args = problem.args;
    args.token_rows = rows;
    args.n_tokens = n;
    expect_same(problem, args, "gathered");
  }
}

TEST_P(Matmul, ActivationsThatAreNotNumbers) {
  const uint32_t k = shapes(type()).back();
  Problem problem(type(), k, Fill::kRandom, 23);
  const float bad[] = {NAN, INFINITY, -INFINITY, 1e-42f, 0.0f, -0.0f, 3e38f, 1e-31f};
  for (uint32_t t = 0; t < std::size(bad); ++t) {
    if (t >= 4)
      std::fill_n(problem.x.begin() + size_t{k} * t, k, bad[t]);
    else
      problem.x[size_t{k} * t + 5] = bad[t];
    kernels_->quantise_activations(activation_format(type()), problem.x.data() + size_t{k} * t, k,
                                   problem.activations.data() + problem.x_bytes * t);
  }
  expect_same(problem, problem.args, "special activations");
  const auto out = problem.run(*kernels_, problem.args);
  EXPECT_TRUE(std::isnan(out[0])) << "a NaN among the activations must show in the output";
}

// The quantised dot product against doubles over the dequantised weights and activations.
TEST_P(Matmul, NearDoublePrecision) {
  for (uint32_t k : shapes(type())) {
    const Problem problem(type(), k, Fill::kRandom, 29);
    const auto out = problem.run(*kernels_, problem.args);
    std::vector<float> w(k);
    for (uint32_t n = 0; n < kRowsMax; ++n) {
      scalar_->dequantise(type(), problem.weights.data() + row_bytes(type(), k) * n, k, w.data());
      double sum = 0, magnitude = 0, step = 0;
      for (uint32_t i = 0; i < k; ++i) {
        const double product = double{w[i]} * problem.x[i];
        sum += product;
        magnitude += std::abs(product);
        step += std::abs(double{w[i]});
      }
      // Rounding an activation costs at most half a step of its group's amax / 127.
      const float amax =
          std::abs(*std::max_element(problem.x.begin(), problem.x.begin() + k,
                                     [](float a, float b) { return std::abs(a) < std::abs(b); }));
      const double rounding = is_quantised(type()) ? step * amax / 254 : 0;
      EXPECT_NEAR(out[n], sum, rounding + 4e-6 * magnitude + 1e-30) << "row " << n << ", k " << k;
    }
  }
}

TEST_P(Matmul, ActivationRowsAreTheOracles) {
  for (uint32_t k : shapes(type())) {
    Rng rng(k);
    for (float scale : {1.0f, 1e-35f, 1e30f}) {
      const auto x = random_floats(k, rng, scale);
      const auto format = activation_format(type());
      AlignedBytes expected(activation_row_bytes(format, k)), actual(expected.size());
      scalar_->quantise_activations(format, x.data(), k, expected.data());
      kernels_->quantise_activations(format, x.data(), k, actual.data());
      const size_t bytes = format == ActivationFormat::kF32 ? size_t{k} * 4 : expected.size();
      EXPECT_EQ(std::memcmp(expected.data(), actual.data(), bytes), 0) << "k " << k;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Matmul,
                         testing::Combine(testing::ValuesIn(kAllTypes),
                                          testing::ValuesIn(kAllIsas)),
                         [](const auto& info) {
                           return std::string(tensor_type_traits(std::get<0>(info.param)).name) +
                                  "_" + std::string(isa_name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace offstage
