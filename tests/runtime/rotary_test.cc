#include "runtime/rotary.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/check.h"

namespace offstage {
namespace {

RotaryTable table_of(const RotarySpec& spec, uint32_t context, const float* factors,
                     HostArena& arena) {
  return RotaryTable(spec, context, factors, arena);
}

HostArena arena_for(const RotarySpec& spec, uint32_t context) {
  Notices notices;
  auto arena = HostArena::create("test", RotaryTable::bytes_needed(spec, context), notices);
  CHECK(arena.has_value());
  return std::move(*arena);
}

// Against extended precision: the nearest float, or the one beside it.
void expect_angles(const RotarySpec& spec, const float* factors) {
  constexpr uint32_t kContext = 5000;
  HostArena arena = arena_for(spec, kContext);
  const RotaryTable table = table_of(spec, kContext, factors, arena);
  EXPECT_EQ(table.context(), kContext);
  for (const uint32_t position : {0u, 1u, 2u, 63u, 1000u, 4999u})
    for (uint32_t i = 0; i < spec.n_rot / 2; ++i) {
      long double theta =
          std::pow(static_cast<long double>(spec.freq_base), -2.0L * i / spec.n_rot) *
          static_cast<long double>(spec.position_scale);
      if (factors != nullptr) theta /= static_cast<long double>(factors[i]);
      const long double angle = position * theta;
      EXPECT_NEAR(table.row(position)[2 * i], std::cos(angle), 7e-8) << position << ' ' << i;
      EXPECT_NEAR(table.row(position)[2 * i + 1], std::sin(angle), 7e-8) << position << ' ' << i;
    }
}

TEST(RotaryTest, AnglesOfUsualBases) {
  for (const float base : {10000.0f, 500000.0f, 1e6f, 1e7f})
    expect_angles({RotaryKind::kNeox, 128, base, 1}, nullptr);
}

TEST(RotaryTest, LinearScalingStretchesPositions) {
  expect_angles({RotaryKind::kNeox, 64, 10000, 0.25f}, nullptr);
  const RotarySpec plain = {RotaryKind::kNeox, 64, 10000, 1},
                   scaled = {RotaryKind::kNeox, 64, 10000, 0.25f};
  HostArena a = arena_for(plain, 100), b = arena_for(scaled, 100);
  const RotaryTable plain_table = table_of(plain, 100, nullptr, a);
  const RotaryTable scaled_table = table_of(scaled, 100, nullptr, b);
  for (uint32_t i = 0; i < 64; ++i) EXPECT_EQ(plain_table.row(5)[i], scaled_table.row(20)[i]);
}

TEST(RotaryTest, FactorsDivideEachFrequency) {
  const float factors[] = {1, 1, 2, 4, 8, 8, 8, 8};
  expect_angles({RotaryKind::kAdjacentPairs, 16, 500000, 1}, factors);
}

// Against the formula of the paper, with whole bounds: head 16, base 10⁴, 32 positions stretched by
// four. 32 turns fit below frequency 0 and one at 1.4, so the ramp runs from 0 to 2.
TEST(RotaryTest, YarnKeepsFastFrequenciesAndStretchesSlowOnes) {
  RotarySpec spec = {RotaryKind::kNeox, 16, 10000, 0.25f};
  spec.scaling = RotaryScaling::kYarn;
  spec.context_original = 32;
  spec.magnitude = 1.5f;
  HostArena arena = arena_for(spec, 100);
  const RotaryTable table = table_of(spec, 100, nullptr, arena);
  for (uint32_t i = 0; i < 8; ++i) {
    const double kept = i == 0 ? 1 : i == 1 ? 0.5 : 0;
    const double theta = std::pow(10000.0, -2.0 * i / 16) * (kept + (1 - kept) / 4);
    EXPECT_NEAR(table.row(77)[2 * i], 1.5 * std::cos(77 * theta), 1e-6) << i;
    EXPECT_NEAR(table.row(77)[2 * i + 1], 1.5 * std::sin(77 * theta), 1e-6) << i;
  }
}

TEST(RotaryTest, PositionZeroRotatesNothing) {
  const RotarySpec spec = {RotaryKind::kNeox, 8, 10000, 1};
  HostArena arena = arena_for(spec, 1);
  const RotaryTable table = table_of(spec, 1, nullptr, arena);
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(table.row(0)[2 * i], 1.0f);
    EXPECT_EQ(table.row(0)[2 * i + 1], 0.0f);
  }
  EXPECT_EQ(arena.used_bytes(), RotaryTable::bytes_needed(spec, 1));
}

}  // namespace
}  // namespace offstage
