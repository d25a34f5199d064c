// Was an error right? It must say where (I1), and the drives must have given reason for it (I8): an
// error nobody caused is as much a violation as a wrong byte.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "cache/eviction.h"
#include "cache/expert_layout.h"
#include "tests/sim/witness.h"

namespace offstage::sim {

struct Evidence {
  const ExpertLayout& layout;
  Witness& witness;
  const std::vector<std::string>& paths;
};

// Why `error`, which ended an event, isn't justified; empty: it is.
std::string doubt_about(const Error& error, const Evidence& evidence, LayerIndex layer,
                        std::span<const ExpertCall> calls, int64_t deadline_ns);

}  // namespace offstage::sim
