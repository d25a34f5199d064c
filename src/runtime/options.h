// What a person asks of the runtime: the typed form of the command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/trace.h"
#include "cpu/kernels.h"
#include "cpu/topology_numa.h"
#include "io/drives.h"
#include "io/engine.h"

namespace offstage {

// What happens to guesses of the next layer's experts (runtime/lookahead.h).
enum class Prefetch : uint8_t {
  kOff,
  kAuto,    // read where guesses have proven right often enough
  kAlways,  // every guess is read, right or wrong: for measurements
};

// The short probe of the drive at start (runtime/start_probe.h).
enum class Probe : uint8_t {
  kOff,
  kAuto,   // where experts come from the drive, and no earlier start kept a profile of it
  kForce,  // now, whatever was kept
};

// Which device computes what --vram has room for.
enum class DeviceKind : uint8_t {
  kAuto,  // a card, if the build, the driver and the machine have one
  kSim,   // the simulated one (gpu/sim_device.h), for development: right tokens, meaningless speeds
};

// When experts are copied to VRAM.
enum class Promote : uint8_t {
  kOff,
  kAuto,    // where it pays, as measured
  kAlways,  // whatever it costs: for measurements and tests
};

// Who computes the dense part: attention, router, shared expert.
enum class DensePart : uint8_t {
  kAuto,  // the device, if --vram holds its weights and KV for the whole context
  kCpu,   // the CPU, and all of --vram is for experts: for measurements
};

// Who computes called experts that VRAM hasn't got.
enum class Placement : uint8_t {
  kAuto,  // CPU and device share them so that the layer is done earliest, as measured
  kCpu,   // the CPU: for measurements
  kCopy,  // the device, each after a copy: for measurements
};

// How the drive is asked, and how that was found.
struct DriveChoice {
  uint32_t block_bytes = 1u << 20;  // largest single read
  uint32_t depth = 32;              // reads in flight, on each drive
  double bytes_per_s = 0;           // of one drive; 0: not known
  std::string probed;               // when, in UTC; empty: these are the defaults
  int64_t probe_ns = 0;             // what the probe of this start took
};

struct RuntimeOptions {
  std::string model_path;
  std::vector<std::string> drives;    // folders of a packed store; none: the file in place
  std::optional<uint64_t> ram_bytes;  // the whole process; default: 90 % of what is available
  // What the process uses beside the plan's parts and its record of tokens; if not given measured,
  // and at least as expected (tests give it, so that a plan doesn't depend on what ran before).
  std::optional<uint64_t> process_bytes;
  uint32_t context = 4096;  // -c: positions of KV, all sequences together
  uint32_t n_sequences = 1;
  uint32_t chunk_rows = 512;       // -ub: rows of one prefill forward; less if RAM is short, more
                                   // where the drive is slower than the arithmetic
  bool chunk_rows_fixed = false;   // asked for: refuse rather than shrink
  uint32_t chunk_rows_max = 4096;  // -b, and the longest prompt that will come, if that is known
  uint32_t threads = 0;            // -t; 0: one per physical core
  KvType k_type = KvType::kF16;    // -ctk
  KvType v_type = KvType::kF16;    // -ctv
  IoEngineKind io_engine = IoEngineKind::kAuto;
  DirectIo direct_io = DirectIo::kAuto;
  // Reads in flight at most, on each drive; default: what the probe found, else 32.
  std::optional<uint32_t> io_depth;
  Probe probe = Probe::kAuto;
  int64_t read_deadline_ns = 30'000'000'000;  // of one read of an expert's matrix
  DriveGrouping drive_grouping = DriveGrouping::kDevice;
  Prefetch prefetch = Prefetch::kAuto;
  std::string cache_policy = "auto";  // cache/eviction.h lists them
  std::string replay_routing;         // a trace that chooses the experts; empty: the router does
  std::optional<double> oracle_prefetch;  // with it: guesses are true, this share of the calls
  bool warm_start = true;                 // begin with what earlier runs' experts were used for
  RecordLevel record = RecordLevel::kToken;
  bool keep_first_routes = false;  // for a forecast of the run after it (first_routes.h)
  // Of the device's memory; none or 0: no device is opened.
  std::optional<uint64_t> vram_bytes;
  DeviceKind device = DeviceKind::kAuto;
  Promote promote = Promote::kAuto;
  Placement placement = Placement::kAuto;
  DensePart dense = DensePart::kAuto;
  bool demote = true;        // what leaves VRAM may go to RAM instead of being read again
  std::string device_fault;  // of the simulated device (gpu/sim_device.h), for tests; empty: none
  int64_t device_deadline_ns = 10'000'000'000;  // of a layer's experts, and of a copy
  bool mlock = false;  // what the plan holds never leaves RAM; an error where that isn't allowed
  Numa numa = Numa::kOff;
  bool preload = true;            // read at start what RAM will keep anyway
  uint64_t pace_bytes_per_s = 0;  // every drive answers no faster; 0: its own speed
  std::string io_fault;           // a fault plan for tests (io/fault_engine.h); empty: none
  std::string isa;                // OFFSTAGE_ISA; empty: the best
};

}  // namespace offstage
