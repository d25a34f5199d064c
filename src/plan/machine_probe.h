// This machine, as a hardware profile: drives, memory, processors.
//
// In: files on the drives that are to be measured (any large ones: they are only read, past the
// page cache where the file system allows), threads, how long a drive is to be tried. Out: the
// profile that forecasts are made with. Time is bounded (a second or two for the processors, and
// the time asked for and a second more per drive); nothing is written to any drive.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/notices.h"
#include "base/result.h"
#include "plan/hardware_profile.h"

namespace offstage {

struct MachineProbeOptions {
  std::vector<std::string> files;  // one on each drive
  uint32_t threads = 0;            // 0: as a run
  int64_t drive_ns = 3'000'000'000;
  int64_t format_ns = 60'000'000;        // each format's kernel, for one row and for many
  uint64_t memory_bytes = 256ull << 20;  // for weights and reads at most
  std::string isa;                       // OFFSTAGE_ISA; empty: the best
  // A small model with experts, whose layers are timed (plan/layer_trial.h); empty: none.
  std::string layer_model;
  // `what` is being measured: done of total.
  std::function<void(std::string_view what, uint64_t done, uint64_t total)> progress = {};
};

// Errors: those of files (path and errno), of reads; kInvalidArgument for a file under 16 MiB or no
// file at all.
Result<HardwareProfile> probe_machine(const MachineProbeOptions& options, const Clock& clock,
                                      Notices& notices);

}  // namespace offstage
