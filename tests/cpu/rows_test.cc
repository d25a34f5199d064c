// Norms, rotary, activation functions, softmax and exp: bits of the oracle, and its error against
// double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "cpu/exp.h"
#include "cpu_test_data.h"

namespace offstage {
namespace {

constexpr uint32_t kLengths[] = {1, 3, 15, 16, 17, 31, 32, 64, 100, 128, 255, 768, 2048, 2880};

// |a − b| in units of the float spacing at b.
double ulps(float a, double b) {
  if (std::isnan(b)) return std::isnan(a) ? 0 : INFINITY;
  const auto nearest = static_cast<float>(b);
  if (std::isinf(nearest)) return a == nearest ? 0 : INFINITY;
  const double spacing =
      std::max(double{std::nextafter(std::abs(nearest), INFINITY)} - std::abs(nearest), 0x1p-149);
  return std::abs(a - b) / spacing;
}

TEST(Exp, WithinTheStatedErrorOverTheRange) {
  double worst = 0;
  // Every 97th float of [−104, 88.7]: about 11 million of them, in both signs.
  for (float sign : {1.0f, -1.0f}) {
    const uint32_t end = bits_of_float(sign > 0 ? 88.72283f : 104.0f);
    for (uint32_t bits = 0; bits < end; bits += 97) {
      const float x = sign * float_of_bits(bits);
      worst = std::max(worst, ulps(exp_scalar(x), std::exp(double{x})));
    }
  }
  EXPECT_LE(worst, 1.01);
  RecordProperty("worst_ulps", std::to_string(worst));
}

TEST(Exp, Edges) {
  EXPECT_EQ(exp_scalar(0.0f), 1.0f);
  EXPECT_EQ(exp_scalar(-0.0f), 1.0f);
  EXPECT_EQ(bits_of_float(exp_scalar(-INFINITY)), 0u);
  EXPECT_EQ(exp_scalar(INFINITY), INFINITY);
  EXPECT_EQ(exp_scalar(88.73f), INFINITY);
  EXPECT_EQ(bits_of_float(exp_scalar(-104.0f)), 0u);
  EXPECT_EQ(exp_scalar(-103.9f), 0x1p-149f);
  EXPECT_TRUE(std::isnan(exp_scalar(NAN)));
  EXPECT_TRUE(std::isnan(exp_scalar(-NAN)));
}

std::vector<float> hostile_floats(uint32_t n, Rng& rng) {
  constexpr float kEdges[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 88.0f, -88.0f, 104.0f, -104.0f, 1e30f};
  auto x = random_floats(n, rng, 3.0f);
  for (float& v : x)
    if (rng.below(8) == 0) v = kEdges[rng.below(std::size(kEdges))];
  return x;
}

class Rows : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    const auto found = kernels_for(GetParam());
    if (!found) GTEST_SKIP() << found.error().message;
    kernels_ = *found;
    ASSERT_EQ(kernels_->isa, GetParam()) << "another table ran";
    scalar_ = *kernels_for(Isa::kScalar);
  }

  // Runs `call` with both tables on x and compares x.
  void expect_same(const std::vector<float>& x, const char* what,
                   const std::function<void(const Kernels&, float*)>& call) {
    auto expected = x, actual = x;
    call(*scalar_, expected.data());
    call(*kernels_, actual.data());
    std::string difference;
    EXPECT_TRUE(same_bits(expected.data(), actual.data(), x.size(), &difference))
        << what << ", n " << x.size() << ": " << difference;
  }

  const Kernels* kernels_ = nullptr;
  const Kernels* scalar_ = nullptr;
};

TEST_P(Rows, ElementwiseHasTheOraclesBits) {
  for (uint32_t n : kLengths) {
    Rng rng(n);
    for (int round = 0; round < 4; ++round) {
      auto x = hostile_floats(n, rng);
      const auto y = hostile_floats(n, rng);
      if (round == 2) x[n / 2] = NAN;
      if (round == 3) x[n - 1] = -INFINITY;
      expect_same(x, "swiglu", [&](const Kernels& k, float* p) { k.swiglu(p, y.data(), n); });
      expect_same(x, "swiglu_clamped",
                  [&](const Kernels& k, float* p) { k.swiglu_clamped(p, y.data(), n); });
      expect_same(x, "scale", [&](const Kernels& k, float* p) { k.scale(p, 0.3f, n); });
      expect_same(x, "layer_norm", [&](const Kernels& k, float* p) {
        k.layer_norm(p, y.data(), y.data(), n, 1e-5f, p);
      });
      expect_same(x, "sigmoid", [&](const Kernels& k, float* p) { k.sigmoid(p, n); });
      expect_same(x, "softmax", [&](const Kernels& k, float* p) { k.softmax(p, n); });
      expect_same(x, "add", [&](const Kernels& k, float* p) { k.add(p, y.data(), n); });
      expect_same(x, "add_scaled",
                  [&](const Kernels& k, float* p) { k.add_scaled(p, y.data(), 0.3f, n); });
      expect_same(x, "rms_norm",
                  [&](const Kernels& k, float* p) { k.rms_norm(p, y.data(), n, 1e-6f, p); });
    }
  }
}

TEST_P(Rows, SoftmaxNearDouble) {
  for (uint32_t n : kLengths) {
    Rng rng(n);
    const auto x = random_floats(n, rng, 4.0f);
    auto y = x;
    kernels_->softmax(y.data(), n);
    const double max = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (float v : x) sum += std::exp(v - max);
    for (uint32_t i = 0; i < n; ++i) {
      const double expected = std::exp(x[i] - max) / sum;
      // The rounding of x − max is absolute, so exp makes it relative.
      EXPECT_NEAR(y[i], expected, (4e-7 + (max - x[i]) * 0x1p-23) * expected + 1e-38);
    }
  }
}

TEST_P(Rows, NormNearDouble) {
  for (uint32_t n : kLengths) {
    Rng rng(n);
    const auto x = random_floats(n, rng), w = random_floats(n, rng);
    std::vector<float> y(n);
    kernels_->rms_norm(x.data(), w.data(), n, 1e-5f, y.data());
    double sum = 0;
    for (float v : x) sum += double{v} * v;
    for (uint32_t i = 0; i < n; ++i) {
      const double expected = x[i] / std::sqrt(sum / n + 1e-5) * w[i];
      EXPECT_NEAR(y[i], expected, 1e-6 * std::abs(expected) + 1e-30);
    }
  }
}

TEST_P(Rows, LayerNormNearDouble) {
  for (uint32_t n : kLengths) {
    Rng rng(n);
    auto x = random_floats(n, rng);
    for (float& v : x) v += 3.0f;  // a mean to be removed
    const auto w = random_floats(n, rng), b = random_floats(n, rng);
    std::vector<float> y(n);
    kernels_->layer_norm(x.data(), w.data(), b.data(), n, 1e-5f, y.data());
    double mean = 0, squares = 0;
    for (float v : x) mean += double{v} / n;
    for (float v : x) squares += (v - mean) * (v - mean);
    for (uint32_t i = 0; i < n; ++i) {
      const double expected = (x[i] - mean) / std::sqrt(squares / n + 1e-5) * w[i] + b[i];
      EXPECT_NEAR(y[i], expected, 2e-5 * (1 + std::abs(w[i]))) << n;
    }
  }
}

TEST_P(Rows, ClampedSwigluNearDouble) {
  std::vector<float> gate, up, expected;
  for (float g : {-200.0f, -8.0f, -1.0f, 0.0f, 0.5f, 6.9f, 7.1f, 300.0f})
    for (float u : {-300.0f, -7.1f, -6.9f, -1.0f, 0.0f, 2.0f, 7.1f, 300.0f}) {
      gate.push_back(g);
      up.push_back(u);
      const double clamped_g = std::min(g, 7.0f), clamped_u = std::clamp(u, -7.0f, 7.0f);
      expected.push_back(
          static_cast<float>(clamped_g / (1 + std::exp(-1.702 * clamped_g)) * (clamped_u + 1)));
    }
  kernels_->swiglu_clamped(gate.data(), up.data(), static_cast<uint32_t>(gate.size()));
  for (size_t i = 0; i < gate.size(); ++i)
    EXPECT_NEAR(gate[i], expected[i], 3e-6 * std::abs(expected[i])) << i;
}

TEST_P(Rows, RopeHasTheOraclesBitsAndTurns) {
  for (uint32_t n_rot : {2u, 6u, 32u, 34u, 64u, 96u, 128u}) {
    for (bool neox : {true, false}) {
      Rng rng(n_rot);
      constexpr uint32_t kHeads = 3;
      const uint32_t head_dim = n_rot + 10;
      std::vector<float> table(n_rot);
      for (uint32_t i = 0; i < n_rot / 2; ++i) {
        const double angle = rng.uniform() * 6.28;
        table[2 * i] = static_cast<float>(std::cos(angle));
        table[2 * i + 1] = static_cast<float>(std::sin(angle));
      }
      const auto x = random_floats(kHeads * head_dim, rng);
      auto turned = x;
      const auto turn = [&](const Kernels& k, float* p) {
        k.rope({.x = p,
                .n_heads = kHeads,
                .head_dim = head_dim,
                .n_rot = n_rot,
                .neox = neox,
                .cos_sin = table.data()});
      };
      expect_same(x, "rope", turn);
      turn(*kernels_, turned.data());
      for (uint32_t h = 0; h < kHeads; ++h) {
        for (uint32_t i = 0; i < n_rot / 2; ++i) {
          const uint32_t a = h * head_dim + (neox ? i : 2 * i);
          const uint32_t b = neox ? a + n_rot / 2 : a + 1;
          const double c = table[2 * i], s = table[2 * i + 1];
          EXPECT_NEAR(turned[a], x[a] * c - x[b] * s, 1e-5);
          EXPECT_NEAR(turned[b], x[a] * s + x[b] * c, 1e-5);
        }
        for (uint32_t d = n_rot; d < head_dim; ++d)
          EXPECT_EQ(turned[h * head_dim + d], x[h * head_dim + d]);
      }
    }
  }
}

TEST_P(Rows, StoredKeysHaveTheOraclesBits) {
  for (KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    for (uint32_t n : {32u, 64u, 96u, 128u, 576u}) {
      for (float scale : {1.0f, 1e-9f, 1e-38f, 1e5f, 1e9f}) {
        Rng rng(n);
        auto x = random_floats(n, rng, scale);
        if (scale == 1e5f) x[3] = NAN, x[n - 1] = INFINITY;
        AlignedBytes expected(kv_row_bytes(type, n)), actual(kv_row_bytes(type, n));
        scalar_->store_kv(type, x.data(), n, expected.data());
        kernels_->store_kv(type, x.data(), n, actual.data());
        EXPECT_EQ(std::memcmp(expected.data(), actual.data(), actual.size()), 0)
            << "type " << static_cast<int>(type) << ", n " << n << ", scale " << scale;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Rows, testing::ValuesIn(kAllIsas),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

}  // namespace
}  // namespace offstage
