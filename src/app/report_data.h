// What --report shows, as the JSON that lies in the page: schema "offstage.report/1".
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/notices.h"
#include "runtime/ceilings.h"
#include "runtime/runtime.h"
#include "runtime/spikes.h"
#include "runtime/token_record.h"

namespace offstage {

inline constexpr const char* kReportSchema = "offstage.report/1";

// One run, or one row of a bench.
struct ReportRun {
  std::string name = {};
  // One per token; of a test of prompts alone, one per prompt.
  std::span<const TokenRecord> records = {};
  bool are_prompts = false;
  uint32_t repetitions = 1;  // `records` are so many runs of equal length, one after another
  double ttft_ms = 0, tokens_per_s = 0;
  const Ceilings& ceilings;
  const SpikeReport& spikes;  // none of prompts
  const Notices& notices;
};

// Of the runtime that ran it, before it runs anything else. Replays the routing that it remembers
// (--record layer and deeper) in caches of other sizes. Errors: the cache policy's.
Result<nlohmann::ordered_json> report_run(Runtime& runtime, const ReportRun& run);

// The whole: this process's command line, its machine, and what report_run() made.
nlohmann::ordered_json report_json(std::vector<nlohmann::ordered_json> runs);

}  // namespace offstage
