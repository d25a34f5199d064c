#include "plan/tier_trial.h"

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

}  // namespace

int64_t measure_event_ns(const Clock& clock) {
  Result<ModelShape> shape = find_shape("qwen3-30b-a3b");
  CHECK(shape.has_value());
  shape->n_layers = kLayers;
  const Result<ModelSpec> spec = spec_of(*shape);
  CHECK(spec.has_value());
  const PlannedModel model = imagine_model(*spec, false, QuantMix::kQ4_K_M);
  ForecastOptions options;
  const Result<uint64_t> floor = floor_ram_bytes(model, options.runtime);
  CHECK(floor.has_value());
  const Result<MemoryPlan> plan =
      plan_for(model, options.runtime, *floor + model.experts_bytes() / 2);
  CHECK(plan.has_value());
  const HardwareProfile profile = idle_machine();
  Notices unheard;
  const auto simulation = TokenSimulation::create({model, *plan, profile, options, unheard});
  CHECK(simulation.has_value());
  const RouteLog log =
      RouteGenerator(route_shape_of(*spec), RouteHabits(), 1).draw(kWarmTokens + kTokens);
  for (uint32_t t = 0; t < kWarmTokens; ++t) (*simulation)->run_token(log, t, t);
  const int64_t begin_ns = clock.now_ns();
  for (uint32_t t = kWarmTokens; t < kWarmTokens + kTokens; ++t)
    (*simulation)->run_token(log, t, t);
  return (clock.now_ns() - begin_ns) / (int64_t{kTokens} * kLayers);
}

}  // namespace offstage
