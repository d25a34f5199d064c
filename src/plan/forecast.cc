#include "plan/forecast.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "base/histogram.h"
#include "plan/token_simulation.h"

namespace offstage {
namespace {

constexpr size_t kBlocks = 8;
constexpr double kStudent = 2.365;  // 95 %, of kBlocks - 1 degrees of freedom

// Half of the 95 % interval of the speed, if blocks of tokens are independent of each other.
double error_of(const std::vector<int64_t>& token_ns, double tok_s) {
  const size_t per_block = token_ns.size() / kBlocks;
  if (per_block == 0) return 0;
  std::array<double, kBlocks> mean_ns = {};
  double mean = 0, squares = 0;
  for (size_t b = 0; b < kBlocks; ++b) {
    for (size_t i = 0; i < per_block; ++i)
      mean_ns[b] += static_cast<double>(token_ns[b * per_block + i]);
    mean += mean_ns[b] / kBlocks;
  }
  for (const double ns : mean_ns) squares += (ns - mean) * (ns - mean);
  const double deviation = std::sqrt(squares / (kBlocks - 1) / kBlocks);
  return mean == 0 ? 0 : tok_s * kStudent * deviation / mean;
}

CauseTimes mean_of(const CauseTimes& sum, uint32_t tokens) {
  CauseTimes mean;
  for (size_t i = 0; i < kCauseCount; ++i) mean.ns[i] = sum.ns[i] / tokens;
  return mean;
}

double per_second(double n, int64_t ns) {
  return n * 1e9 / static_cast<double>(std::max<int64_t>(ns, 1));
}

Forecast measure(TokenSimulation& simulation, const RouteLog& log, const ForecastOptions& options) {
  const uint32_t prompt = options.prompt_tokens;
  uint64_t at = 0;
  simulation.preload();
  if (options.warm_tokens != 0) {
    simulation.run_prompt(log, at, prompt);
    at += prompt;
    for (uint32_t t = 0; t < options.warm_tokens; ++t) simulation.run_token(log, at++, prompt + t);
  }
  Forecast result;
  result.tokens = options.tokens;
  result.prefill_tok_s = per_second(prompt, simulation.run_prompt(log, at, prompt).total_ns());
  at += prompt;
  const TierCounters before = simulation.counters();
  const uint64_t bytes_before = simulation.bytes_read();
  Samples samples(options.tokens);
  std::vector<int64_t> token_ns;
  CauseTimes sum;
  for (uint32_t t = 0; t < options.tokens; ++t) {
    const CauseTimes times = simulation.run_token(log, at++, prompt + t);
    sum += times;
    token_ns.push_back(times.total_ns());
    samples.add(token_ns.back());
  }
  const uint64_t hits = simulation.counters().ram_hits - before.ram_hits;
  const uint64_t reads = simulation.counters().drive_reads - before.drive_reads;
  result.token = mean_of(sum, options.tokens);
  result.decode_tok_s = per_second(options.tokens, sum.total_ns());
  result.decode_tok_s_error = error_of(token_ns, result.decode_tok_s);
  result.p50_ns = samples.percentile(50);
  result.p95_ns = samples.percentile(95);
  result.p99_ns = samples.percentile(99);
  result.max_ns = samples.max();
  result.ram_hit_rate =
      hits + reads == 0 ? 1 : static_cast<double>(hits) / static_cast<double>(hits + reads);
  result.read_bytes_per_token =
      static_cast<double>(simulation.bytes_read() - bytes_before) / options.tokens;
  return result;
}

}  // namespace

RouteShape route_shape_of(const ModelSpec& spec) {
  RouteShape shape;
  shape.n_layers = spec.n_moe_layers();
  shape.n_experts = spec.router.n_experts;
  shape.n_used = spec.router.n_used;
  return shape;
}

std::string_view Forecast::bottleneck() const {
  const int64_t compute = token[Cause::kAttention] + token[Cause::kRouter] +
                          token[Cause::kExperts] + token[Cause::kOutput] + token[Cause::kLookahead];
  const int64_t drive = token[Cause::kWaitDrive], hash = token[Cause::kHash];
  const int64_t overhead = token.total_ns() - compute - drive - hash;
  const int64_t most = std::max({compute, drive, hash, overhead});
  if (most == drive) return "drive";
  if (most == compute) return "compute";
  return most == hash ? "hash" : "overhead";
}

Result<Forecast> forecast(const PlannedModel& model, const MemoryPlan& plan,
                          const HardwareProfile& profile, const RouteLog& routing,
                          const ForecastOptions& options, Notices& notices) {
  if (options.tokens == 0 || options.prompt_tokens == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "a forecast of {} tokens after a prompt of {}: at least 1 each is needed",
                      options.tokens, options.prompt_tokens);
  const RouteShape shape = route_shape_of(model.spec);
  if (shape.n_layers != 0) {
    CHECK_EQ(routing.shape.n_layers, shape.n_layers);
    CHECK_EQ(routing.shape.n_experts, shape.n_experts);
    CHECK_EQ(routing.shape.n_used, shape.n_used);
    CHECK_GE(routing.n_tokens(), options.log_tokens());
  }
  OFFSTAGE_TRY(const auto simulation,
               TokenSimulation::create({model, plan, profile, options, notices}));
  return measure(*simulation, routing, options);
}

}  // namespace offstage
