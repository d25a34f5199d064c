// What this machine could do at best, measured in the run that is held against it.
//
// RAM: the workers read the model's own resident weights and slots, once around and again until
// enough time has passed; no memory is allocated, so a run within its budget stays there. Drives:
// bytes that came in ÷ the time in which a drive had a read to answer (base/trace.h, BusyTime). A
// drive that is never kept busy is judged by what it did while it was; what the start's probe found
// stands beside it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "cpu/thread_pool.h"
#include "runtime/runtime.h"

namespace offstage {

struct DriveCeiling {
  std::string name;
  uint64_t bytes = 0;
  int64_t busy_ns = 0;
  double expected_bytes_per_s = 0;  // by the start's probe, or the pace; 0: not known
  double bytes_per_s() const;
};

struct Ceilings {
  double ram_bytes_per_s = 0;  // 0: not measured
  uint64_t ram_bytes = 0;      // so much memory was read in turn
  bool ram_is_cache = false;   // it fits the CPU's caches: no ceiling of RAM
  uint64_t token_bytes = 0;    // weights that one token touches: dense ones and called experts
  std::vector<DriveCeiling> drives;  // that this process read experts from, since it started

  // Tokens per second if a token cost nothing but reading its weights from RAM.
  double tokens_per_s() const;
};

// What a token of decode reads: dense weights once (of an embedding that isn't the output too a
// row, which counts as nothing), the called experts.
uint64_t token_weight_bytes(const ModelTensors& tensors, const ExpertLayout& layout,
                            uint32_t n_used);

// Of this machine, as far as the system tells; else a usual one's.
size_t last_level_cache_bytes();

struct RamBandwidth {
  double bytes_per_s = 0;
  uint64_t sum = 0;  // of the words read: so that they are
};
// At least once over all `memory`, then until `min_ns` have passed.
RamBandwidth measure_ram_read(std::span<const std::span<const std::byte>> memory,
                              ThreadPool& workers, const Clock& clock, int64_t min_ns);

// Bytes per second of its memory, now.
double measure_ram_ceiling(Runtime& runtime);
// `ram_before`: what measure_ram_ceiling() gave in the course of the run. A shared machine changes
// from second to second, so the ceiling is the mean of those and of one more, measured now.
Ceilings measure_ceilings(Runtime& runtime, std::span<const double> ram_before = {});

}  // namespace offstage
