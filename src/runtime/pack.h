// Makes a packed store (io/store.h) of a model: every piece read once, held against the hash index
// or added to it, and its stripes written to the drives.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "runtime/runtime.h"

namespace offstage {

struct PackReport {
  std::vector<std::string> paths;  // of the store, by drive
  uint64_t file_bytes = 0;         // of each
  uint64_t pieces = 0;             // in the store
  uint64_t pieces_before = 0;      // of them written by an earlier pack that was stopped
  bool was_there = false;          // a store that fits: nothing was written
};

struct PackOptions {
  std::vector<std::string> folders;          // one per drive
  uint64_t checkpoint_bytes = 256ull << 20;  // written between two states that survive a crash
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(uint64_t done, uint64_t total)> progress;
};

// Leaves a complete hash index beside the model too. Memory: a few buffers of the largest piece.
// Errors: StoreWriter's; reads that fail for good; kHashMismatch if a piece isn't what the index
// says; kCancelled. After the last, and after being killed, the same call goes on where it stopped.
Result<PackReport> pack_model(const ModelFile& file, IoEngine& engine, const PackOptions& options,
                              Notices& notices);

}  // namespace offstage
