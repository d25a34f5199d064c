// Why the slow tokens were slow: each against the typical token of its run, in words for people.
//
// A token is slow from kSlowRatio times the median wall time on. Its excess over the median is
// split by cause; the group with the largest excess decides, and the record says more exactly what
// happened: one read that came late, more experts that weren't in RAM, a drive that was slower than
// usual, a CPU that others used. Pure functions over records.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/token_record.h"

namespace offstage {

inline constexpr double kSlowRatio = 1.25;

enum class SpikeCause : uint8_t {
  kMisses,        // more experts than usual weren't in RAM
  kLateRead,      // one read, asked for in time, was long with kernel and drive
  kDriveQueue,    // one read stood in our queue behind others
  kSlowDrive,     // as many reads as usual, each slower
  kLessHidden,    // as many, none slower: less of them went by while something was computed
  kReadRetried,   // a read failed or came short and was asked for again
  kCpuTaken,      // ready to run without a CPU, or computing took longer than the CPU time it got
  kCpuThrottled,  // the cgroup's CPU quota was used up
  kPageFaults,    // memory had to be fetched while computing
  kCompute,       // more computing
  kHash,          // verifying what was read
  kGpu,           // the device took longer for its experts, or copies to it did
  kOther,         // sampling, bookkeeping, and what the caller did between tokens
};
inline constexpr size_t kSpikeCauses = 13;
std::string_view spike_cause_name(SpikeCause cause);  // published in JSON

// What would have removed it.
enum class Remedy : uint8_t { kMoreRam, kFasterDrive, kSecondDrive, kNothing };
std::string_view remedy_name(Remedy remedy);  // published in JSON

struct Spike {
  uint32_t token = 0;  // index into the records
  int64_t wall_ns = 0;
  int64_t excess_ns = 0;  // over the median token
  uint32_t layer = kNoLayer;
  SpikeCause cause = SpikeCause::kOther;
  Remedy remedy = Remedy::kNothing;
  std::string sentence;
};

// Slow tokens of one cause.
struct SpikeClass {
  SpikeCause cause = SpikeCause::kOther;
  Remedy remedy = Remedy::kNothing;
  uint32_t tokens = 0;
  int64_t excess_ns = 0;
};

struct SpikeReport {
  int64_t median_ns = 0;
  std::vector<Spike> slowest;       // at most n, slowest first
  std::vector<SpikeClass> classes;  // of all slow tokens, largest excess first
};

// `drives`: names by index.
SpikeReport explain_spikes(std::span<const TokenRecord> tokens, size_t n,
                           std::span<const std::string> drives);

}  // namespace offstage
