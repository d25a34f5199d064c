#include "cache/replay.h"

#include <gtest/gtest.h>

#include <cmath>

#include "cache/route_stats.h"
#include "tests/cache/synthetic_routes.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::routes_of;

double hit_rate(const RouteLog& log, std::string_view name, uint32_t kept) {
  const RouteShape& shape = log.shape;
  if (name == "belady") return replay(log, kept, *make_belady_policy(log)).total().hit_rate();
  const auto policy = make_policy(name, {shape.n_layers, shape.n_experts, shape.n_used,
                                         std::vector<uint32_t>(shape.n_layers, kept)});
  EXPECT_TRUE(policy);
  return replay(log, kept, **policy).total().hit_rate();
}

TEST(Replay, LruByHand) {
  // kept 2 of 4, one call a token. Residents after each: 0 | 01 | 01 | 12 | 20 | 01
  const RouteLog log = routes_of({1, 4, 1}, {{0}, {1}, {1}, {2}, {0}, {1}});
  const auto result = replay(log, 2, *make_lru_policy(1, 4));
  EXPECT_EQ(result.layers[0].lookups, 6u);
  EXPECT_EQ(result.layers[0].hits, 1u);
  // The last call hits if 1 stays when 0 comes: Belady bypasses 2 and keeps 0 and 1.
  EXPECT_EQ(replay(log, 2, *make_belady_policy(log)).total().hits, 3u);
}

// All calls of a token are looked up before any is inserted: access by access, the second token's
// first miss would push out 1 before it is looked up.
TEST(Replay, IsEventAtomic) {
  const RouteLog log = routes_of({1, 8, 2}, {{0, 1}, {2, 1}, {3, 2}});
  const auto result = replay(log, 2, *make_lru_policy(1, 8));
  EXPECT_EQ(result.total().hits, 2u);
}

TEST(Replay, LayersHaveCachesOfTheirOwn) {
  RouteLog log = routes_of({2, 8, 1}, {{0}, {0}, {0}});
  log.experts = {0, 1, 0, 2, 0, 3};  // layer 0 always the same, layer 1 never
  const auto result = replay(log, 1, *make_lru_policy(2, 8));
  EXPECT_EQ(result.layers[0].hits, 2u);
  EXPECT_EQ(result.layers[1].hits, 0u);
  EXPECT_EQ(result.total().lookups, 6u);
}

// The most that any choice of residents can hit, by trying all of them. Bits are experts.
uint32_t best_hits(const RouteLog& log, uint32_t kept, uint64_t token, uint32_t residents) {
  if (token == log.n_tokens()) return 0;
  uint32_t called = 0;
  for (const uint16_t expert : log.calls(token, 0)) called |= 1u << expert;
  const auto hits = static_cast<uint32_t>(std::popcount(called & residents));
  const uint32_t all = called | residents;
  uint32_t best = 0;
  for (uint32_t stay = all;; stay = (stay - 1) & all) {
    if (static_cast<uint32_t>(std::popcount(stay)) <= kept)
      best = std::max(best, best_hits(log, kept, token + 1, stay));
    if (stay == 0) break;
  }
  return hits + best;
}

TEST(Replay, BeladyIsTheBestThereIs) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const uint32_t used = 1 + seed % 2, kept = 1 + seed % 3;
    const RouteLog log = random_routes({1, 5, used}, 6, seed);
    EXPECT_EQ(replay(log, kept, *make_belady_policy(log)).total().hits, best_hits(log, kept, 0, 0))
        << "seed " << seed;
  }
}

// Over a cycle longer than the cache LRU never hits; who sees that the past repeats does.
TEST(Replay, RecallLearnsACycle) {
  std::vector<std::vector<uint16_t>> rows;
  for (int t = 0; t < 600; ++t) rows.push_back({static_cast<uint16_t>(t % 8)});
  const RouteLog log = routes_of({2, 16, 1}, rows);
  EXPECT_EQ(hit_rate(log, "lru", 6), 0);
  const double belady = hit_rate(log, "belady", 6);
  EXPECT_GT(hit_rate(log, "recall", 6), belady - 0.1);
  EXPECT_GT(hit_rate(log, "auto", 6), belady - 0.1);
}

// A conversation has words; a word calls its own experts. The next word depends on the last one.
RouteLog language(uint64_t seed, uint32_t n_tokens) {
  constexpr uint32_t kWords = 40, kLayers = 4, kUsed = 2, kExperts = 24;
  const RouteLog words = random_routes({kLayers, kExperts, kUsed, true}, kWords, 99);
  Rng rng(seed);
  RouteLog log = routes_of({kLayers, kExperts, kUsed, true}, {});
  uint64_t word = 0;
  for (uint32_t t = 0; t < n_tokens; ++t) {
    word = (word * 7 + 3 + rng.below(3)) % kWords;
    for (uint32_t l = 0; l < kLayers; ++l) {
      const auto calls = words.calls(word, l);
      log.experts.insert(log.experts.end(), calls.begin(), calls.end());
      for (uint32_t j = 0; j < kUsed; ++j) log.probs.push_back(f16_of_float(0.5f));
    }
    log.tokens.push_back(-1);
    log.prefill.push_back(0);
  }
  log.starts = {0};
  return log;
}

TEST(Replay, RecallAndAutoCloseAThirdOfTheGapOnTextLikeRouting) {
  const RouteLog log = language(3, 800);
  for (const uint32_t kept : {4u, 8u}) {
    const double lru = hit_rate(log, "lru", kept), belady = hit_rate(log, "belady", kept);
    ASSERT_GT(belady, lru + 0.05);
    EXPECT_GT(hit_rate(log, "recall", kept), lru + (belady - lru) / 3) << kept;
    EXPECT_GT(hit_rate(log, "auto", kept), lru + (belady - lru) / 3) << kept;
  }
}

// Where nothing can be learned nobody may lose much to LRU.
TEST(Replay, NoPolicyFallsBehindOnNoise) {
  const RouteLog log = random_routes({2, 16, 2}, 1000, 11);
  const double lru = hit_rate(log, "lru", 8);
  for (const std::string_view name : policy_names())
    EXPECT_GT(hit_rate(log, name, 8), lru - 0.03) << name;
}

TEST(Replay, CapacityAsShareOrCount) {
  const RouteShape shape = {2, 128, 6};
  EXPECT_EQ(parse_capacity("25%", shape).value(), 32u);
  EXPECT_EQ(parse_capacity("10%", shape).value(), 13u);
  EXPECT_EQ(parse_capacity("1%", shape).value(), 6u);  // at least one token's calls
  EXPECT_EQ(parse_capacity("100%", shape).value(), 128u);
  EXPECT_EQ(parse_capacity("3", shape).value(), 3u);
  for (const char* bad :
       {"", "%", "0", "0%", "-1", "129", "101%", "2.5", "nan", "inf%", "8x", "1e9"})
    EXPECT_FALSE(parse_capacity(bad, shape)) << bad;
}

TEST(Replay, CapacityByLayer) {
  const RouteShape shape = {3, 128, 6};
  EXPECT_EQ(parse_capacities("25%", shape).value(), (std::vector<uint32_t>{32, 32, 32}));
  EXPECT_EQ(parse_capacities("22,22,21", shape).value(), (std::vector<uint32_t>{22, 22, 21}));
  for (const char* bad : {"22,22", "1,2,3,4", "22,,21", "22,21,", ",,", "0,1,2", "1,2,129"})
    EXPECT_FALSE(parse_capacities(bad, shape)) << bad;
}

TEST(Replay, TokensThatDontCountFillTheCache) {
  const RouteLog log = routes_of({2, 4, 1}, {{0}, {1}, {1}, {2}, {0}, {1}});
  // Kept 1 in the first layer, 2 in the second; tokens 2 to 4 of 0 to 5 count.
  const auto result = replay(log, {{1, 2}, 5, 2}, *make_lru_policy(2, 4));
  EXPECT_EQ(result.total().lookups, 6u);
  EXPECT_EQ(result.layers[0].hits, 1u);  // 1, just called
  EXPECT_EQ(result.layers[1].hits, 1u);
  EXPECT_EQ(result.misses, (std::vector<uint64_t>{1, 0, 1, 0, 1, 0, 1, 0}));
}

// Sectors, not bytes; and a file that ends within a sector gives no more than it has.
TEST(Replay, BytesMissedAreWhatTheDrivesDeliver) {
  const ExpertLayout layout(
      {{{{"gate", 0, 0, 0, 4096}, {"up", 1, 0, 8192 + 32, 5000}, {"down", 2, 1, 4096, 1000}}}}, 2);
  ReplayResult result;
  result.misses = {3, 1};
  // up of expert 0: bytes 8224 to 13224, two sectors; of expert 1: 13224 to 18224, two sectors.
  // down of expert 1 ends at 6096: the sector holds 2000 bytes of the file.
  const uint64_t files[] = {1 << 20, 6096};
  EXPECT_EQ(bytes_missed(result, layout, files),
            3 * (4096 + 8192 + 2000) + 1 * (4096 + 8192 + 2000u));
}

TEST(RouteStats, ByHand) {
  RouteLog log = routes_of({1, 8, 2}, {{0, 1}, {1, 2}, {0, 1}, {3, 4}});
  log.starts = {0, 3};
  const RouteStats stats = route_stats(log);
  EXPECT_EQ(stats.reuse_at_lag[0].n, 1u);
  EXPECT_DOUBLE_EQ(stats.reuse_at_lag[0].value, 2.0 / 4);  // 1 of {0,1}, 1 of {1,2}
  EXPECT_DOUBLE_EQ(stats.reuse_at_lag[1].value, 2.0 / 2);
  EXPECT_TRUE(std::isnan(stats.reuse_at_lag[2].value));
  EXPECT_DOUBLE_EQ(stats.distinct_over[0].value, 2);
  EXPECT_DOUBLE_EQ(stats.distinct_over[1].value, 3);  // {0,1},{1,2}; the rest is too short
  EXPECT_DOUBLE_EQ(stats.first_touch_share, 5.0 / 8);
}

}  // namespace
}  // namespace offstage
