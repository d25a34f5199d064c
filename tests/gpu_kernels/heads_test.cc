// A matrix for each head, as latent attention has them: what a head's part of a row gives is the
// oracle's, and nothing is written between the heads' outputs.
#include <gtest/gtest.h>

#include <limits>

#include "tests/gpu_kernels/comparison.h"
#include "tests/gpu_kernels/matrices.h"

namespace offstage {
namespace {

using gpu_rig::Array;

constexpr uint32_t kHeads = 3;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct HeadsShape {
  uint32_t k, n, n_rows, x_stride, out_stride;
};

// Inputs, one matrix below the other, and what comes out: NaN where nobody writes.
struct HeadsProblem {
  HeadsProblem(TensorType type_in, const HeadsShape& shape_in, Rng& rng)
      : type(type_in),
        shape(shape_in),
        weights(random_weights(type, Fill::kRandom, shape.k, shape.n * kHeads, rng)),
        x(random_floats(size_t{shape.n_rows} * kHeads * shape.x_stride, rng)) {}

  size_t out_floats() const { return size_t{shape.n_rows} * kHeads * shape.out_stride; }

  std::vector<float> expected() const {
    std::vector<float> out(out_floats(), kNan);
    const uint64_t matrix_bytes = row_bytes(type, shape.k) * shape.n;
    for (uint32_t i = 0; i < shape.n_rows * kHeads; ++i) {
      const auto first = weights.begin() + static_cast<ptrdiff_t>(i % kHeads * matrix_bytes);
      const std::vector<std::byte> of_head(first, first + static_cast<ptrdiff_t>(matrix_bytes));
      const auto at = x.begin() + static_cast<ptrdiff_t>(i * shape.x_stride);
      const auto y = expected_matmul(type, of_head, shape.k, shape.n, {at, at + shape.k});
      std::copy(y.begin(), y.end(), out.begin() + static_cast<ptrdiff_t>(i * shape.out_stride));
    }
    return out;
  }

  std::vector<float> device(bool tiles) const {
    Array<float> rows(x), out(out_floats());
    Array<std::byte> matrix(weights);
    if (!is_quantised(type)) {
      gpu_rig::finish(gpu::float_matvec(
          gpu_rig::stream(), {type, shape.k, shape.n, matrix.at(), rows.at(), shape.n_rows, nullptr,
                              out.at(), kHeads, shape.x_stride, shape.out_stride}));
      return out.take();
    }
    Array<std::byte> forms(gpu::activation_row_bytes(type, shape.k) * shape.n_rows * kHeads);
    gpu_rig::finish(gpu::quantise_activations(
        gpu_rig::stream(),
        {type, rows.at(), shape.n_rows * kHeads, shape.k, forms.at(), shape.x_stride}));
    gpu::MatvecArgs args;
    args.type = type;
    args.k = shape.k;
    args.n = shape.n;
    args.matrix = matrix.at();
    args.n_places = shape.n_rows;
    args.activations = forms.at();
    args.out = out.at();
    args.n_heads = kHeads;
    args.out_stride = shape.out_stride;
    gpu_rig::finish((tiles ? gpu::matmul : gpu::matvec)(gpu_rig::stream(), args));
    return out.take();
  }

  TensorType type;
  HeadsShape shape;
  std::vector<std::byte> weights;
  std::vector<float> x;
};

class DeviceHeads : public Comparison {
 protected:
  void compare(TensorType type, const HeadsShape& shape, bool tiles) {
    const HeadsProblem problem(type, shape, rng_);
    const std::vector<float> expected = problem.expected();
    for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
      gpu_rig::begin_turn(turn);
      expect_same(expected, problem.device(tiles),
                  fmt::format("{}, k {}, {} rows, {}", tensor_type_traits(type).name, shape.k,
                              shape.n_rows, tiles ? "tiles" : "rows"));
    }
  }
};

constexpr TensorType kOf32[] = {TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ5_0,
                                TensorType::kMXFP4};
constexpr TensorType kOf256[] = {TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K};

TEST_F(DeviceHeads, InEveryQuantisedFormat) {
  for (const bool tiles : {false, true}) {
    for (const uint32_t n_rows : {1u, 6u, 33u}) {
      // DeepSeek's head: 128 wide, and 192 to the next one.
      for (const TensorType type : kOf32) {
        compare(type, {128, 66, n_rows, 192, 70}, tiles);
        compare(type, {512, 5, n_rows, 512, 5}, tiles);
      }
      for (const TensorType type : kOf256) compare(type, {512, 66, n_rows, 515, 68}, tiles);
    }
  }
}

TEST_F(DeviceHeads, Unquantised) {
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    for (const uint32_t n_rows : {1u, 5u}) {
      compare(type, {24, 40, n_rows, 32, 48}, false);
      compare(type, {300, 35, n_rows, 300, 35}, false);
    }
  }
}

}  // namespace
}  // namespace offstage
