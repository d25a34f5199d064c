// What the machine did to this process meanwhile: CPU time it got, faults, being pushed aside.
//
// Together with a token's causes this tells "computed longer" from "wasn't allowed to compute": a
// wall time that grows while the CPU time doesn't was taken by somebody else.
#pragma once

#include <cstdint>
#include <string>

#include "base/notices.h"

namespace offstage {

// Counters of the whole process since its start; differences are what a token cost.
struct ProcessLoad {
  int64_t cpu_ns = 0;        // CPU time of all threads
  int64_t throttled_ns = 0;  // its cgroup's quota was used up (counts per CPU)
  uint64_t minor_faults = 0;
  uint64_t major_faults = 0;          // waited for a drive
  uint64_t involuntary_switches = 0;  // a thread lost its CPU though it had work

  ProcessLoad operator-(const ProcessLoad& before) const;
  ProcessLoad& operator+=(const ProcessLoad& other);
};

// CPU time of the whole machine since it booted, in ticks.
struct HostTime {
  uint64_t stolen = 0, total = 0;
};
// The first line of a /proc/stat; zeros if it isn't one.
HostTime host_time_in(const std::string& proc_stat);

class LoadProbe {
 public:
  // Notice "cpu_throttling" if the cgroup has no cpu.stat that can be read: throttled_ns stays 0.
  explicit LoadProbe(Notices& notices);
  ~LoadProbe();
  LoadProbe(const LoadProbe&) = delete;
  LoadProbe& operator=(const LoadProbe&) = delete;

  ProcessLoad read() const;  // three system calls, allocates nothing; any thread
  bool sees_throttling() const { return cpu_stat_ >= 0; }
  // Share of the machine's CPU time since this probe was made that a hypervisor gave to others. Of
  // all CPUs, and dear to read: once a run, not once a token.
  double stolen_share() const;

 private:
  int cpu_stat_ = -1;
  HostTime begin_;
};

// "throttled_usec N" (cgroup v2) or "throttled_time N", in ns (v1), out of a cpu.stat; 0 if it has
// neither.
int64_t throttled_ns_in(const char* cpu_stat);

}  // namespace offstage
