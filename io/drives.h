// Which files share a drive.
//
// In: paths. Out: for each file the number of its drive, counted from 0 in order of first mention,
// and a name of each drive for people. Two files are on one drive if their device (st_dev, symbolic
// links followed) is the same; partitions of one disk count as several.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/extent.h"

namespace offstage {

struct DriveMap {
  std::vector<uint32_t> drive_of_file;
  std::vector<std::string> names;  // by drive: the folder of its first file

  uint32_t n_drives() const { return static_cast<uint32_t>(names.size()); }
};

enum class DriveGrouping : uint8_t {
  kDevice,
  // Each folder, as it is spelled, counts as a drive. For tests and measurements where several
  // folders of one disk stand for several disks.
  kFolder,
};

// Errors name the path: kNotFound, kPermission, kIo.
Result<DriveMap> group_by_drive(const std::vector<std::string>& paths, DriveGrouping grouping);

// The file of an extent, or those it is striped over: for messages.
std::string names_of(const std::vector<std::string>& paths, const Extent& extent);

}  // namespace offstage
