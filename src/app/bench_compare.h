// Two results of offstage bench held against each other, with the noise they have.
#pragma once

#include <string>

#include "base/result.h"

namespace offstage {

// Reads files as `-o json`, `-o jsonl` or `--json` wrote them; rows with the same test, model,
// memory (--ram and --vram), threads and state of the cache are compared, repetition by repetition:
// the mean of ln(b ÷ a) with its 95 % confidence interval (Student's t). A difference counts where
// the interval leaves out 0. Errors: a file that can't be read (kIo, kNotFound) or isn't such a
// result (kCorrupt); no row in common (kInvalidArgument).
Result<std::string> compare_benches(const std::string& path_a, const std::string& path_b);

}  // namespace offstage
