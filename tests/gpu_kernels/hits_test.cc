// What a device computes of a router's choice before the host knows it: the calls whose experts its
// table names, in kernels that learn their number on the way.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/cpu/cpu_test_data.h"
#include "tests/gpu_kernels/rig.h"

namespace offstage {
namespace {

using gpu_rig::Array;

class DeviceHitKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (*gpu_rig::why_not() != 0) GTEST_SKIP() << gpu_rig::why_not();
  }
  Rng rng_{3};
};

// A choice of distinct experts per row.
std::vector<uint32_t> choice_of(uint32_t n_rows, uint32_t n_used, uint32_t n_experts, Rng& rng) {
  std::vector<uint32_t> choice;
  for (uint32_t row = 0; row < n_rows; ++row) {
    const size_t first = choice.size();
    while (choice.size() < first + n_used) {
      const auto expert = static_cast<uint32_t>(rng.below(n_experts));
      if (std::find(choice.begin() + first, choice.end(), expert) == choice.end())
        choice.push_back(expert);
    }
  }
  return choice;
}

// Which experts are there: none, some, all.
TEST_F(DeviceHitKernels, TheListIsOfThoseThatAreThere) {
  const uint32_t n_rows = 9, n_used = 4;
  for (const uint32_t n_experts : {12u, 200u}) {
    for (const uint32_t of_ten : {0u, 4u, 10u}) {
      const std::vector<uint32_t> choice = choice_of(n_rows, n_used, n_experts, rng_);
      Array<std::byte> slot(size_t{4});
      std::vector<const std::byte*> table(n_experts);
      for (const std::byte*& entry : table) entry = rng_.below(10) < of_ten ? slot.at() : nullptr;
      std::vector<gpu::ExpertJob> expected;
      std::vector<uint32_t> expected_rows;
      for (uint32_t e = 0; e < n_experts; ++e) {
        const auto first = static_cast<uint32_t>(expected_rows.size());
        for (uint32_t c = 0; c < choice.size() && table[e] != nullptr; ++c)
          if (choice[c] == e) expected_rows.push_back(c / n_used);
        const auto n = static_cast<uint32_t>(expected_rows.size()) - first;
        if (n != 0) expected.push_back({e, first, n});
      }
      for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
        gpu_rig::begin_turn(turn);
        Array<uint32_t> experts(choice), place_rows(choice.size()), n_places(size_t{1});
        Array<const std::byte*> slots(table);
        Array<gpu::ExpertJob> jobs(std::min<size_t>(n_experts, choice.size())), told(jobs.size());
        gpu::GroupCallsArgs args = {experts.at(), n_rows,    n_used,
                                    n_experts,    jobs.at(), place_rows.at()};
        args.slots = slots.at();
        args.n_places = n_places.at();
        args.told = told.at();
        gpu_rig::finish(gpu::group_calls(gpu_rig::stream(), args));
        EXPECT_EQ(n_places.take().front(), expected_rows.size());
        const auto rows = place_rows.take();
        EXPECT_TRUE(std::equal(expected_rows.begin(), expected_rows.end(), rows.begin()));
        for (const auto& list : {jobs.take(), told.take()}) {
          for (size_t j = 0; j < list.size(); ++j) {
            const gpu::ExpertJob job = j < expected.size() ? expected[j] : gpu::ExpertJob{};
            EXPECT_EQ(list[j].expert, job.expert) << j;
            EXPECT_EQ(list[j].first, job.first) << j;
            EXPECT_EQ(list[j].n, job.n) << j;
          }
        }
      }
    }
  }
}

TEST_F(DeviceHitKernels, AsManyWordsMoveAsTheDeviceCounted) {
  const uint32_t n_rows = 5, row_words = 300;
  std::vector<uint32_t> words(n_rows * row_words);
  for (uint32_t& word : words) word = static_cast<uint32_t>(rng_.next_u64());
  for (const uint32_t n : {0u, 3u, 5u, 9u}) {
    Array<uint32_t> from(words), to(words.size()), count(std::vector<uint32_t>{n});
    gpu_rig::finish(gpu::move_words(
        gpu_rig::stream(),
        {reinterpret_cast<const std::byte*>(from.at()), reinterpret_cast<std::byte*>(to.at()),
         words.size() * sizeof(uint32_t), count.at(), row_words * sizeof(uint32_t)}));
    std::vector<uint32_t> expected = words;
    std::fill(expected.begin() + std::min(n, n_rows) * row_words, expected.end(), 0xffffffffu);
    EXPECT_EQ(to.take(), expected) << n;
  }
}

TEST_F(DeviceHitKernels, AsManyRowsAreQuantisedAsTheDeviceCounted) {
  const uint32_t n_rows = 4, k = 512;
  const auto x = random_floats(size_t{n_rows} * k, rng_);
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_K}) {
    const uint64_t row_bytes = gpu::activation_row_bytes(type, k);
    const auto quantised = [&](const uint32_t* count) {
      Array<float> rows(x);
      Array<std::byte> out(n_rows * row_bytes);
      gpu_rig::finish(gpu::quantise_activations(gpu_rig::stream(),
                                                {type, rows.at(), n_rows, k, out.at(), 0, count}));
      return out.take();
    };
    const std::vector<std::byte> whole = quantised(nullptr);
    for (const uint32_t n : {0u, 1u, 3u, 4u, 7u}) {
      Array<uint32_t> count(std::vector<uint32_t>{n});
      const std::vector<std::byte> out = quantised(count.at());
      const size_t end = std::min(n, n_rows) * row_bytes;
      EXPECT_TRUE(std::equal(out.begin(), out.begin() + end, whole.begin())) << n;
      EXPECT_TRUE(std::all_of(out.begin() + end, out.end(), [](std::byte byte) {
        return byte == std::byte{0xff};
      })) << n;
    }
  }
}

struct Shape {
  TensorType type = TensorType::kQ4_K;
  uint32_t hidden = 256, ffn = 256, n_experts = 6, n_rows = 3, n_used = 2;
};

// From the choice to the rows that come back, [calls][hidden]; NaNs where nobody wrote. Without a
// count all experts are there, and all calls are listed.
std::vector<float> computed(const Shape& s, const std::vector<std::byte>& weights,
                            const std::vector<uint32_t>& choice, const std::vector<bool>& is_there,
                            const std::vector<float>& x, bool counts) {
  const auto n_calls = static_cast<uint32_t>(choice.size());
  const uint64_t matrix_bytes = row_bytes(s.type, s.hidden) * s.ffn;
  Array<std::byte> slots(weights);
  std::vector<const std::byte*> table(s.n_experts);
  for (uint32_t e = 0; e < s.n_experts; ++e)
    if (!counts || is_there[e]) table[e] = slots.at() + e * 3 * matrix_bytes;
  Array<const std::byte*> entries(table);
  Array<uint32_t> experts(choice), place_rows(n_calls), n_places(size_t{1});
  Array<gpu::ExpertJob> jobs(std::min(s.n_experts, n_calls));
  gpu::GroupCallsArgs list = {experts.at(), s.n_rows,  s.n_used,
                              s.n_experts,  jobs.at(), place_rows.at()};
  if (counts) list.slots = entries.at();
  list.n_places = n_places.at();
  gpu_rig::finish(gpu::group_calls(gpu_rig::stream(), list));
  Array<float> rows(x), hidden(size_t{n_calls} * s.ffn), out(size_t{n_calls} * s.hidden);
  Array<float> back(out.size());
  Array<std::byte> forms(gpu::activation_row_bytes(s.type, s.hidden) * s.n_rows);
  Array<std::byte> hidden_forms(gpu::activation_row_bytes(s.type, s.ffn) * n_calls);
  gpu_rig::finish(gpu::quantise_activations(gpu_rig::stream(),
                                            {s.type, rows.at(), s.n_rows, s.hidden, forms.at()}));
  gpu::GateUpArgs first;
  first.gate.type = s.type;
  first.gate.k = s.hidden;
  first.gate.n = s.ffn;
  first.gate.slots = entries.at();
  first.gate.jobs = jobs.at();
  first.gate.n_jobs = static_cast<uint32_t>(jobs.size());
  first.gate.n_places = s.n_rows;
  first.gate.activations = forms.at();
  first.gate.place_rows = place_rows.at();
  first.gate.out = hidden.at();
  first.up_offset = matrix_bytes;
  gpu_rig::finish(gpu::expert_gate_up(gpu_rig::stream(), first));
  const uint32_t* const count = counts ? n_places.at() : nullptr;
  gpu_rig::finish(gpu::quantise_activations(
      gpu_rig::stream(), {s.type, hidden.at(), n_calls, s.ffn, hidden_forms.at(), 0, count}));
  gpu::MatvecArgs second = first.gate;
  second.k = s.ffn;
  second.n = s.hidden;
  second.offset = 2 * matrix_bytes;
  second.activations = hidden_forms.at();
  second.place_rows = nullptr;
  second.out = out.at();
  gpu_rig::finish(gpu::matvec(gpu_rig::stream(), second));
  gpu_rig::finish(gpu::move_words(
      gpu_rig::stream(),
      {reinterpret_cast<const std::byte*>(out.at()), reinterpret_cast<std::byte*>(back.at()),
       out.size() * sizeof(float), count, s.hidden * sizeof(float)}));
  return back.take();
}

// Each call that is there has the bits that it has when all are, in places without gaps; the places
// behind them nobody writes, so that their memory may be anybody's.
TEST_F(DeviceHitKernels, ExpertsThatAreThereGiveTheSameBits) {
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_K}) {
    for (const uint32_t n_rows : {1u, 3u}) {
      Shape shape;
      shape.type = type;
      shape.n_rows = n_rows;
      const uint32_t n_matrices = shape.n_experts * 3;
      std::vector<std::byte> weights(row_bytes(type, shape.hidden) * shape.ffn * n_matrices);
      fill_weights(type, Fill::kRandom, shape.hidden, shape.ffn * n_matrices, rng_, weights.data());
      const auto x = random_floats(size_t{n_rows} * shape.hidden, rng_);
      std::vector<uint32_t> choice = {4, 1};
      if (n_rows == 3) choice.insert(choice.end(), {1, 3, 5, 4});
      const std::vector<float> all = computed(shape, weights, choice, {}, x, false);
      for (const std::vector<bool>& is_there :
           {std::vector<bool>{true, true, true, false, false, true},
            std::vector<bool>{false, false, true, false, true, false}, std::vector<bool>(6, false),
            std::vector<bool>(6, true)}) {
        for (uint32_t turn = 0; turn < gpu_rig::n_turns(); ++turn) {
          gpu_rig::begin_turn(turn);
          const std::vector<float> hits = computed(shape, weights, choice, is_there, x, true);
          size_t of_all = 0, of_hits = 0;
          for (uint32_t e = 0; e < shape.n_experts; ++e) {
            for (uint32_t n = std::count(choice.begin(), choice.end(), e); n > 0; --n, ++of_all) {
              if (!is_there[e]) continue;
              std::string difference;
              EXPECT_TRUE(same_bits(all.data() + of_all * shape.hidden,
                                    hits.data() + of_hits++ * shape.hidden, shape.hidden,
                                    &difference))
                  << "expert " << e << ": " << difference;
            }
          }
          EXPECT_TRUE(std::all_of(hits.begin() + of_hits * shape.hidden, hits.end(),
                                  [](float y) { return y != y; }));
        }
      }
    }
  }
}

}  // namespace
}  // namespace offstage
