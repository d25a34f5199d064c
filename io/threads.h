// The portable engine: a pool of threads that each do one pread at a time.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "io/engine.h"
#include "io/file.h"

namespace offstage {

// min(depth, 16) threads: beyond that a drive gains little and the machine's threads cost.
Result<std::unique_ptr<IoEngine>> open_threads_engine(std::vector<ReadFile> files, uint32_t depth);

}  // namespace offstage
