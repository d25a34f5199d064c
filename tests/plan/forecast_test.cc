#include "plan/forecast.h"

#include <gtest/gtest.h>

#include "cache/replay.h"
#include "plan/cells.h"
#include "plan/needs.h"
#include "plan/tier_trial.h"
#include "plan/token_cost.h"
#include "tests/cache/synthetic_routes.h"
#include "tests/plan/machine.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::small_machine;
using testing::small_model;

constexpr RouteShape kShape = {.n_layers = 4, .n_experts = 16, .n_used = 2};

// A first run of a prompt of one token: nothing but decode.
ForecastOptions small_options() {
  ForecastOptions options;
  options.runtime.context = 256;
  options.runtime.process_bytes = 1 << 20;
  options.runtime.cache_policy = "lru";
  options.warm_tokens = 0;
  options.prompt_tokens = 1;
  options.tokens = 99;
  return options;
}

// With room for half of the experts.
MemoryPlan half_plan(const PlannedModel& model, const ForecastOptions& options) {
  const auto floor = floor_ram_bytes(model, options.runtime);
  EXPECT_TRUE(floor);
  const auto plan = plan_for(model, options.runtime, *floor + model.experts_bytes() / 2);
  EXPECT_TRUE(plan);
  EXPECT_FALSE(plan->all_resident(model.layout));
  return *plan;
}

MemoryPlan whole_plan(const PlannedModel& model, const ForecastOptions& options) {
  const auto plan = plan_for(model, options.runtime, 1ull << 30);
  EXPECT_TRUE(plan);
  EXPECT_TRUE(plan->all_resident(model.layout));
  return *plan;
}

Forecast forecast_of(const PlannedModel& model, const MemoryPlan& plan,
                     const HardwareProfile& machine, const ForecastOptions& options) {
  Notices notices;
  const RouteLog log = random_routes(kShape, options.log_tokens(), 5);
  const auto result = forecast(model, plan, machine, log, options, notices);
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  return result ? *result : Forecast();
}

Forecast forecast_of(const MemoryPlan& plan, const HardwareProfile& machine,
                     const ForecastOptions& options) {
  return forecast_of(small_model(), plan, machine, options);
}

TEST(Forecast, ResidentExpertsCostArithmeticAlone) {
  const PlannedModel model = small_model();
  ForecastOptions options = small_options();
  options.tokens = 1;
  const Forecast f = forecast_of(whole_plan(model, options), small_machine(), options);
  EXPECT_EQ(f.ram_hit_rate, 1);
  EXPECT_EQ(f.read_bytes_per_token, 0);
  EXPECT_EQ(f.token[Cause::kWaitDrive], 0);
  Notices notices;
  const TokenCost cost(model, small_machine(), KvType::kF16, KvType::kF16, notices);
  double token_ns = cost.output_ns() + cost.sample_ns();
  const std::vector<uint32_t> one_row_each = {1, 1};
  for (uint32_t l = 0; l < 4; ++l)
    token_ns += cost.attention_ns(l, 1, 1) + cost.router_ns(l, 1) + cost.ffn_ns(l, 1) +
                cost.batch_ns(l, one_row_each) + cost.event_ns(0, false);
  EXPECT_NEAR(static_cast<double>(f.max_ns), token_ns, 20);  // parts are whole ns
  // The weights of a token at the kernel's 8 GB/s are nearly all of it.
  const double weights = 4 * 2 * static_cast<double>(model.expert_bytes());
  EXPECT_GT(token_ns, weights / 8);
  EXPECT_EQ(f.bottleneck(), "compute");
}

// The residents of a forecast are replay()'s: the same policy, the same events, the run's tier.
TEST(Forecast, HitsAreThoseOfTheReplay) {
  const PlannedModel model = small_model();
  const ForecastOptions options = small_options();
  const MemoryPlan plan = half_plan(model, options);
  ReplayOptions replayed;
  replayed.kept_per_layer = plan.slots.kept_per_layer;
  replayed.skipped = 1;
  const RouteLog log = random_routes(kShape, 100, 5);
  const double expected = replay(log, replayed, *make_lru_policy(4, 16)).total().hit_rate();
  const Forecast f = forecast_of(plan, small_machine(), options);
  EXPECT_DOUBLE_EQ(f.ram_hit_rate, expected);
  EXPECT_LT(f.ram_hit_rate, 1);
  // Each miss is one expert, in whole sectors.
  const double missed = (1 - expected) * kShape.calls_per_token();
  const auto expert = static_cast<double>(model.expert_bytes());
  EXPECT_GE(f.read_bytes_per_token, missed * expert * .999);
  EXPECT_LE(f.read_bytes_per_token, missed * (expert + 6 * 4096) * 1.001);
}

TEST(Forecast, CausesSumToTheToken) {
  const ForecastOptions options = small_options();
  const Forecast f = forecast_of(half_plan(small_model(), options), small_machine(), options);
  const double mean_ns = 1e9 / f.decode_tok_s;
  EXPECT_NEAR(static_cast<double>(f.token.total_ns()), mean_ns, kCauseCount);
  EXPECT_GT(f.token[Cause::kWaitDrive], 0);
  EXPECT_GT(f.token[Cause::kHash], 0);
  EXPECT_EQ(f.token[Cause::kLookahead], 0);
  EXPECT_LE(f.p50_ns, f.p95_ns);
  EXPECT_LE(f.p95_ns, f.p99_ns);
  EXPECT_LE(f.p99_ns, f.max_ns);
  EXPECT_GT(f.decode_tok_s_error, 0);
  EXPECT_LT(f.decode_tok_s_error, f.decode_tok_s / 2);
}

// All of what a token misses goes through a drive of so many bytes per second.
TEST(Forecast, ASlowDriveIsTheBottleneckAndASecondOneHelps) {
  ForecastOptions options = small_options();
  options.prompt_tokens = 64;
  HardwareProfile slow = small_machine();
  slow.drives[0].bytes_per_s = 20e6;
  const PlannedModel model = small_model();
  const Forecast one = forecast_of(half_plan(model, options), slow, options);
  EXPECT_EQ(one.bottleneck(), "drive");
  const double drive_ns = one.read_bytes_per_token * 1e9 / 20e6;
  EXPECT_NEAR(1e9 / one.decode_tok_s, drive_ns, drive_ns / 20);
  const PlannedModel striped = over_drives(model, 2);
  const Forecast two =
      forecast_of(striped, half_plan(striped, options), with_drives_added(slow, 1), options);
  EXPECT_NEAR(two.decode_tok_s / one.decode_tok_s, 2, .2);
  EXPECT_GT(two.prefill_tok_s, 1.6 * one.prefill_tok_s);
}

TEST(Forecast, GuessesThatAreRightHideReading) {
  ForecastOptions options = small_options();
  HardwareProfile machine = small_machine();
  machine.dispatch_ns = 200'000;  // time to read in
  const MemoryPlan plan = half_plan(small_model(), options);
  const Forecast without = forecast_of(plan, machine, options);
  options.guess_accuracy = .9;
  const Forecast with = forecast_of(plan, machine, options);
  EXPECT_LT(with.token[Cause::kWaitDrive], without.token[Cause::kWaitDrive] / 2);
  EXPECT_GT(with.token[Cause::kLookahead], 0);
  options.guess_accuracy = .1;  // Lookahead finds out and leaves it
  const Forecast wrong = forecast_of(plan, machine, options);
  EXPECT_LT(wrong.read_bytes_per_token, 1.1 * without.read_bytes_per_token);
}

TEST(GuessAccuracy, IsThatOfItsDistanceThenFallsOn) {
  const GuessAccuracy powers = .9;
  EXPECT_DOUBLE_EQ(powers.at(1), .9);
  EXPECT_NEAR(powers.at(3), .729, 1e-12);
  const GuessAccuracy measured({.9, .8, .4});
  EXPECT_DOUBLE_EQ(measured.at(2), .8);
  EXPECT_DOUBLE_EQ(measured.at(3), .4);
  EXPECT_DOUBLE_EQ(measured.at(5), .1);
  EXPECT_FALSE(GuessAccuracy().guesses());
}

// What is wrongly named is what other tokens call, and mostly lies in RAM.
TEST(DrawnForesight, IsWrongWithExpertsThatAreOftenCalled) {
  RouteLog log;
  log.shape = {.n_layers = 1, .n_experts = 64, .n_used = 2};
  for (uint16_t token = 0; token < 400; ++token) {
    const uint16_t first = token % 8;
    log.experts.insert(log.experts.end(), {first, static_cast<uint16_t>((first + 1) % 8)});
    log.tokens.push_back(-1);
  }
  DrawnForesight foresight(.5, 1);
  uint32_t right = 0;
  for (uint32_t token = 0; token < 400; ++token) {
    foresight.look_at(log, token);
    const auto named = foresight.foretold(LayerIndex(0), 0, 0, 1);
    ASSERT_TRUE(named);
    EXPECT_LT(named->value, 8u);
    right += named->value == log.calls(token, 0)[0] ? 1 : 0;
  }
  EXPECT_NEAR(right, 200, 40);
}

// A thread that slept for a read isn't awake at once.
TEST(Forecast, WakingTakesItsTime) {
  const ForecastOptions options = small_options();
  HardwareProfile machine = small_machine();
  const MemoryPlan plan = half_plan(small_model(), options);
  const Forecast at_once = forecast_of(plan, machine, options);
  machine.wake_ns = 40'000;
  const Forecast late = forecast_of(plan, machine, options);
  const int64_t more_ns = late.token[Cause::kWaitDrive] - at_once.token[Cause::kWaitDrive];
  EXPECT_GT(more_ns, machine.wake_ns);  // one layer of four misses something at least
  EXPECT_LE(more_ns, 8 * machine.wake_ns);
}

// Workers who had nothing to do while a read was waited for hash it later.
TEST(Forecast, SleepersHashLater) {
  const ForecastOptions options = small_options();
  HardwareProfile machine = small_machine();
  machine.drives[0].latency_ns = 2 * ThreadPool::kSpinNs;
  const MemoryPlan plan = half_plan(small_model(), options);
  const Forecast awake = forecast_of(plan, machine, options);
  machine.asleep_ns = 40'000;
  const Forecast asleep = forecast_of(plan, machine, options);
  const int64_t more_ns = asleep.token[Cause::kHash] - awake.token[Cause::kHash];
  EXPECT_GT(more_ns, machine.asleep_ns);
  EXPECT_LE(more_ns, 24 * machine.asleep_ns);  // each matrix of four layers is waited for
  machine.drives[0].latency_ns = 0;
  machine.drives[0].bytes_per_s = 1e11;
  const Forecast no_wait = forecast_of(plan, machine, options);
  machine.asleep_ns = 0;
  EXPECT_EQ(no_wait.token[Cause::kHash], forecast_of(plan, machine, options).token[Cause::kHash]);
}

// Nothing is computed while the rest of a layer's misses come.
TEST(Forecast, ADriveThatAnswersTogetherIsWaitedForLonger) {
  const ForecastOptions options = small_options();
  HardwareProfile machine = small_machine();
  const MemoryPlan plan = half_plan(small_model(), options);
  const Forecast each = forecast_of(plan, machine, options);
  machine.drives[0].answers_together = true;
  const Forecast together = forecast_of(plan, machine, options);
  EXPECT_GT(together.token[Cause::kWaitDrive], each.token[Cause::kWaitDrive]);
  EXPECT_EQ(together.ram_hit_rate, each.ram_hit_rate);
}

// Bookkeeping is dearer where experts go, by their number, and where they are read; only there.
TEST(Forecast, MissesCostBookkeeping) {
  ForecastOptions options = small_options();
  HardwareProfile machine = small_machine();
  machine.miss_ns = 500'000;
  machine.policy_ns = 80'000;
  const MemoryPlan plan = half_plan(small_model(), options);
  const Forecast f = forecast_of(plan, machine, options);
  const double reads = (1 - f.ram_hit_rate) * kShape.calls_per_token();
  const double hidden_ns = 4 * (100 + 300);  // dispatch and event of each layer
  const double policy_ns = 4 * 80e3 * 16 / kTriedExperts;
  EXPECT_NEAR(static_cast<double>(f.token[Cause::kCache]), 500e3 * reads + policy_ns + hidden_ns,
              50);
  options.tokens = 1;
  const Forecast whole = forecast_of(whole_plan(small_model(), options), machine, options);
  EXPECT_NEAR(static_cast<double>(whole.token[Cause::kCache]), hidden_ns, 50);
}

// What a layer took in a probe stands for all that is counted where a profile doesn't know.
TEST(Forecast, ALayersMeasureReplacesItsHandOuts) {
  const PlannedModel model = small_model();
  ForecastOptions options = small_options();
  options.tokens = 1;
  HardwareProfile machine = small_machine();
  const MemoryPlan plan = whole_plan(model, options);
  const Forecast counted = forecast_of(plan, machine, options);
  machine.attention_ns = 70'000;
  machine.router_ns = 20'000;
  machine.experts_ns = 50'000;
  const Forecast measured = forecast_of(plan, machine, options);
  machine.dispatch_ns = 0;
  const Forecast still = forecast_of(plan, machine, options);
  const auto more_ns = [](const Forecast& a, const Forecast& b, Cause cause) {
    return static_cast<double>(a.token[cause] - b.token[cause]);
  };
  // Of 4 layers, with hand-outs of 100 ns: 7, 2 and 3 of them, and that of the sum.
  EXPECT_NEAR(more_ns(measured, counted, Cause::kAttention), 4 * (70e3 - 700), 20);
  EXPECT_NEAR(more_ns(measured, counted, Cause::kRouter), 4 * (20e3 - 200), 20);
  EXPECT_NEAR(more_ns(measured, counted, Cause::kExperts), 4 * (50e3 - 300), 20);
  EXPECT_NEAR(more_ns(measured, counted, Cause::kCache), -4 * 100, 20);
  EXPECT_NEAR(more_ns(still, measured, Cause::kAttention), 0, 20);
  // Nor does the measure hold where all that a token reads stays in a cache.
  machine.dispatch_ns = 100;
  machine.cache_bytes = model.weights_bytes;
  const Forecast cached = forecast_of(plan, machine, options);
  EXPECT_NEAR(more_ns(cached, counted, Cause::kAttention), 0, 20);
  EXPECT_NEAR(more_ns(cached, counted, Cause::kCache), 0, 20);
}

// What fits is read before the first token; a first prompt and one after others differ.
TEST(Forecast, AWarmCacheReadsLess) {
  ForecastOptions options = small_options();
  options.tokens = 30;
  options.prompt_tokens = 16;
  const MemoryPlan plan = half_plan(small_model(), options);
  const Forecast cold = forecast_of(plan, small_machine(), options);
  options.warm_tokens = 60;
  const Forecast warm = forecast_of(plan, small_machine(), options);
  EXPECT_GT(warm.prefill_tok_s, cold.prefill_tok_s);
}

TEST(Forecast, IsTheSameForTheSameSeed) {
  ForecastOptions options = small_options();
  HardwareProfile machine = small_machine();
  machine.drives[0].jitter_ns = 100'000;
  const MemoryPlan plan = half_plan(small_model(), options);
  const Forecast a = forecast_of(plan, machine, options), b = forecast_of(plan, machine, options);
  EXPECT_EQ(a.p99_ns, b.p99_ns);
  EXPECT_EQ(a.decode_tok_s, b.decode_tok_s);
  options.seed = 2;
  EXPECT_NE(forecast_of(plan, machine, options).decode_tok_s, a.decode_tok_s);
}

TEST(Forecast, ADenseModelNeedsNoRouting) {
  const auto spec = spec_of(*find_shape("dense-7b"));
  const PlannedModel model = imagine_model(*spec, false, QuantMix::kQ8_0);
  const ForecastOptions options = small_options();
  const auto plan = plan_for(model, options.runtime, 16ull << 30);
  ASSERT_TRUE(plan);
  Notices notices;
  const auto f = forecast(model, *plan, small_machine(), {}, options, notices);
  ASSERT_TRUE(f) << f.error().message;
  // 6.6 G weights of 34/32 bytes at 8 GB/s, and 50 positions of KV.
  EXPECT_NEAR(f->decode_tok_s, 8e9 / (6.607e9 * 34 / 32), .03);
  EXPECT_EQ(f->bottleneck(), "compute");
  EXPECT_EQ(f->ram_hit_rate, 1);
}

TEST(Cells, AreRamByDrives) {
  const PlannedModel model = small_model();
  const ForecastOptions options = small_options();
  const auto floor = floor_ram_bytes(model, options.runtime);
  ASSERT_TRUE(floor);
  const std::vector<uint64_t> ram = {*floor / 2, *floor + model.experts_bytes() / 2, 1ull << 30};
  const std::vector<HardwareProfile> machines = {small_machine(),
                                                 with_drives_added(small_machine(), 1)};
  const RouteLog log = random_routes(kShape, options.log_tokens(), 5);
  Notices notices;
  const auto cells = forecast_cells({model, ram, machines, log, options}, notices);
  ASSERT_TRUE(cells) << cells.error().message;
  ASSERT_EQ(cells->size(), 6u);
  EXPECT_FALSE((*cells)[0].forecast);
  EXPECT_EQ((*cells)[0].fit, Fit::kBelowFloor);
  EXPECT_EQ((*cells)[2].drives, 1u);
  EXPECT_EQ((*cells)[3].drives, 2u);
  ASSERT_TRUE((*cells)[2].forecast && (*cells)[5].forecast);
  EXPECT_EQ((*cells)[5].fit, Fit::kResident);
  EXPECT_GT((*cells)[5].forecast->decode_tok_s, (*cells)[2].forecast->decode_tok_s);
  const auto unknown = forecast_cells({model, ram, {}, log, options}, notices);
  ASSERT_TRUE(unknown);
  ASSERT_EQ(unknown->size(), 3u);
  EXPECT_FALSE((*unknown)[2].forecast);
}

// As --pace does it in a run: what the drive had idle while the CPU computed it catches up with, up
// to a millisecond, where a drive that is as slow itself has lost it. In the long run neither reads
// more than it can.
TEST(Forecast, APacedDriveCatchesUp) {
  constexpr uint64_t kPace = 500'000'000;
  const ForecastOptions options = small_options();
  const MemoryPlan plan = half_plan(small_model(), options);
  const HardwareProfile machine = small_machine();
  HardwareProfile slow = machine;
  slow.drives[0].bytes_per_s = kPace;
  const Forecast lost = forecast_of(plan, slow, options);
  const Forecast paced = forecast_of(plan, with_drives_paced(machine, kPace), options);
  EXPECT_EQ(paced.read_bytes_per_token, lost.read_bytes_per_token);
  const double drive_ns = paced.read_bytes_per_token * 1e9 / kPace;
  const double compute_ns =
      static_cast<double>(lost.token.total_ns() - lost.token[Cause::kWaitDrive]);
  EXPECT_GT(compute_ns, .1 * drive_ns);
  EXPECT_GT(1e9 / lost.decode_tok_s, drive_ns + .7 * compute_ns);
  EXPECT_LT(1e9 / paced.decode_tok_s, drive_ns + .3 * compute_ns);
  EXPECT_GT(1e9 / paced.decode_tok_s, .95 * drive_ns);
}

TEST(Cells, APacedDriveIsNoFaster) {
  const HardwareProfile machine = small_machine();
  const double own = machine.drives[0].bytes_per_s;
  EXPECT_EQ(machine.drive_bytes_per_s(0), own);
  const HardwareProfile paced = with_drives_paced(machine, 50'000'000);
  EXPECT_EQ(paced.drive_bytes_per_s(0), 50e6);
  EXPECT_EQ(with_drives_paced(machine, 1ull << 40).drive_bytes_per_s(0), own);
  EXPECT_EQ(with_drives_paced(paced, 1ull << 40).drive_bytes_per_s(0), 50e6);
}

}  // namespace
}  // namespace offstage
