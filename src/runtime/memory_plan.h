// Promise 2: where every byte of `--ram` goes, decided and printed before anything is allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "cache/expert_layout.h"
#include "cache/slot_plan.h"
#include "model/spec.h"
#include "model/tensors.h"
#include "runtime/options.h"

namespace offstage {

struct MemoryPlan {
  uint64_t budget_bytes = 0;   // what the whole process may use
  uint64_t process_bytes = 0;  // program, header, vocabulary, threads, rings, and a reserve
  uint64_t dense_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t rotary_bytes = 0;
  uint64_t scratch_bytes = 0;
  uint64_t slot_bytes = 0;   // staging included
  uint64_t floor_bytes = 0;  // a budget that these options run with, at the next start too
  uint32_t chunk_rows = 0;
  uint32_t kv_pages = 0;
  SlotPlan slots;

  // Every expert has its slot, so the drive is silent once they are read.
  bool all_resident(const ExpertLayout& layout) const {
    return slots.n_slots() == layout.n_layers() * layout.n_experts();
  }
  uint64_t planned_bytes() const {
    return process_bytes + dense_bytes + kv_bytes + rotary_bytes + scratch_bytes + slot_bytes;
  }
};

// What a process uses before the parts of its plan: the program, a header, its vocabulary, its
// record of tokens. A run counts on that much even if it uses a little less, so that it has as many
// slots at every start, and as many as a forecast said.
uint64_t expected_process_bytes(const ModelSpec& spec, uint32_t context);

// `resident_now`: what the process uses before it allocates any of the parts. Errors: kBudget with
// the floor's number; kInvalidArgument for a context of 0.
struct PlanInputs {
  const ModelSpec& spec;
  const ModelTensors& tensors;
  const ExpertLayout& layout;
  const RuntimeOptions& options;
  uint64_t resident_now = 0;
  uint64_t available = 0;                // MemAvailable
  std::optional<uint64_t> cgroup_limit;  // binds: a larger --ram is lowered to it, announced
  // For the width of a prompt's chunks: 0 if not known.
  double drive_bytes_per_s = 0;
  double row_ns = 0;  // to compute one more row
};
Result<MemoryPlan> plan_memory(const PlanInputs& inputs, Notices& notices);

// The plan as the lines printed at start.
std::vector<std::string> describe(const MemoryPlan& plan, const ExpertLayout& layout);

}  // namespace offstage
