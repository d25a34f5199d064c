// The experts that a run's first rows called, prompts and tokens alike, kept in memory: with them
// the run can be gone through again when it is over (plan/past_run.h).
//
// From the start on, until the memory that was taken is full; what comes later isn't kept, because
// what the cache held there would not be known. Memory is taken and touched at start: 2 · layers ·
// k bytes a row. Decode thread only.
#pragma once

#include <cstdint>

#include "cache/route_log.h"
#include "runtime/router.h"

namespace offstage {

class FirstRoutes {
 public:
  FirstRoutes(const RouteShape& shape, uint32_t rows_max);
  // As many rows as a few MiB hold, within bounds.
  static uint32_t rows_for(const RouteShape& shape);

  // A forward: how many rows, every layer's routing, its end. One that fails in between leaves
  // nothing behind; one that doesn't fit is the first that isn't kept.
  void begin_forward(uint32_t n_rows);
  void add_layer(LayerIndex layer, const Routing& routing);
  void end_forward();

  // Forgets all; the next row is the first.
  void restart();
  uint64_t n_rows() const { return n_rows_; }
  RouteLog log() const;  // router weights and token ids aren't kept

 private:
  const RouteShape shape_;
  const uint64_t rows_max_;
  std::vector<uint16_t> experts_;  // [row][layer][used]
  uint64_t n_rows_ = 0;
  uint64_t n_begun_ = 0;  // with those of the forward that runs
  bool is_full_ = false;
};

}  // namespace offstage
