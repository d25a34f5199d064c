#include "plan/wish.h"

#include <gtest/gtest.h>

#include "tests/cache/synthetic_routes.h"
#include "tests/plan/machine.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::small_machine;
using testing::small_model;

TEST(Wish, ReadsSpeedsAndTimes) {
  EXPECT_EQ(parse_tok_s("10 tok/s"), 10);
  EXPECT_EQ(parse_tok_s("2.5t/s"), 2.5);
  EXPECT_EQ(parse_tok_s("7"), 7);
  EXPECT_EQ(parse_duration_ns("250ms"), 250'000'000);
  EXPECT_EQ(parse_duration_ns("0.25 s"), 250'000'000);
  for (const char* text : {"", "fast", "-3", "0", "10 tok/h", "nan", "1e999"})
    EXPECT_FALSE(parse_tok_s(text)) << text;
  for (const char* text : {"", "250", "-1ms", "1e300s", "5 m"})
    EXPECT_FALSE(parse_duration_ns(text)) << text;
}

class SmallestMachine : public ::testing::Test {
 protected:
  SmallestMachine() {
    options_.runtime.context = 256;
    options_.runtime.process_bytes = 1 << 20;
    options_.runtime.cache_policy = "lru";
    options_.warm_tokens = 0;
    options_.prompt_tokens = 1;
    options_.tokens = 40;
    const auto floor = floor_ram_bytes(model_, options_.runtime);
    for (uint64_t i = 0; i < 8; ++i) ram_.push_back(*floor + i * model_.experts_bytes() / 7);
    HardwareProfile slow = small_machine();
    slow.drives[0].bytes_per_s = 100e6;
    machines_ = {slow, with_drives_added(slow, 1)};
    log_ = random_routes(route_shape_of(model_.spec), options_.log_tokens(), 3);
  }
  CellsQuestion question() const { return {model_, ram_, machines_, log_, options_}; }

  PlannedModel model_ = small_model();
  ForecastOptions options_;
  std::vector<uint64_t> ram_;
  std::vector<HardwareProfile> machines_;
  RouteLog log_;
  Notices notices_;
};

// The answer is enough, and the next smaller RAM isn't; a second drive never needs more.
TEST_F(SmallestMachine, IsEnoughAndNoLarger) {
  const auto middle = forecast_cell(question(), ram_[4], machines_[0], notices_);
  ASSERT_TRUE(middle && middle->forecast);
  const Wish wish = {middle->forecast->decode_tok_s * .999, 0};
  const auto answers = smallest_machines(question(), wish, notices_);
  ASSERT_TRUE(answers) << answers.error().message;
  ASSERT_EQ(answers->size(), 2u);
  for (const Answer& answer : *answers) {
    ASSERT_TRUE(answer.cell && answer.cell->forecast);
    EXPECT_TRUE(wish.is_met_by(*answer.cell->forecast));
  }
  EXPECT_EQ((*answers)[0].cell->ram_bytes, ram_[4]);
  EXPECT_LE((*answers)[1].cell->ram_bytes, ram_[4]);
}

TEST_F(SmallestMachine, SaysWhatComesNearest) {
  const auto answers = smallest_machines(question(), {1e9, 0}, notices_);
  ASSERT_TRUE(answers);
  EXPECT_FALSE((*answers)[0].cell);
  ASSERT_TRUE((*answers)[0].best);
  EXPECT_EQ((*answers)[0].best->ram_bytes, ram_.back());
}

TEST_F(SmallestMachine, AWishMayBeOfTheTail) {
  const auto most = forecast_cell(question(), ram_.back(), machines_[0], notices_);
  ASSERT_TRUE(most && most->forecast);
  const auto answers = smallest_machines(question(), {0, most->forecast->p99_ns}, notices_);
  ASSERT_TRUE(answers);
  ASSERT_TRUE((*answers)[0].cell);
  EXPECT_LE((*answers)[0].cell->forecast->p99_ns, most->forecast->p99_ns);
}

}  // namespace
}  // namespace offstage
