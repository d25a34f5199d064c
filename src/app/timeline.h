// A generation as a timeline that Perfetto (ui.perfetto.dev) and chrome://tracing open.
#pragma once

#include <span>
#include <string>

#include "runtime/runtime.h"
#include "runtime/token_record.h"

namespace offstage {

// Chrome trace events: a counter of the CPUs that were in use; on the track "decode" the prompt and
// the tokens, in them their layers with the split by cause; for each worker what it had a share in;
// for each drive, tracks of its reads, as many as were outstanding at once. What the runtime's
// rings still hold is in it (all of it with
// --record read, unless it was too much). Errors: kIo naming the file.
Status write_timeline(const std::string& path, const TokenRecord& prompt,
                      std::span<const TokenRecord> tokens, Runtime& runtime);

}  // namespace offstage
