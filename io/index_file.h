// The bytes of a hash index on disk, and where it lies.
//
// All numbers are little-endian:
//
//   offset  bytes  content
//        0      8  magic "OFFSTIDX"
//        8      4  version, 1
//       12      4  number of tensors
//       16      8  number of pieces, n
//       24      8  identity: size of all the model's files together
//       32      8  identity: XXH3-64 of their times of change (seconds, nanoseconds: 8 bytes each)
//       40      8  identity: XXH3-64 of their headers, shard by shard
//       48      8  identity: XXH3-64 of the pieces per tensor (4 bytes each)
//       56    8 n  the pieces' hashes (XXH3-64), tensor by tensor, expert by expert
//   56+8 n      n  the pieces' states: 0 unknown, 1 provisional, 2 confirmed
//   56+9 n      8  XXH3-64 of everything before
//
// A piece in conflict is written as unknown: neither of its two hashes deserves belief. Written
// under a temporary name, fsynced and renamed: a reader sees the old file or the new one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/gguf.h"

namespace offstage {

struct IndexIdentity {
  uint64_t file_bytes = 0;
  uint64_t mtimes_hash = 0;
  uint64_t headers_hash = 0;
  uint64_t layout_hash = 0;
  bool operator==(const IndexIdentity&) const = default;
};

struct IndexContents {
  IndexIdentity identity;
  uint32_t tensors = 0;
  std::vector<uint64_t> hashes;
  std::vector<uint8_t> states;  // as in the file; as many as hashes
};

// Reads the headers of the model's files again. Errors: kNotFound, kPermission, kIo; kCorrupt if a
// file's size isn't what `model` was opened with.
Result<IndexIdentity> identify(const GgufModel& model, std::span<const uint32_t> pieces_per_tensor);

// Offstage's part of the user's cache: $XDG_CACHE_HOME or ~/.cache, then offstage/. None without a
// home.
std::optional<std::string> cache_folder();

// Places for the index of the model at `model_path`, best first: beside it, and in the user's cache
// folder if there is one.
std::vector<std::string> index_places(const std::string& model_path);

// The index at `path` if it is whole and fits identity and piece count. Errors: kNotFound (there is
// none), kCorrupt or kTruncated (damaged), kUnsupported (another version), kInvalidArgument (of
// another model or another state of it), kPermission, kIo. Makes room only for a file that fits.
Result<IndexContents> read_index(const std::string& path, const IndexIdentity& identity,
                                 uint64_t pieces);
Status write_index(const std::string& path, const IndexContents& contents);

}  // namespace offstage
