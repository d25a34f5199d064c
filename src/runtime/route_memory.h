// The routing of the last tokens, kept in memory: what a cache of another size would have hit can
// be asked when the run is over, without a trace on the drive that is being measured.
//
// Tokens that were decoded, one by one; a prompt streams past the cache (cache/ram_tier.h). Memory
// is taken and touched at start: 2 · layers · k bytes a token. Decode thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/route_log.h"
#include "runtime/attention.h"
#include "runtime/router.h"

namespace offstage {

class RouteMemory {
 public:
  RouteMemory(const RouteShape& shape, uint32_t tokens_max);

  // A forward: its rows, every layer's routing, its end. One that fails in between leaves nothing
  // behind, and a prompt's neither.
  void begin_forward(std::span<const Row> rows, bool is_prefill);
  void add_layer(LayerIndex layer, const Routing& routing);
  void end_forward();

  // What is still there, oldest first; router weights aren't.
  RouteLog log() const;
  uint64_t n_tokens() const { return n_tokens_; }  // since the start, forgotten ones included

 private:
  size_t place(uint64_t token) const { return static_cast<size_t>(token % tokens_max_); }

  const RouteShape shape_;
  const uint64_t tokens_max_;
  std::vector<uint16_t> experts_;  // [place][layers][used]
  std::vector<TokenId> tokens_;    // by place
  std::vector<uint8_t> starts_;    // by place: 1 if it doesn't follow the one before
  uint64_t n_tokens_ = 0;
  uint64_t n_begun_ = 0;  // with the rows of the forward that runs, or that failed
  int64_t last_position_ = -1;
};

}  // namespace offstage
