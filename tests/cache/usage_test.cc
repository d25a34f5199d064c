#include "cache/usage.h"

#include <gtest/gtest.h>

#include "tests/cache/synthetic_routes.h"
#include "tests/io/temp_file.h"

namespace offstage {
namespace {

using testing::TempFile;

constexpr IndexIdentity kIdentity = {1, 2, 3, 4};

ExpertUsage cold(uint32_t n_layers, uint32_t n_experts) {
  return {n_layers, n_experts, 0, std::vector<float>(size_t{n_layers} * n_experts, 0)};
}

std::vector<std::byte> bytes_of(const std::string& path) {
  std::vector<std::byte> bytes(4096);
  const int fd = open(path.c_str(), O_RDONLY);
  const ssize_t n = read(fd, bytes.data(), bytes.size());
  close(fd);
  bytes.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
  return bytes;
}

TEST(Usage, CountsAndForgets) {
  ExpertUsage usage = cold(2, 8);
  const auto policy = make_counting_policy(make_lru_policy(2, 8), usage);
  EXPECT_EQ(policy->name(), "lru");
  testing::feed(testing::routes_of({2, 8, 2}, {{1, 2}, {1, 3}, {1, 2}}), *policy);
  EXPECT_NEAR(usage.tokens, 3, 0.01);
  const auto shares = usage.shares(LayerIndex(1));
  EXPECT_NEAR(shares[1], 1, 1e-6);
  EXPECT_NEAR(shares[2], 2.0 / 3, 1e-3);
  EXPECT_EQ(shares[0], 0);
  // 4,096 tokens later half is forgotten.
  const ExpertCall call = {ExpertId(5), 4096};
  policy->on_event({LayerIndex(0), {&call, 1}, 4096});
  EXPECT_NEAR(usage.calls[1], 1.5, 0.01);
}

// A seeded policy prefers what was used before to what never was, and forgets it for what is.
TEST(Usage, SeedsEveryPolicy) {
  for (const std::string_view name : policy_names()) {
    ExpertUsage usage = cold(1, 8);
    usage.tokens = 100;
    usage.calls[6] = 90;
    usage.calls[2] = 40;
    auto policy = make_policy(name, {1, 8, 2, {2}});
    ASSERT_TRUE(policy);
    const auto counting = make_counting_policy(std::move(*policy), usage);
    testing::feed(testing::routes_of({1, 8, 2}, {{0, 1}}), *counting);
    const std::vector<ExpertId> candidates = {ExpertId(2), ExpertId(6), ExpertId(7)};
    EXPECT_EQ(counting->victim(LayerIndex(0), candidates).value, 7u) << name;
    EXPECT_GT(counting->value(LayerIndex(0), ExpertId(6)),
              counting->value(LayerIndex(0), ExpertId(2)))
        << name;
  }
}

TEST(Usage, ComesBackAsItWas) {
  ExpertUsage usage = cold(3, 5);
  usage.tokens = 12.5;
  for (size_t i = 0; i < usage.calls.size(); ++i) usage.calls[i] = static_cast<float>(i) / 4;
  const TempFile file({});
  ASSERT_TRUE(write_usage(file.path(), kIdentity, usage));
  const auto read = read_usage(file.path(), kIdentity, 3, 5);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->tokens, 12.5);
  EXPECT_EQ(read->calls, usage.calls);
  EXPECT_EQ(read_usage(file.path(), {1, 2, 3, 5}, 3, 5).error().code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(read_usage(file.path(), kIdentity, 5, 3));
  EXPECT_EQ(read_usage("/nonexistent/usage", kIdentity, 3, 5).error().code, ErrorCode::kNotFound);
}

TEST(Usage, EveryDamageIsSeen) {
  ExpertUsage usage = cold(1, 3);
  usage.tokens = 2;
  usage.calls = {1, 2, 1};
  const TempFile file({});
  ASSERT_TRUE(write_usage(file.path(), kIdentity, usage));
  const auto bytes = bytes_of(file.path());
  ASSERT_EQ(bytes.size(), 64u + 12 + 8);
  for (size_t n = 0; n < bytes.size(); ++n) {
    testing::rewrite(file.path(), std::span(bytes).first(n));
    EXPECT_FALSE(read_usage(file.path(), kIdentity, 1, 3)) << n;
  }
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    auto flipped = bytes;
    flipped[bit / 8] ^= std::byte{1} << (bit % 8);
    testing::rewrite(file.path(), flipped);
    EXPECT_FALSE(read_usage(file.path(), kIdentity, 1, 3)) << "bit " << bit;
  }
}

TEST(Usage, LiesBesideTheIndex) {
  const auto places = usage_places("/models/a.gguf");
  ASSERT_FALSE(places.empty());
  EXPECT_EQ(places[0], "/models/a.gguf.offstage-usage");
}

}  // namespace
}  // namespace offstage
