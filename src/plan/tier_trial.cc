#include "plan/tier_trial.h"

#include <algorithm>

#include "base/check.h"
#include "plan/model_shape.h"
#include "plan/needs.h"
#include "plan/route_generator.h"
#include "plan/token_simulation.h"

namespace offstage {
namespace {

constexpr uint32_t kLayers = 8;
constexpr uint32_t kWarmTokens = 32, kTokens = 64;

// So fast that nothing but bookkeeping is left.
HardwareProfile idle_machine() {
  HardwareProfile profile;
  profile.threads = 1;
  profile.ram_read_bytes_per_s = profile.hash_bytes_per_s = 1e15;
  profile.kernels = {{TensorType::kQ4_K, 1e15, 1e15}};
  DriveSpeed& drive = profile.drives.emplace_back();
  drive.bytes_per_s = 1e12;
  return profile;
}

struct Passed {
  int64_t ns = 0;
  uint64_t reads = 0;
};

// Of so many tokens, after others.
Passed run_tokens(const PlannedModel& model, const MemoryPlan& plan, const Clock& clock) {
  const HardwareProfile profile = idle_machine();
  const ForecastOptions options;
  Notices unheard;
  const auto simulation = TokenSimulation::create({model, plan, profile, options, unheard});
  CHECK(simulation.has_value());
  TokenSimulation& tokens = **simulation;
  const RouteLog log =
      RouteGenerator(route_shape_of(model.spec), RouteHabits(), 1).draw(kWarmTokens + kTokens);
  tokens.preload();
  for (uint32_t t = 0; t < kWarmTokens; ++t) tokens.run_token(log, t, t);
  const uint64_t reads = tokens.counters().drive_reads;
  const int64_t begin_ns = clock.now_ns();
  for (uint32_t t = kWarmTokens; t < kWarmTokens + kTokens; ++t) tokens.run_token(log, t, t);
  return {clock.now_ns() - begin_ns, tokens.counters().drive_reads - reads};
}

}  // namespace

TierTrial try_tier(const Clock& clock) {
  Result<ModelShape> shape = find_shape("qwen3-30b-a3b");
  CHECK(shape.has_value());
  shape->n_layers = kLayers;
  const Result<ModelSpec> spec = spec_of(*shape);
  CHECK(spec.has_value());
  const PlannedModel model = imagine_model(*spec, false, QuantMix::kQ4_K_M);
  ForecastOptions options;
  const Result<uint64_t> floor = floor_ram_bytes(model, options.runtime);
  CHECK(floor.has_value());
  const Result<MemoryPlan> whole =
      plan_for(model, options.runtime, *floor + 2 * model.experts_bytes());
  const Result<MemoryPlan> quarter =
      plan_for(model, options.runtime, *floor + model.experts_bytes() / 4);
  CHECK(whole.has_value());
  CHECK(quarter.has_value());
  const Passed all_there = run_tokens(model, *whole, clock);
  const Passed some_read = run_tokens(model, *quarter, clock);
  CHECK_EQ(all_there.reads, 0u);
  CHECK_GT(some_read.reads, 0u);
  return {
      all_there.ns / (int64_t{kTokens} * kLayers),
      std::max<int64_t>(some_read.ns - all_there.ns, 0) / static_cast<int64_t>(some_read.reads)};
}

}  // namespace offstage
