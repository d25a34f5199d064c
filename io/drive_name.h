// The name by which people know the drive that a file lies on.
#pragma once

#include <string>

namespace offstage {

// "nvme0n1", or "nvme0n1p2" for a partition, as group_by_drive() tells them apart; "dev 0:45" where
// the system names no block device; the path itself if it can't be looked at (opening it is what
// fails).
std::string drive_name(const std::string& path);

}  // namespace offstage
