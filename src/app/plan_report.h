// What `offstage plan` says: tables for people, one object for machines.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/plan_forecast.h"
#include "base/notices.h"
#include "plan/forecast_history.h"
#include "plan/model_shape.h"
#include "plan/needs.h"
#include "plan/planned_model.h"

namespace offstage {

struct PlanReport {
  PlannedModel model;               // in the recipe that is asked about
  std::optional<ModelShape> shape;  // none: a GGUF
  std::vector<QuantNeeds> by_quant;
  uint64_t floor_ram_bytes = 0;
  KvNeeds kv;
  uint32_t context = 0, sequences = 1;
  std::string cache_policy;
  std::vector<Capacity> capacity;  // ram × recipe
  ForecastReport forecast;
  std::vector<KeptForecast> past;  // of this machine
};

void print_plan(const PlanReport& report);
// Schema "offstage.plan/1", documented in the README; names stay.
nlohmann::ordered_json plan_json(const PlanReport& report, const Notices& notices);

// --shapes.
void print_shapes();
nlohmann::ordered_json shapes_json();

}  // namespace offstage
