// A model opened the way every command opens it: plan and notices on stderr, a bar while it loads.
#pragma once

#include <memory>

#include "app/model_flags.h"
#include "base/notices.h"
#include "base/result.h"
#include "runtime/runtime.h"

namespace offstage {

Result<std::unique_ptr<Runtime>> open_runtime(const ModelFlags& flags, Notices& notices);

}  // namespace offstage
