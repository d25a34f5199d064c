#include "app/open_runtime.h"

#include <cstdio>

#include "app/terminal.h"
#include "base/units.h"
#include "gpu/device.h"

namespace offstage {
namespace {

void print_plan(const MemoryPlan& plan, const ModelFile& file) {
  const ModelSpec& spec = file.spec;
  const std::string experts =
      spec.n_moe_layers() == 0
          ? fmt::format("dense, {} layers", spec.n_layers)
          : fmt::format("{} experts x {} layers, top-{}", spec.router.n_experts,
                        spec.n_moe_layers(), spec.router.n_used);
  fmt::print(stderr, "model    {} ({}), {} parameters, {} active, {}\n", spec.name,
             spec.architecture, format_count(file.total_params()),
             format_count(file.active_params()), experts);
  for (const std::string& line : describe(plan, file.expert_layout()))
    fmt::print(stderr, "{}\n", line);
}

// Promise 5: a GPU that isn't there, or isn't used, is said.
void note_devices(Notices& notices) {
  const auto devices = list_devices(FreeMemory::kSkip);
  if (!devices) {
    notices.add("gpu", devices.error().message + "; everything is computed on the CPU");
    return;
  }
  for (const DeviceFacts& device : *devices)
    notices.add("gpu", fmt::format("{} ({}, {}) is not used: this version computes on the CPU",
                                   device.name, format_bytes(device.memory_bytes), device.pci_id));
}

}  // namespace

Result<std::unique_ptr<Runtime>> open_runtime(const ModelFlags& flags, Notices& notices) {
  OFFSTAGE_TRY(const RuntimeOptions options, flags.parse());
  if (flags.gpu_layers_option->count() != 0)
    notices.add("n_gpu_layers",
                "-ngl has no effect: Offstage places experts, not layers, and this build "
                "computes on the CPU");
  note_devices(notices);
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
  if (runtime && (*runtime)->warm_start_tokens() != 0)
    fmt::print(stderr, "warm     the cache knows what {} earlier tokens used\n",
               (*runtime)->warm_start_tokens());
  return runtime;
}

}  // namespace offstage
