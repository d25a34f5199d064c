// How warm drives are, where the system tells: a drive that gets too warm slows itself down.
//
// Linux' sensors of NVMe (driver nvme) and SATA drives (driver drivetemp), found by the file that
// lies on the drive. A reading asks the drive itself, so a thermometer is read seldom. Not
// thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace offstage {

inline constexpr int16_t kNoTemperature = std::numeric_limits<int16_t>::min();

class DriveThermometers {
 public:
  // The drive of each path; one without a sensor, or that can't be looked at, has no temperature.
  // `sys`: where sysfs is.
  explicit DriveThermometers(std::span<const std::string> paths, const std::string& sys = "/sys");
  ~DriveThermometers();
  DriveThermometers(const DriveThermometers&) = delete;
  DriveThermometers& operator=(const DriveThermometers&) = delete;

  // Degrees Celsius by drive, of now or of at most kReadEveryNs ago; kNoTemperature: not known.
  std::span<const int16_t> read(int64_t now_ns);

  static constexpr int64_t kReadEveryNs = 5'000'000'000;

 private:
  std::vector<int> sensors_;  // descriptors; -1: none
  std::vector<int16_t> celsius_;
  int64_t next_ns_ = std::numeric_limits<int64_t>::min();
};

}  // namespace offstage
