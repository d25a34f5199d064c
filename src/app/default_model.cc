#include "app/default_model.h"

#include <fmt/ranges.h>

#include <cstdlib>
#include <filesystem>

namespace offstage {

std::vector<std::string> demo_places(const std::string& folder) {
  const std::filesystem::path beside(folder);
  return {beside / kDemoFile,
          (beside / ".." / "share" / "offstage" / kDemoFile).lexically_normal()};
}

Result<std::string> demo_model() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error)
    return make_error(ErrorCode::kIo, "/proc/self/exe: {}; name a model with -m", error.message());
  const std::vector<std::string> places = demo_places(program.parent_path());
  for (const std::string& place : places) {
    if (std::filesystem::is_regular_file(place, error)) return place;
  }
  return make_error(ErrorCode::kNotFound,
                    "no -m, no ${}, and the demo model is in none of {}; name a model with -m",
                    kDefaultModelVariable, fmt::join(places, ", "));
}

Result<std::string> model_or_default(const std::string& named) {
  if (!named.empty()) return named;
  // A variable that names no file is an error of the file's opening: no fallback behind its back.
  const char* wished = std::getenv(kDefaultModelVariable);
  if (wished != nullptr && *wished != '\0') return std::string(wished);
  return demo_model();
}

}  // namespace offstage
