// Reads a whole model once, matrix by matrix, against its hash index, and fills what is missing.
// Experts of a model with a packed store are read from the store.
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

// Who takes the pieces as they are found right (pack).
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual bool wants(PieceId piece) const = 0;  // others aren't read
  virtual Status take(PieceId piece, std::span<const std::byte> bytes, PieceHash hash) = 0;
};

// Memory: a few buffers of the largest piece. A piece unlike its confirmed hash is read twice
// before it counts as a mismatch. Errors: reads that fail for good; kCancelled.
Result<VerifyReport> verify_model(const ModelFile& file, HashIndex& index, IoEngine& engine,
                                  Notices& notices, const std::atomic<bool>* cancel,
                                  const std::function<void(uint64_t, uint64_t)>& progress,
                                  PieceSink* sink = nullptr);

}  // namespace offstage
