// offstage pack: a model's experts striped over folders on different drives.
#include <memory>

#include "app/command.h"
#include "app/default_model.h"
#include "app/model_flags.h"
#include "app/terminal.h"
#include "base/units.h"
#include "runtime/pack.h"

namespace offstage {
namespace {

struct PackFlags {
  std::string model;
  std::vector<std::string> drives;
};

void print_report(const PackReport& report) {
  fmt::print(
      "{} {} pieces over {} drive(s), {} each{}\n", report.was_there ? "already packed:" : "packed",
      report.pieces, report.paths.size(), format_bytes(report.file_bytes),
      report.pieces_before == 0 ? ""
                                : fmt::format("; {} were written before", report.pieces_before));
  for (const std::string& path : report.paths) fmt::print("  {}\n", path);
}

Result<int> pack(const PackFlags& flags) {
  OFFSTAGE_TRY(const std::string model, model_or_default(flags.model));
  OFFSTAGE_TRY(const auto file, ModelFile::open(model));
  Notices notices;
  NoticePrinter printer(notices);
  IoEngineOptions io;
  io.paths = file->paths();
  OFFSTAGE_TRY(const auto engine, open_io_engine(io, notices));
  ProgressBar bar("pack", ProgressBar::Eta::kShow);
  PackOptions options;
  options.folders = flags.drives;
  options.cancel = &install_interrupt_flag();
  options.progress = [&](uint64_t done, uint64_t total) {
    printer.print();  // what an earlier pack left, before the bar
    bar.update(done, total);
  };
  const auto report = pack_model(*file, *engine, options, notices);
  bar.finish();
  printer.print();
  if (!report && report.error().code == ErrorCode::kCancelled)
    return make_error(ErrorCode::kCancelled, "{}; the same command goes on from there",
                      report.error().message);
  if (!report) return tl::unexpected(report.error());
  print_report(*report);
  return kExitOk;
}

}  // namespace

void add_pack_command(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<PackFlags>();
  CLI::App* command =
      app.add_subcommand("pack", "stripe a model's experts over folders on several drives");
  add_model_flag(*command, flags->model);
  add_drive_flag(*command, flags->drives,
                 "folder on a drive, once for each: `run` takes the same ones")
      ->required();
  command->callback([flags, &chosen] { chosen = [flags] { return pack(*flags); }; });
}

}  // namespace offstage
