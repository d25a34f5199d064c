// Where a layer's experts are computed that VRAM hasn't got: by the CPU out of their slots in RAM,
// or by the device after a copy, so that the layer is done earliest.
//
// Decided batch by batch, as the RAM tier brings experts on: those at hand first, each that was
// waited for when the drive has brought it. Costs are those of the run itself, measured while it
// goes; no clock and no device here. Whatever is decided, the results' bits are the same.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/types.h"

namespace offstage {

// Of one expert, in ns. 0: not measured yet.
struct PlacementCosts {
  int64_t cpu_ns = 0;     // computing it by the CPU, one after another
  int64_t copy_ns = 0;    // copying it to the device, one after another
  int64_t device_ns = 0;  // computing it there
};

// What stands before them, in ns from now.
struct PlacementQueues {
  int64_t bus_ns = 0;     // copies that are under way
  int64_t device_ns = 0;  // experts that were launched
  int64_t drive_ns = 0;   // until the last expert that is still being read is expected
};

// Of `n` experts at hand, how many to copy. The least number among the best: a copy that gains
// nothing only takes the bus from others. Before the CPU was measured: none.
uint32_t experts_to_copy(uint32_t n, const PlacementCosts& costs, const PlacementQueues& queues);

// A mean of which old samples count less and less. One that is only known to be at most so large
// can lower it, and never raises it.
class RecentCost {
 public:
  void add(int64_t ns, bool exact);
  int64_t ns() const { return static_cast<int64_t>(ns_); }

 private:
  double ns_ = 0;
};

// Layers differ in formats and sizes, so each has costs of its own.
class PlacementMeter {
 public:
  explicit PlacementMeter(uint32_t n_layers) : cpu_(n_layers), device_(n_layers) {}

  // So many experts took that long together. `exact`: the time was waited for, and not only seen to
  // be over.
  void add_cpu(LayerIndex layer, uint32_t n, int64_t ns);
  void add_device(LayerIndex layer, uint32_t n, int64_t ns, bool exact);
  void add_drive(uint32_t n, int64_t ns, bool exact);

  int64_t cpu_ns(LayerIndex layer) const { return cpu_[layer.value].ns(); }
  int64_t device_ns(LayerIndex layer) const { return device_[layer.value].ns(); }
  int64_t drive_ns() const { return drive_.ns(); }  // per expert that is read

 private:
  std::vector<RecentCost> cpu_, device_;  // by layer
  RecentCost drive_;
};

// The same for a prompt's chunk, whose experts differ in how many rows called them: the device's
// cost is its copy, the CPU's goes by the rows. In ns; 0: not measured yet.
struct StreamCosts {
  int64_t cpu_row_ns = 0;  // a row of an expert by the CPU
  int64_t stream_ns = 0;   // an expert through VRAM, one after another
  int64_t device_ns = 0;   // until the device has done what it took
};

// Of experts at hand, by rows descending, how many go through VRAM: the first so many. The least
// number among the best. Before the CPU was measured: half of them.
uint32_t experts_to_stream(std::span<const uint32_t> rows, const StreamCosts& costs);

// All layers together: they differ little, and a prompt may be one chunk.
class ChunkMeter {
 public:
  void add_cpu(uint64_t rows, int64_t ns);
  void add_stream(uint32_t n, int64_t ns, bool exact);
  // Experts that lay in VRAM, so many rows.
  void add_device(uint64_t rows, int64_t ns, bool exact);

  int64_t cpu_row_ns() const { return cpu_row_.ns(); }
  int64_t device_row_ns() const { return device_row_.ns(); }
  int64_t stream_ns(int64_t unmeasured) const {
    return stream_.ns() == 0 ? unmeasured : stream_.ns();
  }

 private:
  RecentCost cpu_row_, stream_, device_row_;
};

// Calls of decode in layers that have slots in VRAM, by where they were computed. Those that lay
// there already aren't counted.
struct PlacementCounts {
  uint64_t ram_cpu = 0, ram_copied = 0;      // were in RAM
  uint64_t drive_cpu = 0, drive_copied = 0;  // waited for the drive

  uint64_t copied() const { return ram_copied + drive_copied; }
};

}  // namespace offstage
