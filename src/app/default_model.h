// The model that is meant when none is named: the demo that is built and installed with the
// program.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace offstage {

inline constexpr const char* kDefaultModelVariable = "OFFSTAGE_MODEL";
inline constexpr const char* kDemoFile = "offstage-demo.gguf";

// Where the demo may lie for a program in `folder`: beside it (a build), then where an
// installation puts it.
std::vector<std::string> demo_places(const std::string& folder);

// The first of demo_places() that exists. kNotFound lists the places.
Result<std::string> demo_model();

// `named` if there is a name; else the file of $OFFSTAGE_MODEL; else demo_model().
Result<std::string> model_or_default(const std::string& named);

}  // namespace offstage
