// The header of NumPy's .npy format (versions 1 to 3, NEP 1): what an array holds and where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace offstage {

struct NpyHeader {
  std::string descr;  // "|u1", "<f2" …
  std::vector<uint64_t> shape;
  size_t data_offset = 0;

  // "<f2 [12, 3]", for messages.
  std::string describe() const;
};

// `bytes`: the whole array file, or at least its header. `name` begins every error. Strict: exactly
// the keys descr, fortran_order (False) and shape (at most 8 dimensions). kCorrupt, kTruncated,
// kUnsupported (another version, Fortran order).
Result<NpyHeader> parse_npy_header(std::span<const std::byte> bytes, const std::string& name);

}  // namespace offstage
