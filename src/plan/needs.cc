#include "plan/needs.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "runtime/kv_cache.h"

namespace offstage {
namespace {

// More than any machine's RAM, little enough that sums of it can't wrap.
constexpr uint64_t kUnbounded = 1ull << 50;

Fit fit_of(const MemoryPlan& plan, const ExpertLayout& layout) {
  return plan.all_resident(layout) ? Fit::kResident : Fit::kFromDrive;
}

Result<Capacity> capacity_of(const PlannedModel& model, uint64_t ram_bytes,
                             const RuntimeOptions& options) {
  Capacity capacity;
  capacity.ram_bytes = ram_bytes;
  capacity.quant = model.quant;
  OFFSTAGE_TRY(capacity.floor_ram_bytes, floor_ram_bytes(model, options));
  const Result<MemoryPlan> plan = plan_for(model, options, ram_bytes);
  if (!plan && plan.error().code == ErrorCode::kBudget) return capacity;
  if (!plan) return tl::unexpected(plan.error());
  capacity.fit = fit_of(*plan, model.layout);
  capacity.spare_bytes = ram_bytes - std::min(ram_bytes, plan->planned_bytes());
  const std::vector<uint32_t>& kept = plan->slots.kept_per_layer;
  capacity.kept_share = 1;
  if (kept.empty()) return capacity;
  capacity.kept_least = *std::min_element(kept.begin(), kept.end());
  capacity.kept_share = std::accumulate(kept.begin(), kept.end(), 0.0) /
                        (static_cast<double>(kept.size()) * model.layout.n_experts());
  return capacity;
}

}  // namespace

KvNeeds kv_needs(const ModelSpec& spec, KvType k_type, KvType v_type, uint32_t context) {
  const KvCache::Shape shape = KvCache::shape_of(spec, k_type, v_type);
  KvNeeds needs;
  needs.bytes_per_token = shape.page_bytes() / kKvBlockPositions;
  const uint64_t layer_bytes = spec.n_layers == 0 ? 0 : needs.bytes_per_token / spec.n_layers;
  for (uint32_t l = 0; l < spec.n_layers; ++l) {
    const uint32_t window = spec.attention.window_of(l);
    if (window == 0) continue;
    ++needs.windowed_layers;
    needs.window = window;
    needs.out_of_window_bytes += layer_bytes * (context - std::min(context, window));
  }
  return needs;
}

Result<MemoryPlan> plan_for(const PlannedModel& model, const RuntimeOptions& options,
                            uint64_t ram_bytes, const PlanningSpeeds& speeds) {
  RuntimeOptions asked = options;
  asked.ram_bytes = ram_bytes;
  Notices notices;  // of a budget that the cgroup lowers: there is none
  return plan_memory({.spec = model.spec,
                      .tensors = model.tensors,
                      .layout = model.layout,
                      .options = asked,
                      .resident_now = options.process_bytes.value_or(
                          expected_process_bytes(model.spec, options.context)),
                      .available = ram_bytes,
                      .cgroup_limit = std::nullopt,
                      .drive_bytes_per_s = speeds.drive_bytes_per_s,
                      .row_ns = speeds.row_ns},
                     notices);
}

Result<uint64_t> floor_ram_bytes(const PlannedModel& model, const RuntimeOptions& options) {
  OFFSTAGE_TRY(const MemoryPlan plan, plan_for(model, options, kUnbounded));
  return plan.floor_bytes;
}

Result<QuantNeeds> quant_needs(const PlannedModel& model, const RuntimeOptions& options) {
  QuantNeeds needs;
  needs.quant = model.quant;
  needs.weights_bytes = model.weights_bytes;
  needs.experts_bytes = model.experts_bytes();
  needs.dense_bytes = model.weights_bytes - needs.experts_bytes;
  needs.bits_per_weight =
      8.0 * static_cast<double>(model.weights_bytes) / static_cast<double>(model.total_params);
  OFFSTAGE_TRY(needs.floor_ram_bytes, floor_ram_bytes(model, options));
  return needs;
}

Result<std::vector<QuantNeeds>> needs_by_quant(const PlannedModel& model,
                                               const RuntimeOptions& options) {
  std::vector<QuantNeeds> table;
  for (const QuantMix mix : quant_mixes()) {
    if (mix == QuantMix::kMxfp4 && model.spec.n_moe_layers() == 0) continue;
    OFFSTAGE_TRY(QuantNeeds needs,
                 quant_needs(imagine_model(model.spec, model.tied_embedding, mix), options));
    table.push_back(std::move(needs));
  }
  return table;
}

std::string_view fit_name(Fit fit) {
  switch (fit) {
    case Fit::kBelowFloor: return "below_floor";
    case Fit::kFromDrive: return "from_drive";
    case Fit::kResident: return "resident";
  }
  CHECK(false);
}

Result<std::vector<Capacity>> capacity_table(std::span<const PlannedModel> models,
                                             std::span<const uint64_t> ram_bytes,
                                             const RuntimeOptions& options) {
  std::vector<Capacity> table;
  for (const uint64_t ram : ram_bytes)
    for (const PlannedModel& model : models) {
      OFFSTAGE_TRY(Capacity capacity, capacity_of(model, ram, options));
      table.push_back(std::move(capacity));
    }
  return table;
}

}  // namespace offstage
