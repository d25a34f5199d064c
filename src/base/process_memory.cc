#include "base/process_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace offstage {
namespace {

// "VmHWM:    1234 kB" of /proc/self/status and /proc/meminfo.
uint64_t proc_field_bytes(const char* path, const std::string& field) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, field.size(), field) != 0) continue;
    std::istringstream words(line.substr(field.size()));
    uint64_t kib = 0;
    words >> kib;
    return kib * 1024;
  }
  return 0;
}

std::optional<uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (!(file >> value)) return std::nullopt;  // absent, or "max"
  // cgroup v1 spells "no limit" as the largest page-rounded int64.
  if (value >= (uint64_t{1} << 62)) return std::nullopt;
  return value;
}

// A limit anywhere up the path binds.
std::optional<uint64_t> tightest(const std::string& mount, std::string group,
                                 const std::string& file) {
  std::optional<uint64_t> limit;
  while (true) {
    if (const auto here = number_in(mount + group + "/" + file))
      limit = limit ? std::min(*limit, *here) : *here;
    if (group.empty() || group == "/") return limit;
    group.erase(group.rfind('/'));
  }
}

}  // namespace

uint64_t resident_bytes() { return proc_field_bytes("/proc/self/status", "VmRSS:"); }
uint64_t peak_resident_bytes() { return proc_field_bytes("/proc/self/status", "VmHWM:"); }
uint64_t available_bytes() { return proc_field_bytes("/proc/meminfo", "MemAvailable:"); }

std::optional<uint64_t> cgroup_limit_bytes() {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  std::optional<uint64_t> limit;
  const auto take = [&](std::optional<uint64_t> found) {
    if (found) limit = limit ? std::min(*limit, *found) : *found;
  };
  while (std::getline(file, line)) {
    // "4:memory:/group" (v1) or "0::/group" (v2)
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (("," + controllers + ",").find(",memory,") != std::string::npos)
      take(tightest("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
    if (controllers.empty()) take(tightest("/sys/fs/cgroup", group, "memory.max"));
  }
  return limit;
}

}  // namespace offstage
