// The fast engine: io_uring with O_DIRECT, registered memory and one sleeping thread of its own.
#pragma once

#include <memory>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "io/engine.h"
#include "io/file.h"

namespace offstage {

// Takes `files` only if it succeeds. Errors: io_uring refused (EPERM, ENOSYS, ENOMEM, EMFILE …).
Result<std::unique_ptr<IoEngine>> open_uring_engine(std::vector<ReadFile>& files,
                                                    const IoEngineOptions& options,
                                                    Notices& notices);

}  // namespace offstage
