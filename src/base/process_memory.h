// What this process uses and may use of the host's memory, as the kernel counts it.
#pragma once

#include <cstdint>
#include <optional>

namespace offstage {

uint64_t resident_bytes();       // VmRSS now
uint64_t peak_resident_bytes();  // VmHWM
uint64_t available_bytes();      // MemAvailable of the machine
// The tightest memory limit of the cgroups (v1 or v2) this process is in; nullopt: none.
std::optional<uint64_t> cgroup_limit_bytes();

}  // namespace offstage
