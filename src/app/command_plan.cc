// offstage plan: what a model needs, what fits where, and what it would do on a machine.
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "app/command.h"
#include "app/default_model.h"
#include "app/past_errors.h"
#include "app/plan_forecast.h"
#include "app/plan_page.h"
#include "app/plan_report.h"
#include "app/report_page.h"
#include "app/run_report.h"
#include "app/terminal.h"
#include "base/units.h"
#include "cache/eviction.h"
#include "plan/hf_config.h"
#include "runtime/kv_cache.h"

namespace offstage {
namespace {

constexpr std::array kRamDefault = {8ull, 16ull, 32ull, 64ull, 128ull, 256ull, 512ull};

struct PlanFlags {
  std::string model, shape, hf_config, quant;
  std::string report_file;
  std::string cache_type_k = "f16", cache_type_v = "f16", cache_policy = "auto";
  std::vector<std::string> ram;
  uint32_t context = 4096, sequences = 1;
  bool shapes = false, json = false;
  ForecastFlags forecast;
};

Result<KvType> kv_type(const char* flag, const std::string& text) {
  if (text == "f16") return KvType::kF16;
  if (text == "f32") return KvType::kF32;
  if (text == "q8_0") return KvType::kQ8_0;
  return make_error(ErrorCode::kInvalidArgument, "{}: expected one of f16, f32, q8_0, found '{}'",
                    flag, text);
}

Result<RuntimeOptions> runtime_options(const PlanFlags& flags) {
  RuntimeOptions options;
  options.context = flags.context;
  options.n_sequences = flags.sequences;
  options.cache_policy = flags.cache_policy;
  OFFSTAGE_TRY(options.k_type, kv_type("-ctk", flags.cache_type_k));
  OFFSTAGE_TRY(options.v_type, kv_type("-ctv", flags.cache_type_v));
  return options;
}

Result<std::vector<uint64_t>> ram_list(const PlanFlags& flags, const PlannedModel& model,
                                       const RuntimeOptions& runtime) {
  if (flags.ram.empty() && !flags.report_file.empty()) return curve_budgets(model, runtime);
  std::vector<uint64_t> list;
  for (const std::string& text : flags.ram) {
    OFFSTAGE_TRY(list.emplace_back(), parse_bytes(text));
  }
  if (list.empty())
    for (const uint64_t gib : kRamDefault) list.push_back(gib << 30);
  std::sort(list.begin(), list.end());
  return list;
}

// A recipe by name; none asked for: what people run (gpt-oss comes in MXFP4 from its makers).
Result<QuantMix> quant_of(const PlanFlags& flags, const ModelSpec& spec) {
  if (flags.quant.empty())
    return spec.architecture == "gpt-oss" ? QuantMix::kMxfp4 : QuantMix::kQ4_K_M;
  const auto mix = quant_mix_from_name(flags.quant);
  if (mix == QuantMix::kMxfp4 && spec.n_moe_layers() == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "--quant mxfp4 is a recipe for experts, and {} has none", spec.name);
  if (mix) return *mix;
  std::string names;
  for (const QuantMix mix : quant_mixes())
    names += (names.empty() ? "" : ", ") + std::string(quant_mix_name(mix));
  return make_error(ErrorCode::kInvalidArgument, "--quant: expected one of {}, found '{}'", names,
                    flags.quant);
}

Result<PlannedModel> open_model(const PlanFlags& flags, std::optional<ModelShape>& shape) {
  if (flags.shape.empty() && flags.hf_config.empty()) {
    OFFSTAGE_TRY(const std::string path, model_or_default(flags.model));
    OFFSTAGE_TRY(std::shared_ptr<const ModelFile> file, ModelFile::open(path));
    if (flags.quant.empty()) return planned_file(std::move(file));
    OFFSTAGE_TRY(const QuantMix mix, quant_of(flags, file->spec));
    return imagine_model(file->spec, file->tensors.output == file->tensors.embedding, mix);
  }
  if (!flags.hf_config.empty()) {
    OFFSTAGE_TRY(const std::string text, read_text_file(flags.hf_config));
    OFFSTAGE_TRY(shape, shape_from_hf_config(text, flags.hf_config));
  } else {
    OFFSTAGE_TRY(shape, find_shape(flags.shape));
  }
  OFFSTAGE_TRY(const ModelSpec spec, spec_of(*shape));
  OFFSTAGE_TRY(const QuantMix mix, quant_of(flags, spec));
  return imagine_model(spec, shape->tied_embedding, mix);
}

Result<PlanReport> make_report(const PlanFlags& flags, Notices& notices) {
  OFFSTAGE_TRY(const RuntimeOptions runtime, runtime_options(flags));
  PlanReport report;
  OFFSTAGE_TRY(report.model, open_model(flags, report.shape));
  OFFSTAGE_TRY(const std::vector<uint64_t> ram, ram_list(flags, report.model, runtime));
  report.cache_policy = flags.cache_policy;
  const PlannedModel& model = report.model;
  OFFSTAGE_TRY_VOID(check_kv_types(model.spec, runtime.k_type, runtime.v_type));
  report.context = flags.context;
  report.sequences = flags.sequences;
  report.kv = kv_needs(model.spec, runtime.k_type, runtime.v_type, flags.context);
  OFFSTAGE_TRY(report.floor_ram_bytes, floor_ram_bytes(model, runtime));
  OFFSTAGE_TRY(report.by_quant, needs_by_quant(model, runtime));
  std::vector<PlannedModel> recipes;
  for (const QuantNeeds& q : report.by_quant)
    recipes.push_back(
        imagine_model(model.spec, model.tied_embedding, *quant_mix_from_name(q.quant)));
  if (model.quant == "file") {
    OFFSTAGE_TRY(const QuantNeeds own, quant_needs(model, runtime));
    report.by_quant.push_back(own);
    recipes.push_back(model);
  }
  OFFSTAGE_TRY(report.capacity, capacity_table(recipes, ram, runtime));
  OFFSTAGE_TRY(report.forecast, make_forecast(flags.forecast, model, runtime, ram, notices));
  report.past = past_forecasts(notices);
  return report;
}

Result<int> show_fit(const PlanFlags& flags) {
  OFFSTAGE_TRY(const RouteFit fit, fit_routing(flags.forecast));
  if (flags.json)
    print_json(fit_json(fit));
  else
    print_fit(fit);
  return kExitOk;
}

Result<int> plan(const PlanFlags& flags) {
  if (flags.shapes) {
    if (flags.json)
      print_json(shapes_json());
    else
      print_shapes();
    return kExitOk;
  }
  const int named = !flags.model.empty() + !flags.shape.empty() + !flags.hf_config.empty();
  if (named == 0 && !flags.forecast.fit_routing.empty()) return show_fit(flags);
  if (named > 1)
    return make_error(ErrorCode::kInvalidArgument,
                      "expected one of -m, --shape and --hf-config, found {} of them", named);
  Notices notices;
  NoticePrinter printer(notices);
  OFFSTAGE_TRY(const PlanReport report, make_report(flags, notices));
  if (!flags.report_file.empty()) {
    OFFSTAGE_TRY(const auto page, plan_page_json(report, notices));
    OFFSTAGE_TRY_VOID(write_report(flags.report_file, page, ReportPage::kPlan));
  }
  printer.print();
  if (flags.json)
    print_json(plan_json(report, notices));
  else
    print_plan(report);
  return kExitOk;
}

}  // namespace

void add_plan_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* command =
      app.add_subcommand("plan", "what a model needs, and what it would do on a machine");
  command->add_option("-m,--model", flags->model,
                      "GGUF file, or any one shard of it (default: as `run`)");
  command->add_option("--shape", flags->shape, "a published model by name (--shapes lists them)");
  command->add_option("--hf-config", flags->hf_config, "a model's config.json");
  command->add_flag("--shapes", flags->shapes, "list the shapes");
  command->add_option("--quant", flags->quant,
                      "recipe of the table by budget (default: the file's own; q4_k_m, gpt-oss "
                      "mxfp4)");
  command->add_option("-c,--ctx-size", flags->context, "positions of context, all sequences")
      ->check(CLI::Range(1u, 1u << 24))
      ->capture_default_str();
  command->add_option("--parallel", flags->sequences, "sequences that share the context")
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  command->add_option("--cache-type-k", flags->cache_type_k, "-ctk: keys as f16, f32 or q8_0")
      ->capture_default_str();
  command->add_option("--cache-type-v", flags->cache_type_v, "-ctv: values as f16, f32 or q8_0")
      ->capture_default_str();
  command->add_option("--ram", flags->ram, "budgets to look at, such as 16G,32G,64G")
      ->delimiter(',');
  command
      ->add_option("--cache-policy", flags->cache_policy,
                   fmt::format("one of {}", fmt::join(policy_names(), ", ")))
      ->capture_default_str();
  flags->forecast.add_to(*command);
  command->add_option("--report", flags->report_file,
                      "write curves over RAM and slots to this HTML file, for a browser");
  command->add_flag("--json", flags->json, "one JSON object");
  command->callback([flags, &chosen] {
    flags->forecast.wants_curves = !flags->report_file.empty();
    chosen = [flags] { return plan(*flags); };
  });
}

}  // namespace offstage
