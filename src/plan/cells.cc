#include "plan/cells.h"

#include <fmt/format.h>

#include <algorithm>

#include "plan/token_cost.h"

namespace offstage {
namespace {

Result<Capacity> capacity_in(const PlannedModel& model, uint64_t ram_bytes,
                             const RuntimeOptions& options) {
  OFFSTAGE_TRY(const auto table, capacity_table({&model, 1}, {&ram_bytes, 1}, options));
  return table.front();
}

PlanningSpeeds speeds_of(const PlannedModel& model, const HardwareProfile& machine,
                         const RuntimeOptions& options) {
  Notices unheard;  // the forecast says the same
  const TokenCost cost(model, machine, options.k_type, options.v_type, unheard);
  PlanningSpeeds speeds = {.row_ns = cost.row_ns()};
  for (size_t d = 0; d < model.n_drives(); ++d)
    speeds.drive_bytes_per_s += machine.drive_bytes_per_s(d);
  return speeds;
}

Cell empty_cell(const Capacity& capacity) {
  Cell cell;
  cell.ram_bytes = capacity.ram_bytes;
  cell.fit = capacity.fit;
  cell.kept_share = capacity.kept_share;
  return cell;
}

}  // namespace

Result<Cell> forecast_cell(const CellsQuestion& question, uint64_t ram_bytes,
                           const HardwareProfile& machine, Notices& notices) {
  const auto n_drives = static_cast<uint32_t>(machine.drives.size());
  const PlannedModel model = over_drives(question.model, n_drives);
  const RuntimeOptions& options = question.options.runtime;
  OFFSTAGE_TRY(const Capacity capacity, capacity_in(model, ram_bytes, options));
  Cell cell = empty_cell(capacity);
  cell.drives = n_drives;
  if (cell.fit == Fit::kBelowFloor) return cell;
  const PlanningSpeeds speeds =
      cell.fit == Fit::kResident ? PlanningSpeeds() : speeds_of(model, machine, options);
  OFFSTAGE_TRY(const MemoryPlan plan, plan_for(model, options, ram_bytes, speeds));
  OFFSTAGE_TRY(cell.forecast,
               forecast(model, plan, machine, question.routing, question.options, notices));
  return cell;
}

Result<std::vector<Cell>> forecast_cells(const CellsQuestion& question, Notices& notices) {
  std::vector<Cell> cells;
  for (const uint64_t ram_bytes : question.ram_bytes) {
    if (question.machines.empty()) {
      OFFSTAGE_TRY(const Capacity capacity,
                   capacity_in(question.model, ram_bytes, question.options.runtime));
      cells.push_back(empty_cell(capacity));
    }
    for (const HardwareProfile& machine : question.machines) {
      OFFSTAGE_TRY(cells.emplace_back(), forecast_cell(question, ram_bytes, machine, notices));
    }
  }
  return cells;
}

HardwareProfile with_drives_added(const HardwareProfile& profile, uint32_t n) {
  HardwareProfile more = profile;
  for (uint32_t i = 0; i < n; ++i) {
    more.drives.push_back(profile.drives.front());
    more.drives.back().name = fmt::format("{} (added {})", profile.drives.front().name, i + 1);
  }
  return more;
}

HardwareProfile with_drives_paced(const HardwareProfile& profile, uint64_t bytes_per_s) {
  HardwareProfile paced = profile;
  const uint64_t before = profile.pace_bytes_per_s;
  paced.pace_bytes_per_s = before == 0 ? bytes_per_s : std::min(before, bytes_per_s);
  return paced;
}

}  // namespace offstage
