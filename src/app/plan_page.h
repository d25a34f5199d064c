// A plan as a page for browsers: the data that lies in it (report/plan.js draws it).
#pragma once

#include <nlohmann/json.hpp>

#include "app/plan_report.h"
#include "base/notices.h"

namespace offstage {

inline constexpr const char* kPlanPageSchema = "offstage.plan_report/1";

// Budgets for a curve, where none were asked for: from the least that runs to what holds
// everything.
Result<std::vector<uint64_t>> curve_budgets(const PlannedModel& model,
                                            const RuntimeOptions& runtime);

// The plan's JSON, and what caches of all sizes would hit on the routing of its forecast. Errors:
// the cache policy's.
Result<nlohmann::ordered_json> plan_page_json(const PlanReport& report, const Notices& notices);

}  // namespace offstage
