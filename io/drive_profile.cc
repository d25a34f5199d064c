#include "io/drive_profile.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <charconv>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "io/extent.h"
#include "io/index_file.h"
#include "io/whole_file.h"

namespace offstage {
namespace {

constexpr std::string_view kFirstLine = "offstage-drive 1";
constexpr std::string_view kIndexSuffix = ".offstage-index";
constexpr std::string_view kProfileSuffix = ".offstage-drive";
constexpr std::array<std::string_view, 6> kKeys = {"drive",       "engine", "date",
                                                   "block_bytes", "depth",  "bytes_per_s"};
constexpr uint64_t kBlockBytesMax = 1u << 30, kDepthMax = 1024;

// The first line of a file of /sys, without blanks at its ends; empty if there is none.
std::string line_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const size_t begin = line.find_first_not_of(' ');
  if (begin == std::string::npos) return "";
  return line.substr(begin, line.find_last_not_of(" \r\n") - begin + 1);
}

bool number_in(const std::string& text, uint64_t least, uint64_t most, uint64_t& value) {
  const char* const end = text.data() + text.size();
  const auto [stop, failed] = std::from_chars(text.data(), end, value);
  return failed == std::errc() && stop == end && value >= least && value <= most;
}

}  // namespace

Result<std::string> drive_id(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0)
    return tl::unexpected(errno_error(path, "can't be examined"));
  const dev_t device = S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev;
  std::string id = fmt::format("{}:{}", major(device), minor(device));
  // A file system without a block device of its own (overlay, network) is told by its number alone.
  std::error_code failed;
  const auto folder = std::filesystem::canonical(fmt::format("/sys/dev/block/{}", id), failed);
  if (failed) return id;
  id += fmt::format(" {} {} sectors", folder.filename().string(), line_of(folder / "size"));
  for (const auto& disk : {folder, folder.parent_path()})
    if (const std::string model = line_of(disk / "device" / "model"); !model.empty())
      return id + " " + model;
  return id;
}

std::string utc_date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  ::gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

Result<KeptProfile> read_profile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return tl::unexpected(errno_error(path, "can't be opened"));
  std::array<std::string, kKeys.size()> values;
  std::string line;
  if (!std::getline(file, line) || line != kFirstLine)
    return make_error(ErrorCode::kCorrupt, "{}: line 1: expected '{}'", path, kFirstLine);
  for (size_t i = 0; i < kKeys.size(); ++i) {
    const bool fits = std::getline(file, line) && line.size() < 512 &&
                      line.starts_with(fmt::format("{} ", kKeys[i]));
    if (!fits)
      return make_error(ErrorCode::kCorrupt, "{}: line {}: expected '{} …'", path, i + 2, kKeys[i]);
    values[i] = line.substr(kKeys[i].size() + 1);
  }
  uint64_t block_bytes = 0, depth = 0, bytes_per_s = 0;
  if (!number_in(values[3], kSectorBytes, kBlockBytesMax, block_bytes) ||
      block_bytes % kSectorBytes != 0 || !number_in(values[4], 1, kDepthMax, depth) ||
      !number_in(values[5], 1, UINT64_MAX, bytes_per_s))
    return make_error(ErrorCode::kCorrupt, "{}: lines 5 to 7: '{}', '{}', '{}' are no profile",
                      path, values[3], values[4], values[5]);
  return KeptProfile{values[0],
                     values[1],
                     values[2],
                     static_cast<uint32_t>(block_bytes),
                     static_cast<uint32_t>(depth),
                     bytes_per_s};
}

Status write_profile(const std::string& path, const KeptProfile& profile) {
  return replace_file(
      path,
      fmt::format("{}\ndrive {}\nengine {}\ndate {}\nblock_bytes {}\ndepth {}\nbytes_per_s {}\n",
                  kFirstLine, profile.drive, profile.engine, profile.date, profile.block_bytes,
                  profile.depth, profile.bytes_per_s));
}

std::vector<std::string> profile_places(const std::string& model_path) {
  std::vector<std::string> places = index_places(model_path);
  for (std::string& place : places)
    place.replace(place.size() - kIndexSuffix.size(), kIndexSuffix.size(), kProfileSuffix);
  return places;
}

}  // namespace offstage
