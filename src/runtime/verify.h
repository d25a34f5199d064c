// Reads a whole model once, matrix by matrix, against its hash index, and fills what is missing.
#pragma once

#include <atomic>
#include <functional>

#include "base/notices.h"
#include "base/result.h"
#include "runtime/runtime.h"

namespace offstage {

struct VerifyReport {
  uint64_t pieces = 0, bytes = 0;
  uint64_t already_known = 0;           // pieces that were confirmed before and agree
  uint64_t added = 0;                   // pieces confirmed by this pass
  std::vector<std::string> mismatches;  // "file: tensor 'x' expert 3 at offset …", at most 100
  uint64_t mismatch_count = 0;
};

// Memory: a few buffers of the largest piece. A piece unlike its confirmed hash is read twice
// before it counts as a mismatch. Errors: reads that fail for good; kCancelled.
Result<VerifyReport> verify_model(const ModelFile& file, HashIndex& index, IoEngine& engine,
                                  Notices& notices, const std::atomic<bool>* cancel,
                                  const std::function<void(uint64_t, uint64_t)>& progress);

}  // namespace offstage
