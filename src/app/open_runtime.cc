#include "app/open_runtime.h"

#include <algorithm>
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
    notices.add("gpu", fmt::format("{} ({}, {}) is not used: --vram SIZE lets it keep and compute "
                                   "experts",
                                   device.name, format_bytes(device.memory_bytes), device.pci_id));
}

// llama.cpp's flags for the same wish.
void note_foreign_flags(const ModelFlags& flags, Notices& notices) {
  for (const CLI::Option* option : flags.gpu_options) {
    if (option->count() == 0) continue;
    const std::string name = option->get_name();  // "--n-gpu-layers"
    std::string subject = name.substr(2);
    std::replace(subject.begin(), subject.end(), '-', '_');
    notices.add(subject,
                fmt::format("{} has no effect: Offstage places single experts, by how often they "
                            "are called, not layers; say how much of the GPU's memory it may use, "
                            "for example --vram 8G",
                            name == "--n-gpu-layers" ? "-ngl" : name));
  }
}

void print_vram(const Runtime& runtime) {
  if (runtime.device() == nullptr) return;
  const std::string& device = runtime.device()->facts().name;
  if (const DeviceDense* dense = runtime.device_dense())
    fmt::print(
        stderr,
        "vram     {:>11}  {}: attention, router and shared experts of {}; weights {} (RAM has "
        "them too), KV {}, working memory {}\n",
        format_bytes(dense->memory_bytes()), device,
        dense->chunk_rows() == 0
            ? std::string("generated tokens")
            : fmt::format("all tokens, {} of a prompt at once", dense->chunk_rows()),
        format_bytes(dense->weights_bytes()), format_bytes(dense->kv_bytes()),
        format_bytes(dense->working_bytes()));
  if (const DeviceLogits* logits = runtime.device_logits())
    fmt::print(stderr, "vram     {:>11}  {}: logits of generated tokens\n",
               format_bytes(logits->memory_bytes()), device);
  const DeviceExperts* const experts = runtime.device_experts();
  if (experts != nullptr && experts->chunks() != nullptr)
    fmt::print(
        stderr, "vram     {:>11}  {}: working memory for prompts' experts, {} tokens at once\n",
        format_bytes(experts->chunks()->memory_bytes()), device, experts->chunks()->rows_max());
  if (experts != nullptr)
    fmt::print(stderr, "vram     {:>11}  {}: {} experts in each of {} layers, {} there already\n",
               format_bytes(experts->vram().memory_bytes()), device,
               experts->vram().slots_per_layer(), experts->layers_with_slots(),
               experts->vram().resident_count());
}

void print_drive(const DriveChoice& drive) {
  if (drive.probed.empty()) return;
  fmt::print(stderr, "drive    {:.0f} MB/s in blocks of {} at depth {} (probed {}{})\n",
             drive.bytes_per_s / 1e6, format_bytes(drive.block_bytes), drive.depth, drive.probed,
             drive.probe_ns == 0
                 ? std::string()
                 : fmt::format(", in {:.2f} s", static_cast<double>(drive.probe_ns) / 1e9));
}

void print_preloaded(const Runtime::Preloaded& preloaded) {
  const double seconds = static_cast<double>(std::max<int64_t>(preloaded.ns, 1)) / 1e9;
  fmt::print(stderr, "preload  {} experts, {} in {:.1f} s ({:.0f} MB/s)\n", preloaded.experts,
             format_bytes(preloaded.bytes), seconds,
             static_cast<double>(preloaded.bytes) / 1e6 / seconds);
}

}  // namespace

Result<std::unique_ptr<Runtime>> open_runtime(const ModelFlags& flags, Notices& notices) {
  OFFSTAGE_TRY(const RuntimeOptions options, flags.parse());
  note_foreign_flags(flags, notices);
  if (!options.vram_bytes) note_devices(notices);
  NoticePrinter printer(notices);
  ProgressBar bar("loading");
  Runtime::Hooks hooks;
  hooks.longest_prompt = flags.longest_prompt;
  hooks.on_plan = [&](const MemoryPlan& plan, const ModelFile& file) {
    print_plan(plan, file);
    printer.print();
  };
  hooks.on_load = [&](uint64_t done, uint64_t total) { bar.update(done, total); };
  ProgressBar experts_bar("experts");
  hooks.on_preload = [&](uint64_t done, uint64_t total) {
    bar.finish();
    experts_bar.update(done, total);
  };
  auto runtime = Runtime::open(options, notices, hooks);
  bar.finish();
  experts_bar.finish();
  printer.print();
  if (runtime) print_drive((*runtime)->drive());
  if (runtime) print_vram(**runtime);
  if (runtime && (*runtime)->warm_start_tokens() != 0)
    fmt::print(stderr, "warm     the cache knows what {} earlier tokens used\n",
               (*runtime)->warm_start_tokens());
  if (runtime && (*runtime)->preloaded().experts != 0) print_preloaded((*runtime)->preloaded());
  return runtime;
}

}  // namespace offstage
