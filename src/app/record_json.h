// What a generation cost, as JSON: the same names in run, bench and --verbose-tokens.
#pragma once

#include <nlohmann/json.hpp>
#include <span>

#include "runtime/ceilings.h"
#include "runtime/runtime.h"
#include "runtime/session.h"
#include "runtime/spikes.h"

namespace offstage {

// Schema of one token's record where it stands alone (--verbose-tokens); README.md here has its
// names.
inline constexpr const char* kTokenSchema = "offstage.token/1";

// What a forward cost, of a token or of a prompt.
nlohmann::ordered_json cost_json(const TokenRecord& record, Runtime& runtime);
// A token's, with `layers` and `reads` if the runtime keeps them (--record layer, read).
nlohmann::ordered_json token_json(size_t index, const TokenRecord& token, Runtime& runtime);
nlohmann::ordered_json tokens_json(std::span<const TokenRecord> tokens, Runtime& runtime);

// What --vram came to: the same object in run and bench; `hits` of the tokens reported.
nlohmann::ordered_json vram_json(const Runtime& runtime, uint64_t hits);

// Time between tokens: percentiles by nearest rank, in ms.
nlohmann::ordered_json itl_json(std::span<const TokenRecord> tokens);
nlohmann::ordered_json spikes_json(const SpikeReport& report);
nlohmann::ordered_json spike_classes_json(const SpikeReport& report);
nlohmann::ordered_json ceilings_json(const Ceilings& ceilings);

}  // namespace offstage
