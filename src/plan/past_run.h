// A run that has been, held against what the planner would have said of exactly it.
//
// In: the run's settings, plan and routing, how often its gate guessed right, and what every token
// took. Out: the forecast of the same tokens, beside it what was measured. The routing is the run's
// own, so an error is the profile's or the simulation's, not one of guessing what is called.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/cause_timer.h"
#include "base/notices.h"
#include "base/result.h"
#include "cache/route_log.h"
#include "cache/usage.h"
#include "plan/drawn_foresight.h"
#include "plan/hardware_profile.h"
#include "runtime/memory_plan.h"
#include "runtime/options.h"
#include "runtime/runtime.h"

namespace offstage {

struct PastToken {
  int64_t wall_ns = 0;
  uint64_t ram_hits = 0, drive_reads = 0;
};

// A prompt and the tokens after it.
struct PastGeneration {
  uint32_t position = 0;  // tokens in front of the prompt
  uint32_t prompt_tokens = 0;
  int64_t prefill_ns = 0;
  std::vector<PastToken> tokens;
  bool counts = true;  // false: it only fills the cache (a warm-up)
};

struct PastRun {
  std::shared_ptr<const ModelFile> file;
  RuntimeOptions options;
  MemoryPlan plan;
  DriveChoice drive;
  std::vector<std::string> drive_names;  // as the profile has them (io/drive_name.h)
  std::vector<uint32_t> drive_of_file;
  uint32_t threads = 0;
  bool samples = true;           // false: its tokens were given (a bench)
  GuessAccuracy guess_accuracy;  // of the gate; 0: no look-ahead
  ExpertUsage usage;             // what was known before the first row
  RouteLog routes;               // the first rows, in order; maybe not all
  std::vector<PastGeneration> generations;
};

struct RunFigures {
  double prefill_tok_s = 0, decode_tok_s = 0;  // 0: no such token
  double ram_hit_rate = 1;                     // of decode's calls
  int64_t p50_ns = 0, p95_ns = 0, p99_ns = 0, max_ns = 0;
};

struct Hindsight {
  uint32_t prompt_tokens = 0, tokens = 0;  // compared
  RunFigures forecast, measured;           // of the same ones
  CauseTimes token;                        // the forecast's, mean
};

// Goes through the run from its start until its end, the log's, or `go_on` says no, which is asked
// before every forward. Errors: kDeadline if that left nothing to compare; the policy's name.
Result<Hindsight> look_back(const PastRun& run, const HardwareProfile& profile,
                            const std::function<bool()>& go_on, Notices& notices);

}  // namespace offstage
