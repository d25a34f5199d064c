// recall: values an expert by its expected next use, learned online from the routing's own past.
//
// Two sources of evidence about expert e of a layer, at every event:
//
//   what usually happens    how often e was called over the last 1, 4, 16, 64, 256 tokens and long
//                           before, how long ago, and with what router weight;
//   what happened then      earlier tokens that looked like this one, and what followed them. Two
//                           tokens look alike if the same experts were called for them: in this
//                           layer, in the layers before it (0.9 per layer), and for the tokens
//                           before them (0.5 per token). The 256 latest tokens are weighted by the
//                           8th power of that likeness; what followed is summed at four horizons.
//
// A linear model per layer turns both into the expected 0.8^(tokens until the next call), trained
// by temporal difference on every token. It starts from weights that were fitted once on recorded
// routing (3,000 tokens of gpt-oss-20b) and carry over to other models. Measured against LRU, LFU
// and Belady in ARCHITECTURE.md. Only the order of the values matters, never any weight's bytes.
//
// Rows of one event (a prompt's chunk) enter the past one by one; the model learns from single
// rows.
#pragma once

#include <memory>

#include "cache/eviction.h"

namespace offstage {

std::unique_ptr<EvictionPolicy> make_recall_policy(const PolicyShape& shape);

}  // namespace offstage
