#include "runtime/scratch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cpu/kernels.h"
#include "runtime/compute.h"

namespace offstage {
namespace {

ModelSpec spec_of(uint32_t shared_ffn) {
  ModelSpec spec;
  spec.n_layers = 2;
  spec.hidden = 96;
  spec.n_vocab = 1001;
  spec.attention = {.n_heads = 4, .n_kv_heads = 2, .head_dim_k = 40, .head_dim_v = 24};
  spec.router = {.n_experts = 7, .n_used = 3};
  spec.expert_ffn = 160;
  spec.shared_ffn = shared_ffn;
  return spec;
}

HostArena arena_of(uint64_t bytes) {
  Notices notices;
  auto arena = HostArena::create("test", bytes, notices);
  CHECK(arena.has_value());
  return std::move(*arena);
}

TEST(ScratchTest, TakesExactlyWhatItSaidItNeeds) {
  for (const uint32_t shared : {0u, 64u})
    for (const uint32_t rows : {1u, 3u, 16u, 200u}) {
      const ModelSpec spec = spec_of(shared);
      HostArena arena = arena_of(Scratch::bytes_needed(spec, rows));
      Scratch::take(spec, rows, arena);
      EXPECT_EQ(arena.used_bytes(), Scratch::bytes_needed(spec, rows));
    }
}

TEST(ScratchTest, RegionsAreAsLargeAsStatedAndApart) {
  const ModelSpec spec = spec_of(64);
  constexpr uint64_t kRows = 5, kCalls = kRows * 3;
  HostArena arena = arena_of(Scratch::bytes_needed(spec, kRows));
  const Scratch s = Scratch::take(spec, kRows, arena);
  using Region = std::pair<const void*, uint64_t>;
  const auto floats = [](const float* at, uint64_t n) { return Region{at, n * sizeof(float)}; };
  const auto forms = [](const std::byte* at, uint32_t k) {
    return Region{at, ActivationCache::memory_bytes(kRows, k)};
  };
  uint64_t widest = 0;
  for (const auto format :
       {ActivationFormat::kF32, ActivationFormat::kQ8_32, ActivationFormat::kQ8_256})
    widest = std::max(widest, activation_row_bytes(format, spec.expert_ffn));
  std::vector<Region> regions = {
      floats(s.x, kRows * 96),
      floats(s.normed, kRows * 96),
      floats(s.gqa.q, kRows * 160),
      floats(s.gqa.k, kRows * 80),
      floats(s.gqa.v, kRows * 48),
      floats(s.gqa.attended, kRows * 96),
      floats(s.projected, kRows * 96),
      forms(s.input_forms, 96),
      forms(s.gqa.attended_forms, 96),
      floats(s.logits, kLogitRows * 1001),
      floats(s.moe.router_logits, kRows * 7),
      floats(s.moe.gate, kCalls * 160),
      floats(s.moe.up, kCalls * 160),
      {s.moe.hidden_forms, kCalls * widest},
      floats(s.moe.expert_out, kCalls * 96),
      floats(s.moe.router_sum, kRows * 96),
      forms(s.moe.input_forms, 96),
      floats(s.moe.shared_out, kRows * 96),
      floats(s.ffn.gate, kRows * 64),
      floats(s.ffn.up, kRows * 64),
      forms(s.ffn.hidden_forms, 64),
  };
  std::sort(regions.begin(), regions.end());
  const auto* end = reinterpret_cast<const std::byte*>(arena.data());
  for (const auto& [at, bytes] : regions) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % 64, 0u);
    EXPECT_GE(static_cast<const std::byte*>(at), end);
    end = static_cast<const std::byte*>(at) + bytes;
  }
  EXPECT_LE(end, arena.data() + arena.size_bytes());
}

TEST(ScratchTest, WithoutASharedExpertItHasNone) {
  const ModelSpec spec = spec_of(0);
  HostArena arena = arena_of(Scratch::bytes_needed(spec, 2));
  EXPECT_EQ(Scratch::take(spec, 2, arena).moe.shared.gate, nullptr);
}

TEST(ScratchTest, ADenseModelHasRoomForItsFfnAndNoneForExperts) {
  ModelSpec spec = spec_of(0);
  spec.n_dense_layers = spec.n_layers;
  spec.dense_ffn = 160;
  spec.router = {};
  HostArena arena = arena_of(Scratch::bytes_needed(spec, 2));
  const Scratch s = Scratch::take(spec, 2, arena);
  EXPECT_NE(s.ffn.gate, nullptr);
  EXPECT_EQ(s.moe.gate, nullptr);
}

}  // namespace
}  // namespace offstage
