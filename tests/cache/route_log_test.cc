#include "cache/route_log.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/cache/synthetic_routes.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::TempFile;

constexpr uint64_t kTokens = 9;

void expect_same(const RouteLog& a, const RouteLog& b) {
  EXPECT_EQ(a.shape, b.shape);
  EXPECT_EQ(a.experts, b.experts);
  EXPECT_EQ(a.probs, b.probs);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.prefill, b.prefill);
  EXPECT_EQ(a.starts, b.starts);
}

std::vector<std::byte> bytes_of(const RouteLog& log) {
  const TempFile file({});
  EXPECT_TRUE(write_route_log(file.path(), log));
  std::vector<std::byte> bytes;
  const int fd = open(file.path().c_str(), O_RDONLY);
  std::byte chunk[4096];
  for (ssize_t n; (n = read(fd, chunk, sizeof(chunk))) > 0;)
    bytes.insert(bytes.end(), chunk, chunk + n);
  close(fd);
  return bytes;
}

Result<RouteLog> read_bytes(std::span<const std::byte> bytes) {
  const TempFile file({});
  testing::rewrite(file.path(), bytes);
  auto log = read_route_log(file.path());
  EXPECT_TRUE(log || log.error().message.starts_with(file.path())) << log.error().message;
  return log;
}

TEST(RouteLog, ComesBackAsItWas) {
  for (const bool probs : {false, true})
    for (const bool tokens : {false, true}) {
      RouteLog log = random_routes({3, 300, 5, probs, tokens}, kTokens, 4);
      log.starts = {0, 4, 8};
      const auto read = read_bytes(bytes_of(log));
      ASSERT_TRUE(read) << read.error().message;
      expect_same(*read, log);
    }
}

TEST(RouteLog, AnEmptyTraceIsATrace) {
  const auto read = read_bytes(bytes_of(testing::routes_of({2, 8, 2}, {})));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->n_tokens(), 0u);
}

TEST(RouteLog, WeightsAreEqualSharesWithoutProbabilities) {
  const RouteLog log = random_routes({1, 8, 4}, 1, 1);
  EXPECT_EQ(log.weight(0, 0, 3), 0.25f);
}

// The tier's order of things: forwards of several rows, layer by layer.
TEST(RouteLog, WriterTakesForwardsLayerByLayer) {
  const RouteLog log = random_routes({3, 16, 2, true, true}, kTokens, 8);
  const TempFile file({});
  auto writer = RouteLogWriter::create(file.path(), log.shape, 4);
  ASSERT_TRUE(writer) << writer.error().message;
  std::vector<float> weights;
  const auto forward = [&](uint64_t begin, uint32_t n, bool keep) {
    std::vector<RouteLogWriter::Row> rows;
    for (uint64_t t = begin; t < begin + n; ++t)
      rows.push_back({log.tokens[t], log.prefill[t] != 0, t == 0});
    (*writer)->begin_rows(rows);
    for (uint32_t l = 0; l < log.shape.n_layers; ++l) {
      std::vector<uint16_t> experts;
      weights.clear();
      for (uint64_t t = begin; t < begin + n; ++t)
        for (uint32_t j = 0; j < log.shape.n_used; ++j) {
          experts.push_back(log.calls(t, l)[j]);
          weights.push_back(log.weight(t, l, j));
        }
      (*writer)->add_layer(l, experts, weights);
      if (!keep) return (*writer)->drop_rows();  // failed after its first layer
    }
    EXPECT_TRUE((*writer)->end_rows());
  };
  forward(0, 4, true);
  forward(4, 3, false);
  forward(4, 3, true);
  forward(7, 1, true);
  forward(8, 1, true);
  EXPECT_EQ((*writer)->n_tokens(), kTokens);
  ASSERT_TRUE((*writer)->close());
  const auto read = read_route_log(file.path());
  ASSERT_TRUE(read) << read.error().message;
  expect_same(*read, log);
}

TEST(RouteLog, AnAbandonedWriterLeavesNothing) {
  const TempFile file({});
  { ASSERT_TRUE(RouteLogWriter::create(file.path(), {1, 8, 2}, 1)); }
  EXPECT_NE(access(fmt::format("{}.{}.tmp", file.path(), getpid()).c_str(), F_OK), 0);
  EXPECT_FALSE(read_route_log(file.path()));
}

TEST(RouteLog, EveryTruncationIsAnError) {
  const auto bytes = bytes_of(random_routes({2, 8, 2, true, true}, 3, 2));
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_FALSE(read_bytes(std::span(bytes).first(n))) << n;
}

TEST(RouteLog, EveryFlippedBitIsAnError) {
  const auto bytes = bytes_of(random_routes({1, 8, 2, true, true}, 2, 2));
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    auto flipped = bytes;
    flipped[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(read_bytes(flipped)) << "bit " << bit;
  }
}

// Sizes that would wrap or need memory that no file of this size can fill.
TEST(RouteLog, AHeaderThatLiesCostsNothing) {
  const auto bytes = bytes_of(random_routes({1, 8, 2}, 2, 2));
  struct Lie {
    size_t at;
    uint64_t value;
    size_t n;
    const char* expected;
  };
  const Lie lies[] = {{0, 0, 1, "magic"},
                      {8, 2, 4, "version 1"},
                      {12, 4, 4, "flags"},
                      {16, 0, 4, "layers"},
                      {16, 1u << 20, 4, "layers"},
                      {20, 0, 4, "experts"},
                      {20, 1, 4, "experts called"},
                      {24, 1u << 30, 4, "experts called"},
                      {28, 9, 4, "records of"},
                      {32, UINT64_MAX, 8, "tokens"},
                      {32, UINT64_MAX / 12 + 1, 8, "tokens"}};
  for (const Lie& lie : lies) {
    auto changed = bytes;
    std::memcpy(changed.data() + lie.at, &lie.value, lie.n);
    const auto read = read_bytes(changed);
    ASSERT_FALSE(read) << lie.expected;
    EXPECT_NE(read.error().message.find(lie.expected), std::string::npos) << read.error().message;
  }
}

TEST(RouteLog, CallsThatCantBeAreNamed) {
  const RouteLog good = random_routes({2, 8, 3, true}, 4, 3);
  ASSERT_TRUE(check_route_log(good, "x"));
  RouteLog log = good;
  log.experts[3 * 3 + 1] = 8;  // token 1, layer 1
  auto status = check_route_log(log, "x");
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().message,
            "x: token 1, layer 1, call 1: expert 8 isn't there (8 experts)");
  log = good;
  log.experts[1] = log.experts[0];
  status = check_route_log(log, "x");
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("called twice"), std::string::npos);
  for (const float weight : {-0.5f, std::numeric_limits<float>::infinity(), NAN}) {
    log = good;
    log.probs[2] = f16_of_float(weight);
    EXPECT_FALSE(check_route_log(log, "x")) << weight;
  }
}

TEST(RouteLog, WhatIsNoRegularFileIsAnError) {
  EXPECT_EQ(read_route_log("/nonexistent/trace").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(read_route_log("/dev/zero").error().code, ErrorCode::kCorrupt);
  EXPECT_FALSE(RouteLogWriter::create("/nonexistent/trace", {1, 8, 2}, 1));
}

}  // namespace
}  // namespace offstage
