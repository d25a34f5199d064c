// Matrices on the device: the oracle's bits, whatever the format, the shape, the company.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "cpu/activations.h"
#include "gpu/kernels/activations.h"
#include "tests/gpu_kernels/comparison.h"
#include "tests/gpu_kernels/matrices.h"

namespace offstage {
namespace {

using gpu_rig::Array;

constexpr TensorType kFormats[] = {TensorType::kQ8_0,  TensorType::kQ4_0, TensorType::kQ5_0,
                                   TensorType::kMXFP4, TensorType::kQ4_K, TensorType::kQ5_K,
                                   TensorType::kQ6_K};

class DeviceMatvec : public testing::TestWithParam<TensorType> {
 protected:
  void SetUp() override {
    if (*gpu_rig::why_not() != 0) GTEST_SKIP() << gpu_rig::why_not();
  }
  TensorType type() const { return GetParam(); }
  bool superblocks() const { return tensor_type_traits(type()).block_elements == 256; }
};

INSTANTIATE_TEST_SUITE_P(Formats, DeviceMatvec, testing::ValuesIn(kFormats), [](const auto& name) {
  return std::string(tensor_type_traits(name.param).name);
});

// Quantised, then multiplied.
using Multiply = gpu::CallStatus (*)(gpu::StreamHandle, const gpu::MatvecArgs&);
std::vector<float> device_matvec(TensorType type, const std::vector<std::byte>& weights, uint32_t k,
                                 uint32_t n, const std::vector<float>& x,
                                 Multiply multiply = gpu::matvec) {
  const auto n_rows = static_cast<uint32_t>(x.size() / k);
  Array<float> rows(x), out(size_t{n_rows} * n);
  Array<std::byte> matrix(weights), activations(gpu::activation_row_bytes(type, k) * n_rows);
  gpu::QuantiseArgs quantise;
  quantise.weights = type;
  quantise.x = rows.at();
  quantise.n_rows = n_rows;
  quantise.k = k;
  quantise.out = activations.at();
  gpu_rig::finish(gpu::quantise_activations(gpu_rig::stream(), quantise));
  gpu::MatvecArgs args;
  args.type = type;
  args.k = k;
  args.n = n;
  args.matrix = matrix.at();
  args.n_places = n_rows;
  args.activations = activations.at();
  args.out = out.at();
  gpu_rig::finish(multiply(gpu_rig::stream(), args));
  return out.take();
}

TEST_P(DeviceMatvec, GivesTheOraclesBitsInEveryShape) {
  const std::vector<uint32_t> widths =
      superblocks() ? std::vector<uint32_t>{256, 768, 1280} : std::vector<uint32_t>{32, 288, 1312};
  for (const Fill fill : kAllFills) {
    for (const uint32_t k : widths) {
      for (const uint32_t n_rows : {1u, 6u}) {
        Rng rng(k + n_rows);
        const uint32_t n = 5;  // not whole blocks of threads
        const auto weights = random_weights(type(), fill, k, n, rng);
        const auto x = random_floats(size_t{k} * n_rows, rng);
        const auto expected = expected_matmul(type(), weights, k, n, x);
        for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
          gpu_rig::begin_turn(turn);
          expect_same(expected, device_matvec(type(), weights, k, n, x),
                      fmt::format("k {}, {} rows, fill {}, turn {}", k, n_rows,
                                  static_cast<int>(fill), turn));
        }
      }
    }
  }
}

// Several tiles each way, the last ones not whole, and a short last run.
TEST_P(DeviceMatvec, TilesGiveTheSameBits) {
  const uint32_t k = superblocks() ? 512 : 544, n = 66, n_places = 33;
  for (const Fill fill : {Fill::kRandom, Fill::kWildScales}) {
    Rng rng(3);
    const auto weights = random_weights(type(), fill, k, n, rng);
    const auto x = random_floats(size_t{k} * n_places, rng);
    gpu_rig::begin_turn(fill == Fill::kRandom ? 0 : gpu_rig::n_turns() - 1);
    expect_same(expected_matmul(type(), weights, k, n, x),
                device_matvec(type(), weights, k, n, x, gpu::matmul), "tiles");
  }
}

// A NaN or an Inf makes the whole output NaN; tiny groups are zeros; outliers take the scale.
TEST_P(DeviceMatvec, QuantisesHostileActivationsAsTheOracle) {
  const uint32_t k = 512, n = 4;
  Rng rng(7);
  const auto weights = random_weights(type(), Fill::kRandom, k, n, rng);
  const float hostile[] = {std::numeric_limits<float>::quiet_NaN(),
                           std::numeric_limits<float>::infinity(), 3e38f, 1e-45f, -0.0f};
  for (const float value : hostile) {
    auto x = random_floats(k, rng);
    x[300] = value;
    expect_same(expected_matmul(type(), weights, k, n, x), device_matvec(type(), weights, k, n, x),
                fmt::format("{} at 300", value));
    std::fill(x.begin(), x.end(), value);
    expect_same(expected_matmul(type(), weights, k, n, x), device_matvec(type(), weights, k, n, x),
                fmt::format("all {}", value));
  }
}

// The int8 rows themselves, so that a difference that the weights hide shows.
TEST_P(DeviceMatvec, QuantisedRowsAreTheOracles) {
  const uint32_t k = superblocks() ? 512 : 544;
  Rng rng(11);
  const auto x = random_floats(k, rng);
  AlignedBytes expected(activation_row_bytes(activation_format(type()), k));
  oracle().quantise_activations(activation_format(type()), x.data(), k, expected.data());
  Array<float> rows(x);
  Array<std::byte> out(gpu::activation_row_bytes(type(), k));
  gpu::QuantiseArgs args;
  args.weights = type();
  args.x = rows.at();
  args.n_rows = 1;
  args.k = k;
  args.out = out.at();
  gpu_rig::finish(gpu::quantise_activations(gpu_rig::stream(), args));
  const auto bytes = out.take();
  for (uint32_t i = 0; i < k; ++i) {
    const uint32_t run = i / 256, b = i % 256 / 32;
    int8_t q, expected_q;
    if (superblocks()) {
      q = reinterpret_cast<const gpu::Run256*>(bytes.data())[run].q[i % 256];
      expected_q = reinterpret_cast<const ActivationRun256*>(expected.data())[run].q[i % 256];
    } else {
      q = reinterpret_cast<const gpu::Run32*>(bytes.data())[run].q[i % 256];
      const uint32_t at = ((2 * (b / 4) + i % 32 / 16) * 4 + b % 4) * 16 + i % 16;
      expected_q = reinterpret_cast<const ActivationRun32*>(expected.data())[run].q[at];
    }
    ASSERT_EQ(q, expected_q) << "element " << i;
  }
}

struct ExpertShape {
  uint32_t hidden = 512, ffn = 256, n_experts = 5, n_rows = 3, n_used = 2;
};

// Three experts' FFNs over a table of slots; expert 3 isn't resident, and its places are left
// alone.
class ExpertRig {
 public:
  ExpertRig(TensorType type, const ExpertShape& shape)
      : type_(type), shape_(shape), rng_(static_cast<uint32_t>(type)) {
    matrix_bytes_ = row_bytes(type, shape.hidden) * shape.ffn;
    for (uint32_t e = 0; e < shape.n_experts; ++e) {
      for (auto* matrices : {&gates_, &ups_, &downs_})
        matrices->push_back(random_weights(type, Fill::kRandom,
                                           matrices == &downs_ ? shape.ffn : shape.hidden,
                                           matrices == &downs_ ? shape.hidden : shape.ffn, rng_));
      auto slot = gates_[e];  // gate, up, down behind each other, at multiples of 32
      slot.resize(padded());
      slot.insert(slot.end(), ups_[e].begin(), ups_[e].end());
      slot.resize(2 * padded());
      slot.insert(slot.end(), downs_[e].begin(), downs_[e].end());
      slots_.push_back(std::make_unique<Array<std::byte>>(slot));
    }
    x_ = random_floats(size_t{shape.n_rows} * shape.hidden, rng_);
    bias_ = random_floats(size_t{shape.n_experts} * shape.ffn, rng_);
  }

  size_t padded() const { return (matrix_bytes_ + 31) / 32 * 32; }
  static constexpr uint32_t kAbsent = 3;

  std::vector<const std::byte*> table() {
    std::vector<const std::byte*> table;
    for (uint32_t e = 0; e < shape_.n_experts; ++e)
      table.push_back(e == kAbsent ? nullptr : slots_[e]->at());
    return table;
  }

  // By place: down · activation(gate · x + bias, up · x), in the oracle's bits.
  std::vector<float> expected_place(uint32_t expert, uint32_t row) const {
    const std::vector<float> x(x_.begin() + row * shape_.hidden,
                               x_.begin() + (row + 1) * shape_.hidden);
    auto gate = expected_matmul(type_, gates_[expert], shape_.hidden, shape_.ffn, x);
    const auto up = expected_matmul(type_, ups_[expert], shape_.hidden, shape_.ffn, x);
    oracle().add(gate.data(), bias_.data() + size_t{expert} * shape_.ffn, shape_.ffn);
    oracle().swiglu(gate.data(), up.data(), shape_.ffn);
    return expected_matmul(type_, downs_[expert], shape_.ffn, shape_.hidden, gate);
  }

  // The device's, [calls][hidden]; NaN where nobody wrote.
  std::vector<float> run(const std::vector<uint32_t>& experts, bool tiles,
                         std::vector<uint32_t>* place_of) {
    const auto n_calls = static_cast<uint32_t>(experts.size());
    Array<uint32_t> called(experts), place_rows(n_calls), places(n_calls);
    Array<gpu::ExpertJob> jobs(std::min(n_calls, shape_.n_experts));
    gpu::GroupCallsArgs group;
    group.experts = called.at();
    group.n_rows = shape_.n_rows;
    group.n_used = shape_.n_used;
    group.n_experts = shape_.n_experts;
    group.jobs = jobs.at();
    group.place_rows = place_rows.at();
    group.place_of = places.at();
    gpu_rig::finish(gpu::group_calls(gpu_rig::stream(), group));
    *place_of = places.take();

    Array<const std::byte*> slots(table());
    Array<float> x(x_), hidden(size_t{n_calls} * shape_.ffn), bias(bias_);
    Array<float> out(size_t{n_calls} * shape_.hidden);
    Array<std::byte> input(gpu::activation_row_bytes(type_, shape_.hidden) * shape_.n_rows);
    Array<std::byte> middle(gpu::activation_row_bytes(type_, shape_.ffn) * n_calls);
    quantise(x.at(), shape_.n_rows, shape_.hidden, input.at());
    gpu::MatvecArgs gate =
        matvec_of(slots, jobs, shape_.hidden, shape_.ffn, input.at(), hidden.at());
    gate.place_rows = place_rows.at();
    gate.bias = bias.at();
    gpu::MatvecArgs down = matvec_of(slots, jobs, shape_.ffn, shape_.hidden, middle.at(), out.at());
    down.offset = 2 * padded();
    if (tiles) {
      Array<float> up_out(hidden.size());
      gpu::MatvecArgs up = gate;
      up.offset = padded();
      up.bias = nullptr;
      up.out = up_out.at();
      gpu_rig::finish(gpu::matmul(gpu_rig::stream(), gate));
      gpu_rig::finish(gpu::matmul(gpu_rig::stream(), up));
      gpu_rig::finish(gpu::activate(
          gpu_rig::stream(), {gpu::Activation::kSwiglu, hidden.at(), up_out.at(), hidden.size()}));
    } else {
      gpu::GateUpArgs gate_up;
      gate_up.gate = gate;
      gate_up.up_offset = padded();
      gpu_rig::finish(gpu::expert_gate_up(gpu_rig::stream(), gate_up));
    }
    quantise(hidden.at(), n_calls, shape_.ffn, middle.at());
    gpu_rig::finish((tiles ? gpu::matmul : gpu::matvec)(gpu_rig::stream(), down));
    return out.take();
  }

 private:
  void quantise(const float* x, uint32_t n_rows, uint32_t k, std::byte* out) const {
    gpu::QuantiseArgs args;
    args.weights = type_;
    args.x = x;
    args.n_rows = n_rows;
    args.k = k;
    args.out = out;
    gpu_rig::finish(gpu::quantise_activations(gpu_rig::stream(), args));
  }

  gpu::MatvecArgs matvec_of(Array<const std::byte*>& slots, Array<gpu::ExpertJob>& jobs, uint32_t k,
                            uint32_t n, const std::byte* activations, float* out) const {
    gpu::MatvecArgs args;
    args.type = type_;
    args.k = k;
    args.n = n;
    args.slots = slots.at();
    args.jobs = jobs.at();
    args.n_jobs = static_cast<uint32_t>(jobs.size());
    args.n_places = shape_.n_rows;
    args.activations = activations;
    args.out = out;
    return args;
  }

  TensorType type_;
  ExpertShape shape_;
  Rng rng_;
  size_t matrix_bytes_;
  std::vector<std::vector<std::byte>> gates_, ups_, downs_;  // by expert
  std::vector<std::unique_ptr<Array<std::byte>>> slots_;
  std::vector<float> x_, bias_;
};

TEST_P(DeviceMatvec, ExpertsOfALayerComputeFromTheirSlots) {
  const ExpertShape shape;
  ExpertRig rig(type(), shape);
  const std::vector<uint32_t> experts = {4, 1, 1, 3, 0, 4};  // [3][2]
  for (const bool tiles : {false, true}) {
    gpu_rig::begin_turn(tiles ? 0 : gpu_rig::n_turns() - 1);
    std::vector<uint32_t> place_of;
    const std::vector<float> out = rig.run(experts, tiles, &place_of);
    EXPECT_EQ(place_of, (std::vector<uint32_t>{4, 1, 2, 3, 0, 5}));
    for (uint32_t call = 0; call < experts.size(); ++call) {
      const float* actual = out.data() + size_t{place_of[call]} * shape.hidden;
      const std::vector<float> of_call(actual, actual + shape.hidden);
      if (experts[call] == ExpertRig::kAbsent) {
        EXPECT_TRUE(std::all_of(of_call.begin(), of_call.end(), [](float y) { return y != y; }));
        continue;
      }
      expect_same(rig.expected_place(experts[call], call / shape.n_used), of_call,
                  fmt::format("call {}, {}", call, tiles ? "tiles" : "rows"));
    }
  }
}

TEST(DeviceFloatMatvec, GivesTheOraclesBitsInEveryShape) {
  if (*gpu_rig::why_not() != 0) GTEST_SKIP() << gpu_rig::why_not();
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    for (const uint32_t k : {7u, 250u, 771u, 1536u}) {
      Rng rng(k);
      const uint32_t n = 37, n_rows = 2;
      const auto weights = random_weights(type, Fill::kRandom, k, n, rng);
      const auto x = random_floats(size_t{k} * n_rows, rng);
      Array<float> rows(x), out(size_t{n} * n_rows);
      Array<std::byte> matrix(weights);
      gpu::FloatMatvecArgs args;
      args.type = type;
      args.k = k;
      args.n = n;
      args.matrix = matrix.at();
      args.x = rows.at();
      args.n_rows = n_rows;
      args.out = out.at();
      for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
        gpu_rig::begin_turn(turn);
        gpu_rig::finish(gpu::float_matvec(gpu_rig::stream(), args));
        // One row at a time: the oracle's rows are padded to 64 bytes.
        for (uint32_t r = 0; r < n_rows; ++r) {
          const std::vector<float> one(x.begin() + r * k, x.begin() + (r + 1) * k);
          const auto all = out.take();
          expect_same(expected_matmul(type, weights, k, n, one),
                      {all.begin() + r * n, all.begin() + (r + 1) * n},
                      fmt::format("{}, k {}", tensor_type_traits(type).name, k));
        }
      }
    }
  }
}

}  // namespace
}  // namespace offstage
