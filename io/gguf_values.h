// One metadata value of a GGUF header: a scalar, a string or an array of either.
//
// In: a reader standing behind the value's type. Out: the value, widened. Memory stays within four
// times the bytes read plus kGgufByteElementsMax x 8: an array's elements are counted in the file
// before room is made for them.
#pragma once

#include "base/result.h"
#include "io/gguf.h"
#include "io/gguf_reader.h"

namespace offstage {

// `byte_elements_left` is what remains of the file's share of 8-bit array elements.
Result<GgufValue> read_gguf_value(GgufReader& reader, uint64_t& byte_elements_left);

}  // namespace offstage
