#include "base/process_load.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace offstage {
namespace {

// The group's own cpu.stat, or that of the nearest group above which has one.
int open_cpu_stat(const std::string& mount, std::string group) {
  while (true) {
    const int fd = open((mount + group + "/cpu.stat").c_str(), O_RDONLY | O_CLOEXEC);
    if (fd >= 0 || group.empty() || group == "/") return fd;
    group.erase(group.rfind('/'));
  }
}

int open_cpu_stat() {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  int fd = -1;
  while (fd < 0 && std::getline(file, line)) {
    // "2:cpu,cpuacct:/group" (v1) or "0::/group" (v2)
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) fd = open_cpu_stat("/sys/fs/cgroup", group);
    if (("," + controllers + ",").find(",cpu,") != std::string::npos)
      fd = open_cpu_stat("/sys/fs/cgroup/cpu", group);
  }
  return fd;
}

HostTime host_time() {
  std::ifstream file("/proc/stat");
  std::string line;
  std::getline(file, line);
  return host_time_in(line);
}

}  // namespace

ProcessLoad ProcessLoad::operator-(const ProcessLoad& before) const {
  return {cpu_ns - before.cpu_ns, throttled_ns - before.throttled_ns,
          minor_faults - before.minor_faults, major_faults - before.major_faults,
          involuntary_switches - before.involuntary_switches};
}

ProcessLoad& ProcessLoad::operator+=(const ProcessLoad& other) {
  cpu_ns += other.cpu_ns;
  throttled_ns += other.throttled_ns;
  minor_faults += other.minor_faults;
  major_faults += other.major_faults;
  involuntary_switches += other.involuntary_switches;
  return *this;
}

int64_t throttled_ns_in(const char* cpu_stat) {
  if (const char* at = std::strstr(cpu_stat, "throttled_usec "))
    return std::strtoll(at + 15, nullptr, 10) * 1000;
  if (const char* at = std::strstr(cpu_stat, "throttled_time "))
    return std::strtoll(at + 15, nullptr, 10);
  return 0;
}

// cpu user nice system idle iowait irq softirq steal; guests' time, behind it, is in user's.
HostTime host_time_in(const std::string& proc_stat) {
  constexpr int kColumns = 8;
  std::istringstream words(proc_stat);
  std::string name;
  words >> name;
  HostTime time;
  uint64_t ticks = 0;
  int column = 0;
  while (column < kColumns && words >> ticks) {
    time.total += ticks;
    if (++column == kColumns) time.stolen = ticks;
  }
  return name == "cpu" ? time : HostTime();
}

LoadProbe::LoadProbe(Notices& notices) : cpu_stat_(open_cpu_stat()), begin_(host_time()) {
  if (cpu_stat_ < 0)
    notices.add("cpu_throttling", "no cpu.stat of this process's cgroup: a CPU quota isn't seen");
}

LoadProbe::~LoadProbe() {
  if (cpu_stat_ >= 0) close(cpu_stat_);
}

double LoadProbe::stolen_share() const {
  const HostTime now = host_time();
  if (now.total <= begin_.total || now.stolen < begin_.stolen) return 0;
  return static_cast<double>(now.stolen - begin_.stolen) /
         static_cast<double>(now.total - begin_.total);
}

ProcessLoad LoadProbe::read() const {
  ProcessLoad load;
  timespec cpu = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  load.cpu_ns = int64_t{cpu.tv_sec} * 1'000'000'000 + cpu.tv_nsec;
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  load.minor_faults = static_cast<uint64_t>(usage.ru_minflt);
  load.major_faults = static_cast<uint64_t>(usage.ru_majflt);
  load.involuntary_switches = static_cast<uint64_t>(usage.ru_nivcsw);
  char text[1024];
  const ssize_t n = cpu_stat_ < 0 ? -1 : pread(cpu_stat_, text, sizeof text - 1, 0);
  if (n > 0) {
    text[n] = '\0';
    load.throttled_ns = throttled_ns_in(text);
  }
  return load;
}

}  // namespace offstage
