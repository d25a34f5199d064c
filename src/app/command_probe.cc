// offstage probe: this machine measured, as the profile that forecasts are made with.
#include <cstdlib>
#include <memory>

#include "app/command.h"
#include "app/default_model.h"
#include "app/terminal.h"
#include "base/units.h"
#include "plan/machine_probe.h"

namespace offstage {
namespace {

struct ProbeFlags {
  std::vector<std::string> files;
  std::string output;
  uint32_t threads = 0;
  double seconds = 3;
  bool json = false;
};

void print_profile(const HardwareProfile& profile) {
  fmt::print("{}\n", profile.machine);
  fmt::print("  RAM      {:>8.1f} GB/s read\n", profile.ram_read_bytes_per_s / 1e9);
  fmt::print("  hashing  {:>8.1f} GB/s a thread\n", profile.hash_bytes_per_s / 1e9);
  fmt::print(
      "  hand-out {:>8.1f} us, of a product {:.1f} us more, a layer's bookkeeping {:.1f} us, "
      "{:.1f} more where experts go, {:.1f} a read, a choice of token {:.1f} us, waking after a "
      "read {:.1f} us\n",
      static_cast<double>(profile.dispatch_ns) / 1e3, static_cast<double>(profile.product_ns) / 1e3,
      static_cast<double>(profile.event_ns) / 1e3, static_cast<double>(profile.policy_ns) / 1e3,
      static_cast<double>(profile.miss_ns) / 1e3, static_cast<double>(profile.token_ns) / 1e3,
      static_cast<double>(profile.wake_ns) / 1e3);
  if (profile.attention_ns != 0)
    fmt::print(
        "  a layer  {:>8.1f} us of attention beside its bytes, router {:.1f}, experts {:.1f}\n",
        static_cast<double>(profile.attention_ns) / 1e3,
        static_cast<double>(profile.router_ns) / 1e3,
        static_cast<double>(profile.experts_ns) / 1e3);
  fmt::print("  beside reads, arithmetic takes {:.2f} times as long\n",
             profile.slowdown_beside_reads);
  for (const DriveSpeed& drive : profile.drives)
    fmt::print(
        "  drive    {:>8.2f} GB/s ({}), blocks of {} at depth {}; one alone {:.2f} GB/s; {:.0f} us "
        "for a request beside its bytes; {:.2f} GB/s in its slowest second, p99 of a read {:.1f} "
        "ms, idle {:.2f} ms{}\n",
        drive.bytes_per_s / 1e9, drive.name, format_bytes(drive.block_bytes), drive.depth,
        drive.lone_bytes_per_s / 1e9, static_cast<double>(drive.request_ns) / 1e3,
        drive.slowest_second / 1e9, static_cast<double>(drive.read_p99_ns) / 1e6,
        static_cast<double>(drive.latency_ns + drive.jitter_ns) / 1e6,
        drive.answers_together ? "; answers when it has nothing left to read" : "");
  fmt::print("  {:<8} {:>14} {:>20}\n", "format", "one row, GB/s", "prompt, G products/s");
  for (const KernelSpeed& kernel : profile.kernels)
    fmt::print("  {:<8} {:>14.2f} {:>20.1f}\n", tensor_type_traits(kernel.type).name,
               kernel.decode_bytes_per_s / 1e9, kernel.prefill_params_per_s / 1e9);
}

Result<int> probe(const ProbeFlags& flags) {
  MachineProbeOptions options;
  options.files = flags.files;
  if (options.files.empty()) {
    OFFSTAGE_TRY(options.files.emplace_back(), model_or_default(""));
  }
  options.threads = flags.threads;
  // Without it the probe says what stands in.
  options.layer_model = demo_model().value_or(kDemoFile);
  options.drive_ns = static_cast<int64_t>(flags.seconds * 1e9);
  if (const char* isa = std::getenv("OFFSTAGE_ISA")) options.isa = isa;
  Notices notices;
  NoticePrinter printer(notices);
  ProgressBar bar("probe");
  options.progress = [&](std::string_view, uint64_t done, uint64_t total) {
    bar.update(done, total);
  };
  const SteadyClock clock;
  const Result<HardwareProfile> profile = probe_machine(options, clock, notices);
  bar.finish();
  printer.print();
  if (!profile) return tl::unexpected(profile.error());
  const std::string path =
      flags.output.empty() ? kept_profile_path().value_or("machine.json") : flags.output;
  if (path != "-") {
    OFFSTAGE_TRY_VOID(keep_profile(path, *profile));
    fmt::print(stderr, "note     profile: written to {}\n", path);
  }
  if (flags.json || path == "-")
    fmt::print("{}", profile_text(*profile));
  else
    print_profile(*profile);
  return kExitOk;
}

}  // namespace

void add_probe_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ProbeFlags>();
  CLI::App* command = app.add_subcommand("probe", "measure this machine: drives, RAM, processors");
  command
      ->add_option("--on", flags->files,
                   "file to read in, of 16 MiB or more, better of GBs; one on each drive (default: "
                   "the model that "
                   "`run` would take)")
      ->allow_extra_args(false);
  command->add_option("--seconds", flags->seconds, "how long each drive is kept busy")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->add_option("-t,--threads", flags->threads, "compute threads (default: one per core)")
      ->check(CLI::Range(0u, 1024u));
  command->add_option("-o,--output", flags->output,
                      "file for the profile (default: where `plan` looks; - for stdout)");
  command->add_flag("--json", flags->json, "the profile on stdout");
  command->callback([flags, &chosen] { chosen = [flags] { return probe(*flags); }; });
}

}  // namespace offstage
