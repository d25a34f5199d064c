// Routing traces as NumPy archives (.npz): the form in which others publish them.
//
//   experts      uint8 or uint16 [tokens, layers, used]   required
//   probs        float16, same shape                      router weights
//   token        int32 [tokens]                           token ids
//   seq_offsets  int64 [sequences + 1]                    where conversations start; last = tokens
//
// Other members are left alone. An archive doesn't say how many experts a layer has: the caller
// does, or the highest id that was called stands for it.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "cache/route_log.h"

namespace offstage {

// Untrusted input: a member may unpack to at most 64 times the archive and 16 MiB. Errors name
// archive, member and offset: kNotFound, kPermission, kIo, kCorrupt, kTruncated, kUnsupported.
Result<RouteLog> read_route_npz(const std::string& path, std::optional<uint32_t> n_experts);

// Either form, told apart by the first bytes. `n_experts`: of an archive only; a trace of ours says
// it itself, and another number is an error.
Result<RouteLog> read_routes(const std::string& path, std::optional<uint32_t> n_experts = {});

}  // namespace offstage
