#include "runtime/kv_cache.h"

#include <gmock/gmock.h>

#include <set>

namespace offstage {
namespace {

using ::testing::HasSubstr;

constexpr KvCache::Shape kShape = {
    .n_layers = 3, .n_kv_heads = 2, .k_row_bytes = 32, .v_row_bytes = 64};
constexpr SequenceId kA(0), kB(1);

KvCache cache_of(uint32_t n_pages, uint32_t n_sequences = 2) {
  Notices notices;
  auto cache = KvCache::create(kShape, n_pages, n_sequences, notices);
  EXPECT_TRUE(cache);
  return std::move(*cache);
}

TEST(KvCacheTest, PagesForAContextAndItsSequences) {
  EXPECT_EQ(KvCache::pages_for(1, 1), 1u);
  EXPECT_EQ(KvCache::pages_for(64, 1), 1u);
  EXPECT_EQ(KvCache::pages_for(65, 1), 2u);
  EXPECT_EQ(KvCache::pages_for(128, 3), 4u);
  EXPECT_EQ(KvCache::pages_for(UINT32_MAX, 1), 1u << 26);
}

// However a context is shared, its last position has a page.
TEST(KvCacheTest, AContextFitsHoweverItIsShared) {
  for (uint32_t of_a = 0; of_a <= 200; ++of_a) {
    KvCache cache = cache_of(KvCache::pages_for(200, 2));
    EXPECT_TRUE(cache.reserve(kA, of_a));
    EXPECT_TRUE(cache.reserve(kB, 200 - of_a)) << of_a;
  }
}

TEST(KvCacheTest, ShapeFollowsTheSpecAndTheTypes) {
  ModelSpec spec;
  spec.n_layers = 5;
  spec.attention = {.n_heads = 8, .n_kv_heads = 4, .head_dim_k = 64, .head_dim_v = 32};
  const KvCache::Shape shape = KvCache::shape_of(spec, KvType::kF32, KvType::kF16);
  EXPECT_EQ(shape.k_row_bytes, 256u);
  EXPECT_EQ(shape.v_row_bytes, 64u);
  EXPECT_EQ(shape.page_bytes(), 5u * 4 * 64 * (256 + 64));
}

TEST(KvCacheTest, NoTwoRowsOverlap) {
  KvCache cache = cache_of(3);
  ASSERT_TRUE(cache.reserve(kA, 100));
  ASSERT_TRUE(cache.reserve(kB, 10));
  std::set<std::pair<const std::byte*, uint64_t>> rows;
  const auto add = [&](SequenceId sequence, uint32_t n) {
    for (uint32_t p = 0; p < n; ++p)
      for (uint32_t l = 0; l < 3; ++l)
        for (uint32_t h = 0; h < 2; ++h) {
          rows.insert({cache.k_row(sequence, p, l, h), 32});
          rows.insert({cache.v_row(sequence, p, l, h), 64});
        }
  };
  add(kA, 100);
  add(kB, 10);
  EXPECT_EQ(rows.size(), 110u * 12);
  const std::byte* end = nullptr;
  for (const auto& [begin, bytes] : rows) {
    EXPECT_TRUE(end == nullptr || begin >= end);
    end = begin + bytes;
  }
}

TEST(KvCacheTest, RowsLieWhereKernelsLookForThem) {
  KvCache cache = cache_of(4);
  ASSERT_TRUE(cache.reserve(kB, 130));
  for (const uint32_t position : {0u, 63u, 64u, 129u}) {
    const std::byte* block = cache.blocks(kB)[position / kKvBlockPositions];
    EXPECT_EQ(cache.k_row(kB, position, 2, 1),
              block + cache.k_offset(2, 1) + position % 64 * uint64_t{32});
    EXPECT_EQ(cache.v_row(kB, position, 2, 1),
              block + cache.v_offset(2, 1) + position % 64 * uint64_t{64});
  }
}

TEST(KvCacheTest, GrowingKeepsWhatIsThere) {
  KvCache cache = cache_of(4);
  ASSERT_TRUE(cache.reserve(kA, 1));
  std::byte* const first = cache.k_row(kA, 0, 0, 0);
  ASSERT_TRUE(cache.reserve(kA, 200));
  EXPECT_EQ(cache.k_row(kA, 0, 0, 0), first);
  ASSERT_TRUE(cache.reserve(kA, 10));  // never shrinks
  EXPECT_EQ(cache.free_pages(), 0u);
}

TEST(KvCacheTest, FullIsAnErrorThatTakesNothing) {
  KvCache cache = cache_of(3);
  ASSERT_TRUE(cache.reserve(kA, 100));
  const Status status = cache.reserve(kB, 65);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kBudget);
  EXPECT_THAT(status.error().message, HasSubstr("sequence 1 needs 65 positions"));
  EXPECT_EQ(cache.free_pages(), 1u);
  EXPECT_TRUE(cache.reserve(kB, 64));
}

TEST(KvCacheTest, ReleasedPagesAreUsedAgain) {
  KvCache cache = cache_of(2);
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(cache.reserve(kA, 128));
    EXPECT_FALSE(cache.reserve(kB, 1));
    cache.release(kA);
    EXPECT_EQ(cache.free_pages(), 2u);
    cache.release(kA);  // nothing to give back twice
    EXPECT_EQ(cache.free_pages(), 2u);
  }
}

}  // namespace
}  // namespace offstage
