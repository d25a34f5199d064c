// The table: a model on machines that differ in RAM and drives.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/notices.h"
#include "base/result.h"
#include "plan/forecast.h"
#include "plan/hardware_profile.h"
#include "plan/needs.h"
#include "plan/planned_model.h"

namespace offstage {

struct Cell {
  uint64_t ram_bytes = 0;
  uint32_t drives = 0;  // 0: no profile, nothing is forecast
  Fit fit = Fit::kBelowFloor;
  double kept_share = 0;
  std::optional<Forecast> forecast;  // none below the floor or without a profile
};

// What the cells share. `machines`: empty, or profiles that differ in their drives; every one is
// forecast with the same tokens. `routing`: not looked at in a dense model.
struct CellsQuestion {
  const PlannedModel& model;
  std::span<const uint64_t> ram_bytes;
  std::span<const HardwareProfile> machines;
  const RouteLog& routing;
  const ForecastOptions& options;
};
// In the order of `ram_bytes`, then of `machines`.
Result<std::vector<Cell>> forecast_cells(const CellsQuestion& question, Notices& notices);
// One of them.
Result<Cell> forecast_cell(const CellsQuestion& question, uint64_t ram_bytes,
                           const HardwareProfile& machine, Notices& notices);

// The machine and as many more drives like its first.
HardwareProfile with_drives_added(const HardwareProfile& profile, uint32_t n);
// The machine with drives that give at most so many bytes per second (`run --pace`).
HardwareProfile with_drives_paced(const HardwareProfile& profile, uint64_t bytes_per_s);

}  // namespace offstage
