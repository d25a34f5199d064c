#include "cpu/topology.h"

#include <hwloc.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>

namespace offstage {
namespace {

// "max 100000" or "200000 100000": microseconds of CPU per period. 0 where there is no limit.
uint32_t quota_of_file(const std::string& path) {
  std::ifstream file(path);
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  const double cores = std::strtod(quota.c_str(), nullptr) / period;
  return static_cast<uint32_t>(std::max(1.0, std::ceil(cores)));
}

// The tightest quota on the way from the process's own group (cgroup v2, "0::/a/b") to the root.
uint32_t read_quota_cores() {
  std::ifstream groups("/proc/self/cgroup");
  uint32_t tightest = 0;
  for (std::string line; std::getline(groups, line);) {
    if (line.rfind("0::", 0) != 0) continue;
    std::string path = line.substr(3);
    while (!path.empty() && path != "/") {
      const uint32_t cores = quota_of_file("/sys/fs/cgroup" + path + "/cpu.max");
      if (cores != 0) tightest = tightest == 0 ? cores : std::min(tightest, cores);
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
    const uint32_t cores = quota_of_file("/sys/fs/cgroup/cpu.max");
    if (cores != 0) tightest = tightest == 0 ? cores : std::min(tightest, cores);
  }
  return tightest;
}

}  // namespace

Topology read_topology() {
  Topology topology;
  topology.quota_cores = read_quota_cores();
  hwloc_topology_t handle;
  if (hwloc_topology_init(&handle) != 0) return topology;
  hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
  if (hwloc_topology_load(handle) == 0) {
    // The affinity mask as taskset or a parent left it; all that the cpuset allows when unreadable.
    if (hwloc_get_cpubind(handle, allowed, HWLOC_CPUBIND_THREAD) != 0)
      hwloc_bitmap_copy(allowed, hwloc_topology_get_allowed_cpuset(handle));
    const int n_cores = hwloc_get_nbobjs_by_type(handle, HWLOC_OBJ_CORE);
    for (int i = 0; i < n_cores; ++i) {
      hwloc_obj_t core = hwloc_get_obj_by_type(handle, HWLOC_OBJ_CORE, static_cast<unsigned>(i));
      hwloc_bitmap_t usable = hwloc_bitmap_dup(core->cpuset);
      hwloc_bitmap_and(usable, usable, allowed);
      if (const int processor = hwloc_bitmap_first(usable); processor >= 0)
        topology.core_processors.push_back(static_cast<uint32_t>(processor));
      hwloc_bitmap_free(usable);
    }
  }
  hwloc_bitmap_free(allowed);
  hwloc_topology_destroy(handle);
  std::sort(topology.core_processors.begin(), topology.core_processors.end());
  return topology;
}

Status bind_this_thread(uint32_t processor) {
  cpu_set_t* set = CPU_ALLOC(processor + 1);
  if (set == nullptr) return make_error(ErrorCode::kOutOfMemory, "no memory for a processor mask");
  const size_t bytes = CPU_ALLOC_SIZE(processor + 1);
  CPU_ZERO_S(bytes, set);
  CPU_SET_S(processor, bytes, set);
  const int status = sched_setaffinity(0, bytes, set);
  const int err = errno;
  CPU_FREE(set);
  if (status == 0) return {};
  return make_error(error_code_of_errno(err), "cannot bind a thread to processor {}: {}", processor,
                    std::strerror(err));
}

void move_this_thread(uint32_t processor) {
  cpu_set_t before;
  if (sched_getaffinity(0, sizeof before, &before) != 0) return;  // more processors than it holds
  if (bind_this_thread(processor)) sched_setaffinity(0, sizeof before, &before);
}

int this_processor() { return sched_getcpu(); }

}  // namespace offstage
