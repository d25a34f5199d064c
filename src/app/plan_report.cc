#include "app/plan_report.h"

#include <fmt/format.h>

#include "app/past_errors.h"
#include "app/run_report.h"
#include "base/units.h"
#include "model/spec_family.h"

namespace offstage {
namespace {

using Json = nlohmann::ordered_json;

double gb(uint64_t bytes) { return static_cast<double>(bytes) / 1e9; }
double billions(uint64_t count) { return static_cast<double>(count) / 1e9; }

Json number_or_null(double value) { return value == 0 ? Json() : Json(value); }

// Which of the vocabulary's matrices `active_params` holds (as the model's makers count).
std::string_view active_vocabulary(const ModelSpec& spec) {
  const Family* family = find_family(spec.architecture);
  switch (family == nullptr ? VocabularyCounts::kBoth : family->vocabulary) {
    case VocabularyCounts::kBoth: return "embedding_and_output";
    case VocabularyCounts::kOutput: return "output";
    case VocabularyCounts::kNeither: return "neither";
  }
  return {};
}

std::string experts_of(const ModelSpec& spec) {
  if (spec.n_moe_layers() == 0) return "dense";
  return fmt::format("{} x {}, top-{}{}", spec.n_moe_layers(), spec.router.n_experts,
                     spec.router.n_used, spec.shared_ffn == 0 ? "" : " + shared");
}

// What a file of that recipe would weigh if there were as many parameters as the name says.
uint64_t nominal_bytes(const ModelShape& shape, const QuantNeeds& q) {
  return static_cast<uint64_t>(shape.nominal.total_b() * 1e9 * q.bits_per_weight / 8);
}

void print_nominal(const PlanReport& report, const ModelShape& shape) {
  const NominalParams& nominal = shape.nominal;
  fmt::print("  as its name    {} x {:g} B = {:g} B, {:g} B active: {:.1f} B more than there are",
             nominal.n_experts, nominal.each_b, nominal.total_b(), nominal.active_b(shape.n_used),
             nominal.total_b() - billions(report.model.total_params));
  for (const QuantNeeds& q : report.by_quant)
    if (q.quant == "f16" || q.quant == "q4_k_m")
      fmt::print("; {:.0f} GB in {}", gb(nominal_bytes(shape, q)), q.quant);
  fmt::print("\n");
}

void print_counts(const PlanReport& report) {
  const PlannedModel& model = report.model;
  fmt::print("{}\n", model.name);
  fmt::print("  parameters     {} total, {} active per token\n", format_count(model.total_params),
             format_count(model.active_params));
  if (!report.shape) return;
  const ModelShape& shape = *report.shape;
  if (shape.published.total_b != 0)
    fmt::print("  as published   {:g} B total, {:g} B active\n", shape.published.total_b,
               shape.published.active_b);
  if (shape.nominal.n_experts != 0) print_nominal(report, shape);
  fmt::print("  source         {}\n", shape.source);
}

void print_kv(const PlanReport& report) {
  const KvNeeds& kv = report.kv;
  const uint64_t all = kv.bytes_per_token * report.context;
  fmt::print("  KV             {} per token, {} for {} positions{}\n",
             format_bytes(kv.bytes_per_token), format_bytes(all), report.context,
             report.sequences == 1 ? "" : fmt::format(" of {} sequences", report.sequences));
  if (kv.windowed_layers != 0)
    fmt::print(
        "                 {} of {} layers read only the last {} positions: {} of it is kept "
        "and not read\n",
        kv.windowed_layers, report.model.spec.n_layers, kv.window,
        format_bytes(kv.out_of_window_bytes));
}

void print_quants(const PlanReport& report) {
  fmt::print("\n  {:<8} {:>10} {:>11} {:>10} {:>12} {:>11}\n", "recipe", "weights", "experts",
             "dense", "bits/weight", "least RAM");
  for (const QuantNeeds& q : report.by_quant)
    fmt::print("  {:<8} {:>7.2f} GB {:>8.2f} GB {:>7.2f} GB {:>12.2f} {:>11}\n", q.quant,
               gb(q.weights_bytes), gb(q.experts_bytes), gb(q.dense_bytes), q.bits_per_weight,
               format_bytes(q.floor_ram_bytes));
}

std::string fit_text(const Capacity& capacity) {
  switch (capacity.fit) {
    case Fit::kBelowFloor: return "no";
    case Fit::kResident: return "all";
    case Fit::kFromDrive: return fmt::format("{:.0f} %", 100 * capacity.kept_share);
  }
  return {};
}

// A row per budget, a column per recipe: how much of the experts stays in RAM.
void print_capacity(const PlanReport& report) {
  const size_t columns = report.by_quant.size();
  fmt::print("\n  experts in RAM\n  {:>9}", "--ram");
  for (const QuantNeeds& q : report.by_quant) fmt::print(" {:>7}", q.quant);
  for (size_t i = 0; i < report.capacity.size(); ++i) {
    if (i % columns == 0) fmt::print("\n  {:>9}", format_bytes(report.capacity[i].ram_bytes));
    fmt::print(" {:>7}", fit_text(report.capacity[i]));
  }
  fmt::print("\n");
}

Json published_json(const ModelShape& shape) {
  return {{"total_b", number_or_null(shape.published.total_b)},
          {"active_b", number_or_null(shape.published.active_b)}};
}

Json nominal_json(const ModelShape& shape) {
  if (shape.nominal.n_experts == 0) return nullptr;
  return {{"experts", shape.nominal.n_experts},
          {"each_b", shape.nominal.each_b},
          {"total_b", shape.nominal.total_b()},
          {"active_b", shape.nominal.active_b(shape.n_used)}};
}

Json capacity_json(const Capacity& capacity) {
  return {{"ram_bytes", capacity.ram_bytes},   {"quant", capacity.quant},
          {"fit", fit_name(capacity.fit)},     {"floor_ram_bytes", capacity.floor_ram_bytes},
          {"kept_share", capacity.kept_share}, {"kept_per_layer", capacity.kept_least}};
}

}  // namespace

void print_plan(const PlanReport& report) {
  print_counts(report);
  print_kv(report);
  print_quants(report);
  print_capacity(report);
  print_forecast(report.forecast, report.model);
  print_past_errors(report.past);
}

Json plan_json(const PlanReport& report, const Notices& notices) {
  const PlannedModel& model = report.model;
  Json json;
  json["schema"] = "offstage.plan/1";
  json["model"] = model.name;
  json["architecture"] = model.spec.architecture;
  json["quant"] = model.quant;
  json["total_params"] = model.total_params;
  json["active_params"] = model.active_params;
  json["active_vocabulary"] = active_vocabulary(model.spec);
  json["embedding_params"] = model.embedding_params();
  if (report.shape) {
    json["source"] = report.shape->source;
    json["published"] = published_json(*report.shape);
    json["nominal"] = nominal_json(*report.shape);
    if (report.shape->nominal.n_experts != 0)
      for (const QuantNeeds& q : report.by_quant)
        json["nominal"]["weights_bytes"][q.quant] = nominal_bytes(*report.shape, q);
  }
  json["weights_bytes"] = Json::object();
  json["bits_per_weight"] = Json::object();
  for (const QuantNeeds& q : report.by_quant) {
    json["weights_bytes"][q.quant] = q.weights_bytes;
    json["bits_per_weight"][q.quant] = q.bits_per_weight;
  }
  json["experts_bytes"] = model.experts_bytes();
  json["expert_bytes"] = model.expert_bytes();
  json["dense_bytes"] = model.weights_bytes - model.experts_bytes();
  json["kv_bytes_per_token"] = report.kv.bytes_per_token;
  json["kv_windowed_layers"] = report.kv.windowed_layers;
  json["kv_out_of_window_bytes"] = report.kv.out_of_window_bytes;
  json["context"] = report.context;
  json["sequences"] = report.sequences;
  json["floor_ram_bytes"] = report.floor_ram_bytes;
  json["capacity"] = Json::array();
  for (const Capacity& capacity : report.capacity)
    json["capacity"].push_back(capacity_json(capacity));
  add_forecast_json(report.forecast, json);
  json["past_errors"] = past_errors_json(report.past);
  json["fallbacks"] = notices_json(notices);
  return json;
}

void print_shapes() {
  fmt::print("{:<16} {:>6} {:>6}  {:<24} {}\n", "--shape", "layers", "hidden", "experts",
             "published (total / active, B)");
  for (const ModelShape& shape : known_shapes()) {
    const Result<ModelSpec> spec = spec_of(shape);
    if (!spec) continue;  // a built-in shape is one (tests)
    fmt::print("{:<16} {:>6} {:>6}  {:<24} {:g} / {:g}\n", shape.name, shape.n_layers, shape.hidden,
               experts_of(*spec), shape.published.total_b, shape.published.active_b);
  }
}

Json shapes_json() {
  Json json = {{"schema", "offstage.plan_shapes/1"}, {"shapes", Json::array()}};
  for (const ModelShape& shape : known_shapes())
    json["shapes"].push_back({{"name", shape.name},
                              {"architecture", shape.architecture},
                              {"source", shape.source},
                              {"layers", shape.n_layers},
                              {"hidden", shape.hidden},
                              {"experts", shape.n_experts},
                              {"experts_used", shape.n_used},
                              {"published", published_json(shape)},
                              {"nominal", nominal_json(shape)}});
  return json;
}

}  // namespace offstage
