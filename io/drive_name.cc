#include "io/drive_name.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <filesystem>

namespace offstage {

std::string drive_name(const std::string& path) {
  struct stat facts = {};
  if (stat(path.c_str(), &facts) != 0) return path;
  const std::string number = fmt::format("{}:{}", major(facts.st_dev), minor(facts.st_dev));
  // /sys/dev/block/259:2 → …/block/nvme0n1/nvme0n1p2
  std::error_code error;
  const auto device = std::filesystem::canonical("/sys/dev/block/" + number, error);
  if (error) return "dev " + number;
  return device.filename().string();
}

}  // namespace offstage
