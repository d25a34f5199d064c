// What a model needs, in bytes: weights by recipe, KV by context, the floor, what fits where.
//
// Nothing here is a formula of its own: sizes are those of the directory, KV that of the KvCache,
// floor and slots those of plan_memory(), which refuses or runs by the same numbers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "plan/planned_model.h"
#include "runtime/memory_plan.h"
#include "runtime/options.h"

namespace offstage {

struct KvNeeds {
  uint64_t bytes_per_token = 0;  // all layers; every position is kept in every layer
  uint32_t windowed_layers = 0;
  uint32_t window = 0;
  // What positions that no window reaches any more take of it; 0 without windows.
  uint64_t out_of_window_bytes = 0;
};
// The last for a context of so many positions.
KvNeeds kv_needs(const ModelSpec& spec, KvType k_type, KvType v_type, uint32_t context);

// What a run that reads from its drives knows of them when it plans (PlanInputs); 0: not known.
struct PlanningSpeeds {
  double drive_bytes_per_s = 0;
  double row_ns = 0;
};
// The plan that a run with these options would make, or refuse (kBudget with the floor).
Result<MemoryPlan> plan_for(const PlannedModel& model, const RuntimeOptions& options,
                            uint64_t ram_bytes, const PlanningSpeeds& speeds = {});
// The least --ram that these options run with.
Result<uint64_t> floor_ram_bytes(const PlannedModel& model, const RuntimeOptions& options);

// One line of the table by recipe.
struct QuantNeeds {
  std::string quant;
  uint64_t weights_bytes = 0;
  uint64_t experts_bytes = 0;
  uint64_t dense_bytes = 0;
  uint64_t floor_ram_bytes = 0;
  double bits_per_weight = 0;
};
Result<QuantNeeds> quant_needs(const PlannedModel& model, const RuntimeOptions& options);
// Every recipe; MXFP4 only of models with experts.
Result<std::vector<QuantNeeds>> needs_by_quant(const PlannedModel& model,
                                               const RuntimeOptions& options);

// Which way a budget runs.
enum class Fit : uint8_t {
  kBelowFloor,  // refused
  kFromDrive,   // some experts have a slot, the others are read when they are called
  kResident,    // everything is in RAM
};
std::string_view fit_name(Fit fit);  // "below_floor", "from_drive", "resident"

struct Capacity {
  uint64_t ram_bytes = 0;
  std::string quant;
  Fit fit = Fit::kBelowFloor;
  uint64_t floor_ram_bytes = 0;
  double kept_share = 0;     // of the experts, that stay in RAM; 1 if all do or there are none
  uint32_t kept_least = 0;   // per layer
  uint64_t spare_bytes = 0;  // of the budget, that nothing has a use for
};
// ram × recipe, in the order of `ram_bytes`, then of `models`.
Result<std::vector<Capacity>> capacity_table(std::span<const PlannedModel> models,
                                             std::span<const uint64_t> ram_bytes,
                                             const RuntimeOptions& options);

}  // namespace offstage
