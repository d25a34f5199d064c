// The portable engine: threads that each do one pread at a time, a pool for each drive, so that
// one that hangs takes no thread of another's.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "io/engine.h"
#include "io/file.h"

namespace offstage {

// A drive's share of the depth, at most 16 threads: beyond that a drive gains little and the
// machine's threads cost.
Result<std::unique_ptr<IoEngine>> open_threads_engine(std::vector<ReadFile> files,
                                                      const IoEngineOptions& options);

}  // namespace offstage
