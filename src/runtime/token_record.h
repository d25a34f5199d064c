// What one token cost: wall time split by cause, and what the tiers did for it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/cause_timer.h"
#include "base/process_load.h"
#include "base/trace.h"
#include "base/types.h"
#include "io/drive_temperature.h"

namespace offstage {

constexpr std::array<int16_t, kDrivesMax> no_temperatures() {
  std::array<int16_t, kDrivesMax> none = {};
  none.fill(kNoTemperature);
  return none;
}

struct TokenRecord {
  TokenId token = kNoToken;
  int64_t began_ns = 0;  // the runtime's clock
  int64_t wall_ns = 0;   // the causes' sum: from the end of the token before to the end of this
  CauseTimes causes;
  uint64_t vram_hits = 0;  // experts called and computed by the device
  uint64_t ram_hits = 0;   // experts called and resident
  uint64_t drive_reads = 0;
  uint64_t bytes_read = 0;
  uint64_t prefetched = 0;  // of drive_reads: guessed, and started before they were called
  uint64_t prefetch_useful_bytes = 0;  // of experts that were guessed and called
  uint64_t prefetch_wasted_bytes = 0;  // of bytes_read: nobody called them
  TokenTrace trace;
  ProcessLoad load;
  std::array<int16_t, kDrivesMax> drive_celsius = no_temperatures();  // at its end
};

// One generation: the prompt's cost and every token's.
struct GenerationRecord {
  uint32_t prompt_tokens = 0;
  TokenRecord prefill;              // token: none
  std::vector<TokenRecord> tokens;  // reserved for max_tokens at start

  CauseTimes decode_causes() const {
    CauseTimes sum;
    for (const TokenRecord& token : tokens) sum += token.causes;
    return sum;
  }
  int64_t decode_ns() const { return decode_causes().total_ns(); }
};

}  // namespace offstage
