// Rotary embedding from metadata: private to src/model's spec files.
#pragma once

#include "model/spec.h"
#include "model/spec_reader.h"

namespace offstage {

// Fills spec.rotary; spec.attention and spec.context_train must be known. Errors: kUnsupported for
// a scaling nobody here knows, kCorrupt for numbers that can't be one.
Status read_rotary(const SpecReader& reader, RotaryKind kind, ModelSpec& spec);

}  // namespace offstage
