#include "app/plan_page.h"

#include <algorithm>
#include <cmath>

#include "app/report_data.h"
#include "base/checked_math.h"
#include "cache/size_curve.h"
#include "plan/needs.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kBudgets = 12;
constexpr uint64_t kBudgetStep = 64ull << 20;
constexpr uint64_t kSmallStep = 1ull << 20;

// As many of the log's tokens as are replayed at all sizes in a few seconds (a replay looks at
// every kept expert for every call).
RouteLog first_tokens(const RouteLog& log) {
  constexpr uint64_t kLooks = 1ull << 26, kLeast = 256, kMost = 2048;
  const uint64_t looks = uint64_t{log.shape.calls_per_token()} * log.shape.n_experts;
  const uint64_t n =
      std::min(log.n_tokens(), std::clamp(kLooks / std::max<uint64_t>(looks, 1), kLeast, kMost));
  RouteLog first;
  first.shape = log.shape;
  first.shape.has_probs = false;
  const auto n_calls = static_cast<ptrdiff_t>(n * log.shape.calls_per_token());
  first.experts.assign(log.experts.begin(), log.experts.begin() + n_calls);
  first.tokens.assign(log.tokens.begin(), log.tokens.begin() + static_cast<ptrdiff_t>(n));
  first.prefill.assign(n, 0);
  for (const uint64_t start : log.starts)
    if (start < n) first.starts.push_back(start);
  return first;
}

Result<Json> curve_json(const PlanReport& report) {
  const RouteLog log = first_tokens(report.forecast.log);
  const ExpertLayout& layout = report.model.layout;
  const std::vector<uint32_t> all(layout.n_layers(), layout.n_experts());
  OFFSTAGE_TRY(const SizeCurve curve, size_curve(log, report.cache_policy, all));
  uint64_t bytes_of_one = 0;  // an expert of every layer
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    bytes_of_one += layout.expert_bytes(LayerIndex(l));
  Json points = Json::array();
  for (const SizeCurve::Point& point : curve.points)
    points.push_back({{"kept", point.kept},
                      {"bytes", point.kept * bytes_of_one},
                      {"policy", point.policy},
                      {"optimum", point.optimum}});
  return Json{{"policy", report.cache_policy}, {"routing", report.forecast.routing},
              {"experts", layout.n_experts()}, {"tokens", curve.tokens},
              {"skipped", curve.skipped},      {"points", std::move(points)}};
}

}  // namespace

Result<std::vector<uint64_t>> curve_budgets(const PlannedModel& model,
                                            const RuntimeOptions& runtime) {
  OFFSTAGE_TRY(const uint64_t least, floor_ram_bytes(model, runtime));
  const auto most = static_cast<double>(least + model.experts_bytes()) * 1.1;
  const uint64_t step = most > 32 * static_cast<double>(kBudgetStep) ? kBudgetStep : kSmallStep;
  const double ratio = most / static_cast<double>(least);
  std::vector<uint64_t> budgets;
  for (uint32_t i = 0; i < kBudgets; ++i) {
    const double bytes = static_cast<double>(least) * std::pow(ratio, double(i) / (kBudgets - 1));
    budgets.push_back(round_up(static_cast<uint64_t>(bytes), step));
  }
  budgets.erase(std::unique(budgets.begin(), budgets.end()), budgets.end());
  return budgets;
}

Result<Json> plan_page_json(const PlanReport& report, const Notices& notices) {
  Json json = report_json({});
  json["schema"] = kPlanPageSchema;
  json.erase("runs");
  json["plan"] = plan_json(report, notices);
  if (report.forecast.log.n_tokens() != 0) {
    OFFSTAGE_TRY(json["cache_curve"], curve_json(report));
  }
  return json;
}

}  // namespace offstage
