#include "app/open_runtime.h"

#include <cstdio>

#include "app/terminal.h"
#include "base/units.h"

namespace offstage {
namespace {

void print_plan(const MemoryPlan& plan, const ModelFile& file) {
  const ModelSpec& spec = file.spec;
  fmt::print(stderr, "model    {} ({}), {} parameters, {} active, {} experts x {} layers, top-{}\n",
             spec.name, spec.architecture, format_count(file.total_params()),
             format_count(file.active_params()), spec.router.n_experts, spec.n_layers,
             spec.router.n_used);
  for (const std::string& line : describe(plan, file.expert_layout()))
    fmt::print(stderr, "{}\n", line);
}

}  // namespace

Result<std::unique_ptr<Runtime>> open_runtime(const ModelFlags& flags, Notices& notices) {
  OFFSTAGE_TRY(const RuntimeOptions options, flags.parse());
  if (flags.gpu_layers_option->count() != 0)
    notices.add("gpu",
                "-ngl has no effect: Offstage places experts, not layers, and this build "
                "computes on the CPU");
  NoticePrinter printer(notices);
  ProgressBar bar("loading");
  Runtime::Hooks hooks;
  hooks.on_plan = [&](const MemoryPlan& plan, const ModelFile& file) {
    print_plan(plan, file);
    printer.print();
  };
  hooks.on_load = [&](uint64_t done, uint64_t total) { bar.update(done, total); };
  auto runtime = Runtime::open(options, notices, hooks);
  bar.finish();
  printer.print();
  return runtime;
}

}  // namespace offstage
