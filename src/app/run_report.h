// What a run has to say at its end: lines for people, one object for machines.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "runtime/ceilings.h"
#include "runtime/runtime.h"
#include "runtime/session.h"
#include "runtime/spikes.h"

namespace offstage {

// The summary on stderr: speed, hits by tier, time by cause, memory.
std::string run_summary(Runtime& runtime, const Generation& generation, const Ceilings& ceilings);
// Its last three lines: latency, speed beside its ceilings, the slowest token and what would have
// removed its like.
std::string latency_summary(Runtime& runtime, const Generation& generation,
                            const Ceilings& ceilings);

// Schema "offstage.run/1", documented in README.md here; names stay. `text` is the answer as it is
// streamed; an empty `chat_template` means that the prompt was taken as it stands.
nlohmann::ordered_json run_json(Runtime& runtime, const Generation& generation,
                                const Ceilings& ceilings, const SpikeReport& spikes,
                                const Notices& notices, const std::string& text,
                                std::string_view chat_template);

nlohmann::ordered_json notices_json(const Notices& notices);

// JSON on stdout, one line; bytes that aren't UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& json);

}  // namespace offstage
