#include "io/drives.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

namespace offstage {
namespace {

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

// What two files of one drive have in common.
Result<std::string> drive_key(const std::string& path, DriveGrouping grouping) {
  if (grouping == DriveGrouping::kFolder) return folder_of(path);
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) return tl::unexpected(errno_error(path, "cannot stat"));
  return fmt::format("{}", info.st_dev);
}

}  // namespace

Result<DriveMap> group_by_drive(const std::vector<std::string>& paths, DriveGrouping grouping) {
  DriveMap map;
  std::vector<std::string> keys;
  for (const std::string& path : paths) {
    OFFSTAGE_TRY(std::string key, drive_key(path, grouping));
    const auto known = std::find(keys.begin(), keys.end(), key);
    map.drive_of_file.push_back(static_cast<uint32_t>(known - keys.begin()));
    if (known != keys.end()) continue;
    keys.push_back(std::move(key));
    map.names.push_back(folder_of(path));
  }
  return map;
}

std::string names_of(const std::vector<std::string>& paths, const Extent& extent) {
  std::string names = paths[extent.file];
  for (uint32_t i = 1; i < stripe_count(extent); ++i) names += " + " + paths[extent.file + i];
  return names;
}

}  // namespace offstage
