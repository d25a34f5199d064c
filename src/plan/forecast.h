// What a model will do on a machine: its tokens, one after another, under a virtual clock.
//
// The run's own memory plan, cache, scheduler and look-ahead over simulated drives; arithmetic and
// hashing are the profile's numbers (token_simulation.h). Nothing is allocated for weights, so a
// model of a terabyte is forecast on a laptop.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/cause_timer.h"
#include "base/notices.h"
#include "base/result.h"
#include "cache/route_log.h"
#include "plan/drawn_foresight.h"
#include "plan/hardware_profile.h"
#include "plan/planned_model.h"
#include "runtime/memory_plan.h"
#include "runtime/options.h"

namespace offstage {

struct ForecastOptions {
  RuntimeOptions runtime;  // context, KV types, chunk, policy, prefetch
  // A prompt and so many tokens before anything counts, as in `bench`; 0: a first run's.
  uint32_t warm_tokens = 64;
  uint32_t tokens = 256;
  uint32_t prompt_tokens = 512;
  // Share of the next-layer gate's guesses that are called (guess_recall of a run's JSON). 0: no
  // look-ahead in decode.
  GuessAccuracy guess_accuracy;
  uint64_t seed = 1;
  bool samples = true;               // false: tokens are given (a bench)
  std::optional<DriveChoice> drive;  // how drives are asked; none: as the profile's probe chose

  uint64_t log_tokens() const {  // that a forecast takes from its log
    return (warm_tokens == 0 ? 1u : 2u) * uint64_t{prompt_tokens} + warm_tokens + tokens;
  }
};

struct Forecast {
  uint32_t tokens = 0;
  double decode_tok_s = 0;
  double decode_tok_s_error = 0;  // half of its 95 % interval, by how parts of it differ
  double prefill_tok_s = 0;
  int64_t p50_ns = 0, p95_ns = 0, p99_ns = 0, max_ns = 0;  // per token, by nearest rank
  double ram_hit_rate = 0;                                 // of the calls; 1 in a dense model
  double read_bytes_per_token = 0;
  CauseTimes token;  // mean

  // "compute", "drive", "hash", "overhead": what takes most of a token.
  std::string_view bottleneck() const;
};

// `plan`: of this model within the budget that is asked about (needs.h). `routing`: of the model's
// shape, at least log_tokens() (CHECK); not looked at in a dense model. Errors: the policy's name,
// no tokens or no prompt asked for, no room for a buffer's addresses.
Result<Forecast> forecast(const PlannedModel& model, const MemoryPlan& plan,
                          const HardwareProfile& profile, const RouteLog& routing,
                          const ForecastOptions& options, Notices& notices);

// What a recording for this model has to look like.
RouteShape route_shape_of(const ModelSpec& spec);

}  // namespace offstage
