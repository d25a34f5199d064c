// Everything that a seed decides: a small model on drives, a runtime's settings, what goes wrong.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/expert_layout.h"
#include "io/fault.h"
#include "io/sim.h"

namespace offstage::sim {

enum class IndexKnows : uint8_t {
  kAll,      // complete: any wrong bytes are found out
  kOneRead,  // every piece once: two reads must agree, a third decides
  kNothing,  // first reads are believed: bytes stay right here, only their delivery fails
};

struct SimCase {
  uint64_t seed = 0;

  // The model.
  uint32_t n_experts = 0, n_used = 0;
  std::vector<ExpertLayerFacts> layers;
  std::vector<SimFile> files;

  // The drives.
  std::vector<SimDrive> drives;
  uint32_t depth = 0;

  // The runtime.
  uint64_t budget_bytes = 0;
  std::string policy;
  uint32_t reads_max = 0;
  bool knows_drives = false;  // the scheduler is told which files share a drive
  uint32_t block_bytes = 0;
  uint32_t prefetch_depth = 0;
  int64_t deadline_ns = 0;
  IndexKnows index = IndexKnows::kAll;

  // The load.
  uint32_t n_requests = 0;
  uint32_t n_steps = 0;
  uint32_t rows_max = 0;    // of a prefill chunk
  double guesses = 0;       // 0: no prefetch; else guesses a layer, as a share of n_used
  double guess_recall = 0;  // of them right
  bool poison = false;      // buffers before reads, slots when they empty
  FaultPlan faults;

  uint32_t n_layers() const { return static_cast<uint32_t>(layers.size()); }
};

SimCase draw_case(uint64_t seed);
std::string describe(const SimCase& c);  // several lines, for logs

}  // namespace offstage::sim
