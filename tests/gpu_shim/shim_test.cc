// The shim itself: what it lets through, and what it ends the program for.
#include "tests/gpu_shim/shim.h"

#include <gtest/gtest.h>

#include <vector>

namespace offstage::gpu_shim {
namespace {

TEST(Shim, RunsEveryThreadOfEveryBlock) {
  std::vector<uint32_t> seen;
  set_thread_order(ThreadOrder::kAscending);
  run_grid("count", {2, 2, 2}, 64, [&] {
    seen.push_back(((blockIdx.z * 2 + blockIdx.y) * 2 + blockIdx.x) * 64 + threadIdx.x);
  });
  ASSERT_EQ(seen.size(), 512u);
  for (uint32_t i = 0; i < 512; ++i) EXPECT_EQ(seen[i], i);
}

TEST(Shim, WarpFunctionsExchangeWithinTheWarp) {
  for (const ThreadOrder order : {ThreadOrder::kAscending, ThreadOrder::kDescending}) {
    set_thread_order(order);
    std::vector<uint32_t> sums(64), firsts(64);
    run_grid("sum", 1, 64, [&] {
      uint32_t value = threadIdx.x;
      for (uint32_t mask = 16; mask > 0; mask /= 2) value += gpu::shuffle_xor(value, mask);
      sums[threadIdx.x] = value;
      firsts[threadIdx.x] = gpu::shuffle(threadIdx.x, 3u);
    });
    for (uint32_t t = 0; t < 64; ++t) {
      EXPECT_EQ(sums[t], t < 32 ? 496u : 1520u);
      EXPECT_EQ(firsts[t], t < 32 ? 3u : 35u);
    }
  }
}

TEST(Shim, BarriersOrderSharedMemory) {
  std::vector<uint32_t> out(64);
  run_grid("turn", 1, 64, [&] {
    OFFSTAGE_SHARED(uint32_t, values, 64);
    values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[63 - threadIdx.x];
  });
  for (uint32_t t = 0; t < 64; ++t) EXPECT_EQ(out[t], 63 - t);
}

// The same kernel without its barrier: the two orders of threads disagree, which is how the
// comparisons see it.
TEST(Shim, AMissingBarrierShows) {
  std::vector<uint32_t> out(64);
  set_thread_order(ThreadOrder::kAscending);
  run_grid("no barrier", 1, 64, [&] {
    OFFSTAGE_SHARED(uint32_t, values, 64);
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[63 - threadIdx.x];
  });
  EXPECT_EQ(out[0], 0xffffffffu);
  EXPECT_EQ(out[63], 0u);
}

TEST(Shim, BytePermutationKnowsTheSignBit) {
  EXPECT_EQ(gpu::permute_bytes(0x33221100u, 0x77665544u, 0x7410u), 0x77441100u);
  EXPECT_EQ(gpu::permute_bytes(0x80808080u, 0x80808080u, 0x08f7u), 0x80ffff80u);
  EXPECT_EQ(gpu::funnel_right(0x33221100u, 0x77665544u, 8), 0x44332211u);
  EXPECT_EQ(gpu::dot4(0xff02807fu, 0x01ff7f80u, 5), 5 + -1 - 2 - 128 * 127 - 127 * 128);
}

TEST(ShimDeathTest, RefusesWhatAGpuMightNot) {
  EXPECT_DEATH(run_grid("k", 1, 64,
                        [] {
                          if (threadIdx.x != 7) sync_threads();
                        }),
               "k: .*a barrier that not all threads of the block meet");
  EXPECT_DEATH(run_grid("k", 1, 32,
                        [] {
                          if (threadIdx.x != 7) gpu::sync_warp();
                        }),
               "a warp function that not all 32 lanes call");
  EXPECT_DEATH(run_grid("k", 1, 32,
                        [] {
                          if (threadIdx.x < 16)
                            gpu::sync_warp();
                          else
                            gpu::shuffle_xor(threadIdx.x, 1u);
                        }),
               "lanes of a warp in different functions");
  EXPECT_DEATH(run_grid("k", 1, 33, [] {}), "whole warps");
  const uint32_t words[2] = {};
  EXPECT_DEATH(gpu::load_4(reinterpret_cast<const char*>(words) + 2), "misaligned");
}

}  // namespace
}  // namespace offstage::gpu_shim
