// What both kinds of attention are given: attention_gqa.h, attention_mla.h.
//
// Each takes the forms of the normed rows and gives [n_rows][hidden], Wo applied. It stores the
// rows' own keys and values first, so that the rows of a chunk see each other as they see everybody
// else: through the cache, rounded to its type.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "model/spec.h"
#include "runtime/compute.h"
#include "runtime/kv_cache.h"
#include "runtime/rotary.h"
#include "runtime/scratch.h"
#include "runtime/weights.h"

namespace offstage {

// One token of one sequence. Rows of a sequence stand in ascending position, and every earlier
// position was a row of this forward or of one before.
struct Row {
  SequenceId sequence;
  uint32_t position = 0;
  TokenId token = 0;
  bool wants_logits = false;
};

// The first position that a row sees through a window (0: none) that ends at its own.
inline uint32_t first_seen(uint32_t window, uint32_t position) {
  return window == 0 || position < window ? 0 : position - window + 1;
}

struct AttentionParts {
  const ModelSpec& spec;
  const Compute& compute;
  const RotaryTable& rotary;
  KvCache& kv;
  KvType k_type, v_type;
};

}  // namespace offstage
