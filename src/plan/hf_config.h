// A shape out of a model's config.json, as Hugging Face's transformers write it.
//
// Of the families that Offstage computes; which key says what differs from one to the other, and
// is a table in the source. Untrusted input: every number is checked before it is used (by
// spec_of() in the end), and a model that mixes layers in a way the shape can't say is refused
// rather than counted wrongly.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "plan/model_shape.h"

namespace offstage {

// `path` names the file in errors and, by its folder or itself, the shape. Errors: kCorrupt (not
// JSON, a value of another kind, with its key), kNotFound (a key that must be there), kUnsupported
// (another model_type, named with the known ones; experts not in every layer).
Result<ModelShape> shape_from_hf_config(std::string_view text, const std::string& path);

}  // namespace offstage
