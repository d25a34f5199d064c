#include "plan/tier_trial.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "plan/cache_sweep.h"
#include "plan/model_shape.h"
#include "plan/needs.h"
#include "plan/route_generator.h"
#include "plan/token_simulation.h"

namespace offstage {
namespace {

constexpr uint32_t kLayers = 8;
constexpr uint32_t kWarmTokens = 256, kTokens = 64;
constexpr size_t kSweptBytes = 16u << 20;

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
  // A token's weights go through the caches, and what the tier knows of a layer is gone from them
  // when the layer comes again.
  const CacheSweep weights(kSweptBytes);
  std::vector<int64_t> times_ns;
  for (uint32_t t = kWarmTokens; t < kWarmTokens + kTokens; ++t) {
    weights.pass();
    const int64_t begin_ns = clock.now_ns();
    tokens.run_token(log, t, t);
    times_ns.push_back(clock.now_ns() - begin_ns);
  }
  // The middle token's, so that what others take of the CPU meanwhile isn't counted.
  std::nth_element(times_ns.begin(), times_ns.begin() + kTokens / 2, times_ns.end());
  return {times_ns[kTokens / 2] * kTokens, tokens.counters().drive_reads - reads};
}

}  // namespace

TierTrial try_tier(const Clock& clock) {
  Result<ModelShape> shape = find_shape("qwen3-30b-a3b");
  CHECK(shape.has_value());
  CHECK_EQ(shape->n_experts, kTriedExperts);
  shape->n_layers = kLayers;
  const Result<ModelSpec> spec = spec_of(*shape);
  CHECK(spec.has_value());
  const PlannedModel model = imagine_model(*spec, false, QuantMix::kQ4_K_M);
  ForecastOptions options;
  const Result<uint64_t> floor = floor_ram_bytes(model, options.runtime);
  CHECK(floor.has_value());
  const auto passed = [&](uint64_t experts_bytes) {
    const Result<MemoryPlan> plan = plan_for(model, options.runtime, *floor + experts_bytes);
    CHECK(plan.has_value());
    return run_tokens(model, *plan, clock);
  };
  const Passed whole = passed(2 * model.experts_bytes());
  const Passed most = passed(model.experts_bytes() / 4 * 3);
  const Passed few = passed(model.experts_bytes() / 4);
  CHECK_EQ(whole.reads, 0u);
  CHECK_GT(few.reads, most.reads);
  constexpr int64_t kEvents = int64_t{kTokens} * kLayers;
  const int64_t miss_ns =
      std::max<int64_t>(few.ns - most.ns, 0) / static_cast<int64_t>(few.reads - most.reads);
  const int64_t without_reads_ns = most.ns - miss_ns * static_cast<int64_t>(most.reads);
  return {.event_ns = whole.ns / kEvents,
          .policy_ns = std::max<int64_t>(without_reads_ns - whole.ns, 0) / kEvents,
          .miss_ns = miss_ns};
}

}  // namespace offstage
