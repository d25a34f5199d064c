// auto: follows the policy that would have hit most lately.
//
// Every candidate (recall, lfu, lru) keeps a shadow of each layer: the experts that would be
// resident if it had decided alone, ids only. What each shadow hits is counted and forgotten by
// half every 256 tokens. The regime decides who leads until the counts say otherwise: with room for
// most of a layer's experts what matters is frequency (lfu), else what comes next (recall). The
// lead changes when another shadow's count is better by 1 % of the lookups and two tokens' worth of
// them, so that noise doesn't.
#pragma once

#include <memory>

#include "cache/eviction.h"

namespace offstage {

std::unique_ptr<EvictionPolicy> make_auto_policy(const PolicyShape& shape);

}  // namespace offstage
