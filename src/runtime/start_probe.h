// What a start finds out about the machine before it plans: how the drive likes to be asked, and
// how fast a prompt's rows are computed. Only where experts will come from the drive, and in the
// time of a blink.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/notices.h"
#include "base/result.h"
#include "cache/expert_layout.h"
#include "cpu/thread_pool.h"
#include "runtime/options.h"
#include "runtime/runtime.h"

namespace offstage {

// Models with fewer bytes of experts aren't worth a probe: reading them four times takes longer.
inline constexpr uint64_t kProbedExpertBytesMin = 1ull << 30;

// Block size and depth from, in this order: the options; the profile that an earlier start kept (of
// this drive, measured through this engine); a probe of now, which is kept. Whatever fails on the
// way is a notice, and the defaults hold. Models that are read faster than probed aren't probed
// unless that is forced, and nothing is tried with injected faults. At most `memory_bytes` are used
// meanwhile.
DriveChoice choose_drive(const ModelFile& file, const RuntimeOptions& options,
                         uint64_t memory_bytes, const Clock& clock, Notices& notices);

// What a run would find kept by an earlier start of this file, if there is something of its drive.
std::optional<DriveChoice> kept_choice(const ModelFile& file);

// Nanoseconds that all workers together need for one more row of a wide chunk: the experts' format
// at this machine's speed, times the parameters a row meets. Within a factor of two.
double estimate_row_ns(const ModelFile& file, const Kernels& kernels, ThreadPool& workers,
                       const Clock& clock);

}  // namespace offstage
