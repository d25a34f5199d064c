// Everything on the device that isn't a matrix: the oracle's bits again.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "runtime/router.h"
#include "tests/gpu_kernels/comparison.h"

namespace offstage {
namespace {

using gpu_rig::Array;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class DeviceRows : public Comparison {};

TEST_F(DeviceRows, RmsNorm) {
  for (const uint32_t n : {1u, 15u, 300u, 2048u, 2051u, 5000u}) {
    const uint32_t n_rows = 2;
    const auto x = random_floats(size_t{n} * n_rows, rng_);
    const auto weight = random_floats(n, rng_);
    std::vector<float> expected(x.size());
    for (uint32_t r = 0; r < n_rows; ++r)
      oracle().rms_norm(x.data() + r * n, weight.data(), n, 1e-5f, expected.data() + r * n);
    for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
      gpu_rig::begin_turn(turn);
      Array<float> rows(x), weights(weight);
      gpu_rig::finish(gpu::rms_norm(
          gpu_rig::stream(), {rows.at(), weights.at(), n_rows, n, 1e-5f, rows.at()}));  // in place
      expect_same(expected, rows.take(), fmt::format("n {}", n));
    }
  }
}

// Of each row a part: what stands behind it stays.
TEST_F(DeviceRows, RmsNormOfAPart) {
  const uint32_t n_rows = 3, n = 40, stride = 48;
  auto x = random_floats(size_t{n_rows} * stride, rng_);
  const auto weight = random_floats(n, rng_);
  Array<float> rows(x), weights(weight);
  gpu_rig::finish(gpu::rms_norm(gpu_rig::stream(),
                                {rows.at(), weights.at(), n_rows, n, 1e-6f, rows.at(), stride}));
  for (uint32_t r = 0; r < n_rows; ++r) {
    float* row = x.data() + size_t{r} * stride;
    oracle().rms_norm(row, weight.data(), n, 1e-6f, row);
  }
  expect_same(x, rows.take(), "a part of each row");
}

// Far from zero as well, where the mean is what rounds.
TEST_F(DeviceRows, LayerNorm) {
  for (const uint32_t n : {1u, 15u, 300u, 2048u, 2051u, 5000u}) {
    const uint32_t n_rows = 2;
    auto x = random_floats(size_t{n} * n_rows, rng_);
    for (uint32_t i = 0; i < n; ++i) x[n + i] += 100.0f;
    const auto weight = random_floats(n, rng_), bias = random_floats(n, rng_);
    std::vector<float> expected(x.size());
    for (uint32_t r = 0; r < n_rows; ++r)
      oracle().layer_norm(x.data() + r * n, weight.data(), bias.data(), n, 1e-5f,
                          expected.data() + r * n);
    for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
      gpu_rig::begin_turn(turn);
      Array<float> rows(x), weights(weight), biases(bias);
      gpu_rig::finish(gpu::layer_norm(
          gpu_rig::stream(), {rows.at(), weights.at(), biases.at(), n_rows, n, 1e-5f, rows.at()}));
      expect_same(expected, rows.take(), fmt::format("n {}", n));
    }
  }
}

TEST_F(DeviceRows, Rope) {
  for (const bool neox : {true, false}) {
    const uint32_t n_rows = 3, n_heads = 5, head_dim = 80, n_rot = 64;
    auto x = random_floats(size_t{n_rows} * n_heads * head_dim, rng_);
    const auto angles = random_floats(size_t{n_rows} * n_rot, rng_);
    Array<float> rows(x), table(angles);
    gpu_rig::finish(gpu::rope(gpu_rig::stream(),
                              {rows.at(), n_rows, n_heads, head_dim, n_rot, neox, table.at()}));
    for (uint32_t r = 0; r < n_rows; ++r)
      oracle().rope({x.data() + size_t{r} * n_heads * head_dim, n_heads, head_dim, n_rot, neox,
                     angles.data() + size_t{r} * n_rot});
    expect_same(x, rows.take(), neox ? "neox" : "neighbours");
  }
}

// From elsewhere, in rows of another length; what isn't rotated stays as it is.
TEST_F(DeviceRows, RopeOfWhatStandsElsewhere) {
  for (const bool neox : {true, false}) {
    const uint32_t n_rows = 2, n_heads = 3, head_dim = 24, n_rot = 16, from_stride = 19;
    auto x = random_floats(size_t{n_rows} * n_heads * head_dim, rng_);
    const auto from = random_floats(size_t{n_rows} * n_heads * from_stride, rng_);
    const auto angles = random_floats(size_t{n_rows} * n_rot, rng_);
    Array<float> rows(x), table(angles), elsewhere(from);
    gpu_rig::finish(gpu::rope(gpu_rig::stream(), {rows.at(), n_rows, n_heads, head_dim, n_rot, neox,
                                                  table.at(), elsewhere.at(), from_stride}));
    for (uint32_t i = 0; i < n_rows * n_heads; ++i) {
      float* head = x.data() + size_t{i} * head_dim;
      std::copy_n(from.data() + size_t{i} * from_stride, n_rot, head);
      oracle().rope({head, 1, head_dim, n_rot, neox, angles.data() + size_t{i / n_heads} * n_rot});
    }
    expect_same(x, rows.take(), neox ? "neox" : "neighbours");
  }
}

TEST_F(DeviceRows, Activations) {
  auto gate = random_floats(700, rng_, 3.0f);
  const auto up = random_floats(700, rng_, 3.0f);
  gate[0] = kInf, gate[1] = -kInf, gate[2] = kNan, gate[3] = -88.0f, gate[4] = -104.0f;
  for (const auto activation : {gpu::Activation::kSwiglu, gpu::Activation::kSwigluClamped}) {
    auto expected = gate;
    const auto kernel =
        activation == gpu::Activation::kSwiglu ? oracle().swiglu : oracle().swiglu_clamped;
    kernel(expected.data(), up.data(), 700);
    Array<float> gates(gate), ups(up);
    gpu_rig::finish(
        gpu::activate(gpu_rig::stream(), {activation, gates.at(), ups.at(), gates.size()}));
    expect_same(expected, gates.take(), "activation");
  }
}

TEST_F(DeviceRows, WhatIsAddedToTheStream) {
  auto x = random_floats(700, rng_);
  const auto y = random_floats(700, rng_);
  x[0] = -0.0f, x[1] = kInf, x[2] = kNan;
  auto expected = x;
  oracle().add_scaled(expected.data(), y.data(), 0.22f, 700);
  Array<float> stream(x), added(y);
  gpu_rig::finish(gpu::add_scaled(gpu_rig::stream(), {stream.at(), added.at(), 0.22f, 700}));
  expect_same(expected, stream.take(), "add_scaled");
}

TEST_F(DeviceRows, ExpertsAreAddedInRouterOrder) {
  const uint32_t n_rows = 2, hidden = 300, n_used = 3;
  const auto x = random_floats(size_t{n_rows} * hidden, rng_);
  const auto y = random_floats(size_t{n_rows} * n_used * hidden, rng_);
  const auto weights = random_floats(size_t{n_rows} * n_used, rng_);
  const auto shared = random_floats(size_t{n_rows} * hidden, rng_);
  const auto gate = random_floats(n_rows, rng_);
  const std::vector<uint32_t> place_of = {5, 0, 3, 1, 4, 2};
  auto expected = x;
  for (uint32_t r = 0; r < n_rows; ++r) {
    std::vector<float> sum(hidden);
    for (uint32_t j = 0; j < n_used; ++j)
      oracle().add_scaled(sum.data(), y.data() + size_t{place_of[r * n_used + j]} * hidden,
                          weights[r * n_used + j], hidden);
    float open = gate[r];
    oracle().sigmoid(&open, 1);
    oracle().add_scaled(sum.data(), shared.data() + size_t{r} * hidden, open, hidden);
    oracle().add_scaled(expected.data() + size_t{r} * hidden, sum.data(), 0.75f, hidden);
  }
  Array<float> rows(x), outputs(y), of_calls(weights), of_shared(shared), gates(gate);
  Array<uint32_t> places(place_of);
  gpu_rig::finish(
      gpu::combine(gpu_rig::stream(), {rows.at(), n_rows, hidden, n_used, outputs.at(), places.at(),
                                       of_calls.at(), of_shared.at(), gates.at(), 0.75f}));
  expect_same(expected, rows.take(), "combined");
}

TEST_F(DeviceRows, ATablesEntryChanges) {
  Array<uint32_t> slot(size_t{4});
  Array<const std::byte*> table(std::vector<const std::byte*>(3));
  const auto* at = reinterpret_cast<const std::byte*>(slot.at());
  gpu_rig::finish(gpu::set_slot(gpu_rig::stream(), {table.at() + 1, at}));
  EXPECT_EQ(table.take(), (std::vector<const std::byte*>{nullptr, at, nullptr}));
}

TEST_F(DeviceRows, WordsMove) {
  for (const uint32_t n : {1u, 255u, 257u, 1000u}) {
    std::vector<uint32_t> words(n);
    for (uint32_t& word : words) word = static_cast<uint32_t>(rng_.next_u64());
    Array<uint32_t> from(words), to(n);
    gpu_rig::finish(gpu::move_words(gpu_rig::stream(),
                                    {reinterpret_cast<const std::byte*>(from.at()),
                                     reinterpret_cast<std::byte*>(to.at()), n * sizeof(uint32_t)}));
    EXPECT_EQ(to.take(), words) << n;
  }
}

TEST_F(DeviceRows, PlainLoadsTouchEveryWord) {
  std::vector<uint32_t> words(4 * 1001);
  uint32_t expected = 0;
  for (uint32_t& word : words) expected ^= word = static_cast<uint32_t>(rng_.next_u64());
  Array<uint32_t> data(words), seen(gpu::kReadWords);
  gpu_rig::finish(gpu::read_all(gpu_rig::stream(), {reinterpret_cast<const std::byte*>(data.at()),
                                                    words.size() * sizeof(uint32_t), seen.at()}));
  uint32_t actual = 0;
  for (const uint32_t word : seen.take()) actual ^= word;
  EXPECT_EQ(actual, expected);
}

struct RouterCase {
  const char* name;
  RouterSpec spec;
};

// Logits with ties, both zeros, infinities and, in the last row, NaNs.
std::vector<float> hostile_logits(uint32_t n_rows, uint32_t n, Rng& rng) {
  auto logits = random_floats(size_t{n_rows} * n, rng);
  for (uint32_t i = 0; i < n; ++i) {
    logits[n + i] = static_cast<float>(rng.below(3)) - 1;
    if (logits[n + i] == 0 && rng.below(2) == 0) logits[n + i] = -0.0f;
  }
  for (uint32_t i = 0; i < n; ++i) logits[2 * n + i] = rng.below(4) == 0 ? -kInf : 1.0f;
  logits[3 * n + rng.below(n)] = kNan;
  return logits;
}

TEST_F(DeviceRows, RouterChoosesAndWeighsLikeTheHost) {
  const RouterCase cases[] = {
      {"softmax", {128, 8, true, 1}},
      {"softmax, not normalised", {60, 4, false, 2.5f}},
      {"of chosen", {32, 4, false, 1, RouterScore::kSoftmaxOfChosen}},
      {"sigmoid, biased, groups", {64, 6, true, 2.5f, RouterScore::kSigmoid, false, true, 8, 3}}};
  for (const RouterCase& with : cases) {
    const uint32_t n_rows = 4, n = with.spec.n_experts, n_used = with.spec.n_used;
    auto logits = hostile_logits(n_rows, n, rng_);
    const auto bias = random_floats(n, rng_, 0.1f);
    Array<float> scores(logits), selection_bias(bias), weights(size_t{n_rows} * n_used);
    Array<uint32_t> experts(size_t{n_rows} * n_used);
    gpu::RouteArgs args;
    args.logits = scores.at();
    args.n_rows = n_rows;
    args.n_experts = n;
    args.n_used = n_used;
    args.score = static_cast<gpu::RouterScore>(with.spec.score);
    if (with.spec.selection_bias) args.selection_bias = selection_bias.at();
    args.n_groups = with.spec.n_groups;
    args.n_groups_used = with.spec.n_groups_used;
    args.normalise_weights = with.spec.normalise_weights;
    args.weights_scale = with.spec.weights_scale;
    args.experts = experts.at();
    args.weights = weights.at();
    Router router(with.spec, oracle(), n_rows);
    auto expected_scores = logits;
    const Routing& routing = router.route(expected_scores.data(), n_rows,
                                          with.spec.selection_bias ? bias.data() : nullptr);
    for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
      gpu_rig::begin_turn(turn);
      scores.put(logits);
      gpu_rig::finish(gpu::route(gpu_rig::stream(), args));
      const auto chosen = experts.take();
      for (size_t c = 0; c < chosen.size(); ++c)
        EXPECT_EQ(chosen[c], routing.experts[c].value) << with.name << ", call " << c;
      expect_same(routing.weights, weights.take(), with.name);
      expect_same(expected_scores, scores.take(), with.name);
    }
  }
}

TEST_F(DeviceRows, CallsAreGroupedLikeTheHosts) {
  const uint32_t n_rows = 9, n = 40, n_used = 4;
  Router router({n, n_used}, oracle(), n_rows);
  auto logits = random_floats(size_t{n_rows} * n, rng_);
  const Routing& routing = router.route(logits.data(), n_rows);
  std::vector<uint32_t> ids;
  for (const ExpertId id : routing.experts) ids.push_back(id.value);
  Array<uint32_t> experts(ids), place_rows(ids.size()), place_of(ids.size());
  Array<gpu::ExpertJob> jobs(std::min<size_t>(n, ids.size()));
  gpu_rig::finish(gpu::group_calls(gpu_rig::stream(), {experts.at(), n_rows, n_used, n, jobs.at(),
                                                       place_rows.at(), place_of.at()}));
  EXPECT_EQ(place_rows.take(), routing.call_rows);
  EXPECT_EQ(place_of.take(), routing.place_of);
  uint32_t calls = 0;
  for (const gpu::ExpertJob& job : jobs.take()) {
    if (job.n == 0) continue;
    EXPECT_EQ(job.first, routing.first[job.expert]);
    EXPECT_EQ(job.first + job.n, routing.first[job.expert + 1]);
    calls += job.n;
  }
  EXPECT_EQ(calls, ids.size());
}

TEST_F(DeviceRows, KeysAndValuesAreStoredAsTheOracleStoresThem) {
  const uint32_t n_rows = 3, n = 96;
  auto x = random_floats(size_t{n_rows} * n, rng_, 100.0f);
  x[5] = kNan, x[40] = kInf, x[100] = 1e-9f, x[130] = 7e4f, x[131] = 1e8f, x[200] = 65519.0f;
  std::fill_n(x.begin() + 224, 32, 0.0f);
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    const uint64_t bytes = kv_row_bytes(type, n);
    std::vector<std::byte> expected(bytes * n_rows);
    for (uint32_t r = 0; r < n_rows; ++r)
      oracle().store_kv(type, x.data() + size_t{r} * n, n, expected.data() + bytes * r);
    Array<float> rows(x);
    const uint64_t offset = 8;
    Array<std::byte> out(offset + bytes * n_rows);
    std::vector<std::byte*> targets;
    for (uint32_t r = 0; r < n_rows; ++r) targets.push_back(out.at() + bytes * r);
    Array<std::byte*> table(targets);
    gpu_rig::finish(gpu::store_kv(gpu_rig::stream(), {static_cast<gpu::KvType>(type), rows.at(),
                                                      n_rows, n, table.at(), offset}));
    auto actual = out.take();
    actual.erase(actual.begin(), actual.begin() + offset);
    const size_t size = type == KvType::kQ8_0 ? 34 : bytes / n;  // of what holds one element
    for (size_t at = 0; at < actual.size(); at += size) {
      if (type != KvType::kQ8_0 && x[at / size] != x[at / size]) continue;  // where, not which
      EXPECT_TRUE(std::equal(&actual[at], &actual[at] + size, &expected[at])) << "byte " << at;
    }
  }
}

}  // namespace
}  // namespace offstage
