#include "io/drive_temperature.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <fstream>

namespace offstage {
namespace {

namespace fs = std::filesystem;

// What a folder holds; empty where it can't be looked at, or goes away meanwhile.
std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error))
    entries.push_back(entry->path());
  return entries;
}

// Of a drive, not of the board or the controller that are above it in the tree.
bool is_of_drive(const fs::path& sensor) {
  std::ifstream file(sensor / "name");
  std::string driver;
  std::getline(file, driver);
  return driver == "nvme" || driver == "drivetemp";
}

int open_sensor(const fs::path& sensor) {
  return is_of_drive(sensor) ? open((sensor / "temp1_input").c_str(), O_RDONLY | O_CLOEXEC) : -1;
}

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// …/hwmon/hwmon3 or …/hwmon3, of the device itself or, where `device` joins the paths to one drive
// (nvme-subsys0), of the controller nvme0 in it. -1 if there is none.
int sensor_in(const fs::path& device, bool controllers_too) {
  int fd = -1;
  for (const fs::path& entry : entries_of(device)) {
    const std::string name = entry.filename();
    if (name == "hwmon") {
      for (const fs::path& sensor : entries_of(entry))
        if (fd < 0) fd = open_sensor(sensor);
    } else if (name.starts_with("hwmon")) {
      fd = open_sensor(entry);
    } else if (controllers_too && name.starts_with("nvme") && is_number(name.substr(4))) {
      fd = sensor_in(entry, false);
    }
    if (fd >= 0) return fd;
  }
  return -1;
}

// From the block device upwards: …/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p2.
int sensor_of(const std::string& path, const std::string& sys) {
  struct stat facts = {};
  if (stat(path.c_str(), &facts) != 0) return -1;
  std::error_code error;
  const fs::path root = fs::canonical(sys, error);
  fs::path device = fs::canonical(
      fmt::format("{}/dev/block/{}:{}", sys, major(facts.st_dev), minor(facts.st_dev)), error);
  if (error) return -1;
  for (; device != root && device.has_relative_path(); device = device.parent_path())
    if (const int fd = sensor_in(device, true); fd >= 0) return fd;
  return -1;
}

// Thousandths of a degree, as text.
int16_t read_celsius(int sensor) {
  char text[32];
  const ssize_t n = sensor < 0 ? -1 : pread(sensor, text, sizeof text, 0);
  int32_t thousandths = 0;
  if (n <= 0 || std::from_chars(text, text + n, thousandths).ec != std::errc())
    return kNoTemperature;
  return static_cast<int16_t>(thousandths / 1000);
}

}  // namespace

DriveThermometers::DriveThermometers(std::span<const std::string> paths, const std::string& sys)
    : celsius_(paths.size(), kNoTemperature) {
  for (const std::string& path : paths) sensors_.push_back(sensor_of(path, sys));
}

DriveThermometers::~DriveThermometers() {
  for (const int sensor : sensors_)
    if (sensor >= 0) close(sensor);
}

std::span<const int16_t> DriveThermometers::read(int64_t now_ns) {
  if (now_ns < next_ns_) return celsius_;
  next_ns_ = now_ns + kReadEveryNs;
  for (size_t i = 0; i < sensors_.size(); ++i) celsius_[i] = read_celsius(sensors_[i]);
  return celsius_;
}

}  // namespace offstage
