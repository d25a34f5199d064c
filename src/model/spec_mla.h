// Multi-head latent attention from metadata: private to src/model's spec files.
#pragma once

#include "model/spec.h"
#include "model/spec_reader.h"

namespace offstage {

// Fills spec.attention of a family with MLA, and of spec.rotary the magnitude; the rest of both,
// read as other families state it, must be known. Errors: kCorrupt or kNotFound for ranks and
// widths that can't be one, kUnsupported for what no reader here computes.
Status read_mla(const SpecReader& reader, ModelSpec& spec);

}  // namespace offstage
