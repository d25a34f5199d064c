// The engine without a drive: files in memory, virtual time, drives made of a few numbers.
//
// In: the files' bytes, a model of each drive, a clock that it moves. Out: reads answered when such
// a drive would have answered them, the same ones at the same times for the same seed. A reap()
// that waits moves the clock instead of sleeping, so that minutes at a drive cost milliseconds and
// everything above the seam runs as it is. What befalls a whole drive (slow for a while, gone and
// back) is a spell of the drive here; what befalls single requests is the FaultEngine's (fault.h),
// put over this one like over any other.
// Bytes reach their buffer at the read's own time, reaped or not, as a drive writes them: land().
// One thread owns engine and clock; only interrupt() may come from another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "io/engine.h"

namespace offstage {

// A time in which a drive isn't itself. Reads that begin in it are `slower` times as slow; with
// `err` they are refused, and those under way when it begins too.
struct SimSpell {
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  uint32_t slower = 1;
  int err = 0;
};

// A read takes one of the drive's channels for its latency, then for its bytes at the channel's
// speed, then for jitter (exponential with that mean). All channels' bytes share one bus, of which
// every read takes request_ns besides: what limits the reads a second of short ones. The defaults
// are those of an NVMe drive of the consumer kind.
struct SimDrive {
  uint32_t channels = 32;  // reads that it works on at once, 1 ...
  int64_t latency_ns = 80'000;
  int64_t jitter_ns = 20'000;
  uint64_t bytes_per_s = 3'000'000'000;
  uint64_t channel_bytes_per_s = 0;  // that a lone read gets; 0: as much as all together
  int64_t request_ns = 0;            // of the bus for each read, whatever its length
  // Says that reads are over only when it has none left to do, those that came meanwhile included,
  // as drives of virtual machines do that look into their queue until it is empty.
  bool answers_together = false;
  std::vector<SimSpell> spells = {};
};

struct SimFile {
  std::span<const std::byte> contents = {};  // outlives the engine; empty: reads take time only
  uint64_t bytes = 0;                        // of a file without contents
  uint32_t drive = 0;
};

struct SimOptions {
  std::vector<SimFile> files;
  std::vector<SimDrive> drives = {{}};
  uint32_t depth = 32;
  uint64_t seed = 1;  // of the jitter
  // From the time at which a read is over until a thread that sleeps in reap() is awake.
  int64_t wake_ns = 0;
};

class SimEngine final : public IoEngine {
 public:
  SimEngine(SimOptions options, ManualClock& clock);
  ~SimEngine() override;

  std::string_view name() const override { return "sim"; }
  bool direct_io(uint32_t) const override { return true; }
  uint64_t file_bytes(uint32_t file) const override;
  uint32_t depth() const override;
  IoEngineCounters counters() const override;
  size_t submit(std::span<const ReadRequest> requests) override;
  size_t reap(std::span<ReadCompletion> out, int64_t timeout_ns) override;
  void interrupt() override;

  // Writes the bytes of all reads that are over by now. reap() does it too; for whoever moves the
  // clock himself and looks at memory before the next reap().
  void land();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace offstage
