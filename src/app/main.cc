// offstage <command> [-m model.gguf] [options]
#include <cstdio>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "app/command.h"

namespace {

// llama.cpp spells some long flags with one dash; CLI11 would read -ngl as -n gl.
const std::unordered_map<std::string_view, std::string_view> kOneDashSpellings = {
    {"-ngl", "--n-gpu-layers"}, {"-ctk", "--cache-type-k"},  {"-ctv", "--cache-type-v"},
    {"-ub", "--ubatch-size"},   {"-sys", "--system-prompt"}, {"-cmoe", "--cpu-moe"},
    {"-ncmoe", "--n-cpu-moe"},
};

std::vector<std::string> rewrite_spellings(int argc, char** argv) {
  std::vector<std::string> words;
  for (int i = argc - 1; i >= 1; --i) {  // CLI11 takes them last first
    const auto known = kOneDashSpellings.find(argv[i]);
    words.emplace_back(known == kOneDashSpellings.end() ? std::string_view(argv[i])
                                                        : known->second);
  }
  return words;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Offstage runs Mixture-of-Experts GGUF models that don't fit in memory: experts stay on "
      "the drive and are brought on when the router calls them.",
      "offstage");
  app.require_subcommand(1);
  app.set_version_flag("--version", OFFSTAGE_VERSION);
  offstage::Command command;
  offstage::add_run_command(app, command);
  offstage::add_inspect_command(app, command);
  offstage::add_tokenize_command(app, command);
  offstage::add_eval_command(app, command);
  offstage::add_trace_command(app, command);
  offstage::add_bench_command(app, command);
  offstage::add_pack_command(app, command);
  offstage::add_plan_command(app, command);
  offstage::add_probe_command(app, command);
  try {
    app.parse(rewrite_spellings(argc, argv));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? offstage::kExitOk : offstage::kExitUsage;
  }
  const auto code = command();
  if (code) return *code;
  fmt::print(stderr, "offstage: error ({}): {}\n", offstage::error_code_name(code.error().code),
             code.error().message);
  switch (code.error().code) {
    case offstage::ErrorCode::kInvalidArgument: return offstage::kExitUsage;
    case offstage::ErrorCode::kCancelled: return offstage::kExitInterrupted;
    default: return offstage::kExitError;
  }
}
