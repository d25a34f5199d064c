// A drive under load for a while: what a moment's probe can't see.
//
// In: an engine over a file of the drive, the range to read in, memory. Out: how long a read takes
// that finds the drive idle, and what the drive gives second after second at a depth (a drive slows
// down when it gets warm, or when its fast cells are used up). Only reads, at random places; ends
// after its time or its bytes, whichever comes first. One thread owns the engine meanwhile.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "io/engine.h"
#include "plan/hardware_profile.h"

namespace offstage {

struct DriveTrialShape {
  uint64_t range_begin = 0, range_bytes = 0;  // of file 0, to read in
  uint32_t block_bytes = 0;
  uint32_t depth = 1;
  // 0: `depth` reads are always under way. Otherwise so many are sent at once, and again so long
  // after the last of them has come, as a layer sends its misses.
  int64_t pause_ns = 0;
  int64_t time_ns = 1'000'000'000;
  uint64_t bytes_max = 64ull << 30;
  uint64_t seed = 1;
  // Is given what has come before the pause.
  std::function<void(std::span<const std::byte>)> after_burst = {};
  // kSectorBytes-aligned, ≥ block_bytes × depth; all of it is read into, in turns.
  std::span<std::byte> memory;
};

// Two lengths tell what a read costs from what its bytes cost.
inline constexpr uint32_t kShortReadBytes = 64u << 10;
inline constexpr uint32_t kLongerReadBytes = 256u << 10;
inline constexpr uint32_t kBurst = 8;  // about a layer's misses

struct DriveTrial {
  uint64_t reads = 0;
  double bytes_per_s = 0;             // over all of it
  double slowest_second = 0;          // bytes per second of its slowest whole second; 0: too short
  int64_t burst_ns = 0;               // until all of a burst are answered, mean; 0: no pauses
  int64_t least_ns = 0, mean_ns = 0;  // of a read, from when it was handed to the engine
  int64_t p50_ns = 0, p99_ns = 0, max_ns = 0;
  int64_t wake_ns = 0;  // from a read's end until whoever slept for it is awake, mean
};

struct DriveTrials {
  DriveTrial idle, lone;           // one at a time, with pauses: short reads, blocks
  DriveTrial burst, longer_burst;  // kBurst at once, with pauses: short reads, longer ones
  DriveTrial loaded;               // blocks at the depth that the drive likes, for long
  bool answers_together = false;
};

// Errors: kInvalidArgument (a range or memory smaller than a read), kIo (a read failed), kDeadline
// (nothing came for a minute). After an error reads may still be with the engine: destroy it before
// the memory.
Result<DriveTrial> try_drive(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape);

// Whether the drive says that reads are over only when it has none left: half of `shape.depth`
// reads are sent at once, the others when half of those should be over, at `bytes_per_s`. Errors as
// above.
Result<bool> answers_together(IoEngine& engine, const Clock& clock, const DriveTrialShape& shape,
                              double bytes_per_s);

// The numbers of the simulated drive (io/sim.h) that would have answered so; `drive` has the block
// and the depth of the trials.
void fit_drive(const DriveTrials& trials, DriveSpeed& drive);

}  // namespace offstage
