// How a drive likes to be asked: measured for a moment, not guessed.
//
// In: an engine over a file of the drive, the range of it that matters, memory to read into. Out:
// the block size and the least depth whose speed is within 5 % of the best that was seen, and that
// speed. Random reads of a size that the model has; cells (a block size at a depth) are measured in
// bursts and in turns, and a cell's best burst counts, because others use the drive too. Stops when
// its bytes or its time are spent, whatever the drive does; a drive that answers nothing at all is
// an error. Nothing is written, no byte is looked at. One thread owns the engine meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "io/engine.h"

namespace offstage {

struct DriveProbeShape {
  uint32_t file = 0;         // of the engine's
  uint64_t range_begin = 0;  // where reads may lie: inside the file
  uint64_t range_bytes = 0;  // at least read_bytes
  uint32_t read_bytes = 0;   // the longest single read: an expert's matrix, or less
  uint32_t depth_max = 32;   // at most the engine's
  uint64_t bytes_max = 256ull << 20;
  int64_t time_max_ns = 500'000'000;
  uint64_t seed = 1;
  std::span<std::byte> memory;  // kSectorBytes-aligned, ≥ read_bytes; less of it, less depth
};

struct DriveProbeCell {
  uint32_t block_bytes = 0;
  uint32_t depth = 0;
  double bytes_per_s = 0;  // of its best burst
};

struct DriveProfile {
  uint32_t block_bytes = 0;
  uint32_t depth = 0;
  double bytes_per_s = 0;             // of the cell chosen
  std::vector<DriveProbeCell> cells;  // all that were measured
  uint64_t bytes_read = 0;            // for the probe
  int64_t took_ns = 0;
};

// Errors: kInvalidArgument (a range or memory smaller than a read), kIo (a read failed),
// kDeadline (nothing came within ten times time_max_ns).
// After an error reads may still be with the engine: destroy it before the memory.
Result<DriveProfile> probe_drive(IoEngine& engine, const Clock& clock,
                                 const DriveProbeShape& shape);

// Of measured cells: the least depth within 5 % of the fastest; of those the fastest.
DriveProbeCell choose_cell(std::span<const DriveProbeCell> cells);

}  // namespace offstage
