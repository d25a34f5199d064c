#include "cpu/topology_numa.h"

#include <hwloc.h>

#include "cpu/topology.h"

namespace offstage {
namespace {

class HwlocTopology {
 public:
  HwlocTopology()
      : loaded_(hwloc_topology_init(&handle_) == 0 && hwloc_topology_load(handle_) == 0) {}
  ~HwlocTopology() {
    if (handle_ != nullptr) hwloc_topology_destroy(handle_);
  }
  HwlocTopology(const HwlocTopology&) = delete;
  HwlocTopology& operator=(const HwlocTopology&) = delete;

  bool loaded() const { return loaded_; }
  hwloc_topology_t get() const { return handle_; }
  int nodes() const { return hwloc_get_nbobjs_by_type(handle_, HWLOC_OBJ_NUMANODE); }
  // The node that the calling thread runs on now; nullptr if not known.
  hwloc_obj_t node_here() const {
    const int processor = this_processor();
    for (int i = 0; processor >= 0 && i < nodes(); ++i) {
      hwloc_obj_t node =
          hwloc_get_obj_by_type(handle_, HWLOC_OBJ_NUMANODE, static_cast<unsigned>(i));
      if (hwloc_bitmap_isset(node->cpuset, static_cast<unsigned>(processor)) != 0) return node;
    }
    return nullptr;
  }

 private:
  hwloc_topology_t handle_ = nullptr;
  bool loaded_ = false;
};

}  // namespace

Status apply_numa(Numa mode, Notices& notices) {
  if (mode == Numa::kOff) return {};
  const HwlocTopology topology;
  if (!topology.loaded() || topology.nodes() < 2) {
    notices.add("numa", "this machine has one memory node: --numa has no effect");
    return {};
  }
  constexpr int kFlags = HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET;
  const int n_nodes = topology.nodes();
  if (mode == Numa::kDistribute) {
    if (hwloc_set_membind(topology.get(), hwloc_topology_get_allowed_nodeset(topology.get()),
                          HWLOC_MEMBIND_INTERLEAVE, kFlags) != 0)
      return tl::unexpected(errno_error("--numa", "memory can't be distributed over the nodes"));
    notices.add("numa", fmt::format("memory goes in turns to {} nodes", n_nodes));
    return {};
  }
  if (mode == Numa::kNumactl) {
    notices.add("numa", fmt::format("{} nodes, used as numactl has set it", n_nodes));
    return {};
  }
  hwloc_obj_t node = topology.node_here();
  if (node == nullptr)
    return make_error(ErrorCode::kUnsupported, "--numa isolate: this thread's node isn't known");
  if (hwloc_set_cpubind(topology.get(), node->cpuset, HWLOC_CPUBIND_THREAD) != 0)
    return tl::unexpected(errno_error("--numa", "threads can't be kept on one node"));
  if (hwloc_set_membind(topology.get(), node->nodeset, HWLOC_MEMBIND_BIND, kFlags) != 0)
    return tl::unexpected(errno_error("--numa", "memory can't be kept on one node"));
  notices.add("numa",
              fmt::format("memory and threads stay on node {} of {}", node->os_index, n_nodes));
  return {};
}

}  // namespace offstage
