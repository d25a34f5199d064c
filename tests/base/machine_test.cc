// Memory and chance: arenas, what the kernel says of this process, the generator.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <set>
#include <vector>

#include "base/arena.h"
#include "base/process_memory.h"
#include "base/rng.h"
#include "base/types.h"

namespace offstage {
namespace {

constexpr uint64_t kMiB = 1ull << 20;

TEST(ArenaTest, HandsOutAlignedPiecesThatDontOverlap) {
  Notices notices;
  auto arena = HostArena::create("test", 1 * kMiB, notices);
  ASSERT_TRUE(arena);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(arena->data()) % (2 * kMiB), 0u);
  std::byte* const a = arena->take(100, 64);
  std::byte* const b = arena->take(1, 4096);
  std::byte* const c = arena->take(10, 1);
  EXPECT_EQ(a, arena->data());
  EXPECT_EQ(b, arena->data() + 4096);
  EXPECT_EQ(c, b + 1);
  EXPECT_EQ(arena->used_bytes(), 4096u + 11);
  std::memset(arena->data(), 1, arena->size_bytes());
}

TEST(ArenaTest, MemoryIsZeroAtFirst) {
  Notices notices;
  auto arena = HostArena::create("test", 3 * kMiB + 1, notices);
  ASSERT_TRUE(arena);
  EXPECT_GE(arena->size_bytes(), 3 * kMiB + 1);
  for (uint64_t i = 0; i < arena->size_bytes(); i += 511) ASSERT_EQ(arena->data()[i], std::byte{0});
}

TEST(ArenaTest, MovesWithItsMemory) {
  Notices notices;
  auto first = HostArena::create("test", kMiB, notices);
  auto second = HostArena::create("test", kMiB, notices);
  ASSERT_TRUE(first && second);
  std::byte* const piece = first->take(10, 1);
  *piece = std::byte{42};
  *second = std::move(*first);
  EXPECT_EQ(second->data(), piece);
  EXPECT_EQ(second->used_bytes(), 10u);
  const HostArena third = std::move(*second);
  EXPECT_EQ(*third.data(), std::byte{42});
}

// In a child without privileges: a limit that is too small is named with what it has to be.
TEST(ArenaTest, LockingSaysWhatTheLimitHasToBe) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizers replace mlock by something that does nothing and succeeds";
#endif
  Notices notices;
  auto arena = HostArena::create("test", kMiB, notices);
  ASSERT_TRUE(arena);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const struct rlimit small = {64 * 1024, 64 * 1024};
    const bool plain =
        setrlimit(RLIMIT_MEMLOCK, &small) == 0 && (geteuid() != 0 || setuid(65534) == 0);
    const Status status = lock_memory("a test", {arena->data(), kMiB}, 3 * kMiB);
    const auto says = [&](const char* text) {
      return status.error().message.find(text) != std::string::npos;
    };
    const bool right = plain && !status && status.error().code == ErrorCode::kPermission &&
                       says("3.00 MiB") && says("64.00 KiB") && says("ulimit -l 3072");
    _exit(right ? 0 : 1);
  }
  int outcome = 0;
  ASSERT_EQ(waitpid(child, &outcome, 0), child);
  EXPECT_EQ(outcome, 0);
  if (lock_memory("a test", {arena->data(), 4096}, 4096)) {
    EXPECT_EQ(munlock(arena->data(), 4096), 0);
  }
}

TEST(ArenaTest, WhatCantBeMappedIsAnErrorWithItsSize) {
  Notices notices;
  for (const uint64_t bytes :
       {uint64_t{UINT64_MAX}, uint64_t{UINT64_MAX} - 4096, uint64_t{1} << 60}) {
    const auto arena = HostArena::create("a giant", bytes, notices);
    ASSERT_FALSE(arena);
    EXPECT_EQ(arena.error().code, ErrorCode::kOutOfMemory);
    EXPECT_NE(arena.error().message.find("a giant"), std::string::npos);
  }
}

TEST(ArenaTest, NothingIsTakenUntilItIsTouched) {
  Notices notices;
  const uint64_t before = resident_bytes();
  auto arena = HostArena::create("test", 64 * kMiB, notices);
  ASSERT_TRUE(arena);
  EXPECT_LT(resident_bytes(), before + 16 * kMiB);
  ASSERT_TRUE(arena->populate());
  EXPECT_GE(resident_bytes() + kMiB, before + 64 * kMiB);
  EXPECT_GE(peak_resident_bytes(), resident_bytes() - kMiB);
}

TEST(ArenaDeathTest, RunningOutIsABug) {
  Notices notices;
  auto arena = HostArena::create("test", 4096, notices);
  arena->take(4096, 1);
  EXPECT_DEATH(arena->take(1, 1), "4097");
}

TEST(ProcessMemoryTest, NumbersAreOfThisMachine) {
  EXPECT_GT(resident_bytes(), kMiB);
  EXPECT_LT(resident_bytes(), 1ull << 40);
  EXPECT_GT(available_bytes(), kMiB);
  const auto limit = cgroup_limit_bytes();
  EXPECT_TRUE(!limit || *limit > kMiB);
}

// The first outputs of xoshiro256** seeded by splitmix64(1), from the definition.
TEST(RngTest, TheSameNumbersOnEveryMachine) {
  uint64_t state = 1, seeded[4];
  for (uint64_t& word : seeded) {
    state += 0x9e3779b97f4a7c15;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    word = z ^ (z >> 31);
  }
  EXPECT_EQ(seeded[0], 0x910a2dec89025cc1);  // splitmix64's published first output for seed 1
  const uint64_t five = seeded[1] * 5;
  Rng rng(1);
  EXPECT_EQ(rng.next_u64(), ((five << 7) | (five >> 57)) * 9);
}

TEST(RngTest, SeedsDifferAndRepeat) {
  Rng a(7), b(7), c(8);
  std::vector<uint64_t> of_a, of_b, of_c;
  for (int i = 0; i < 100; ++i) {
    of_a.push_back(a.next_u64());
    of_b.push_back(b.next_u64());
    of_c.push_back(c.next_u64());
  }
  EXPECT_EQ(of_a, of_b);
  EXPECT_NE(of_a, of_c);
  EXPECT_EQ(std::set(of_a.begin(), of_a.end()).size(), 100u);
}

TEST(RngTest, DrawsAreInRangeAndEven) {
  Rng rng(5);
  std::vector<int> counts(10, 0);
  double sum = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    ++counts.at(rng.below(10));
    const double u = rng.uniform();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
  }
  for (const int count : counts) EXPECT_NEAR(count, kDraws / 10, 5 * 42.5);  // 5 sigma
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * 0.2887 / 141);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(rng.below(1), 0u);
}

// An index of one kind is not one of another: this is what makes swaps errors of the compiler.
static_assert(!std::is_convertible_v<LayerIndex, ExpertId>);
static_assert(!std::is_convertible_v<uint32_t, LayerIndex>);
static_assert(LayerIndex(1) < LayerIndex(2) && ExpertId(3) == ExpertId(3));

}  // namespace
}  // namespace offstage
