// The commands of the program: each adds its flags to a CLI11 subcommand and runs.
//
// Only this folder prints or exits. Results go to stdout, everything about the run to stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "base/result.h"

namespace offstage {

// Exit codes, documented in the README.
inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;          // the world said no; one line on stderr says what
inline constexpr int kExitUsage = 2;          // flags
inline constexpr int kExitInterrupted = 130;  // Ctrl-C; the summary was still printed

using Command = std::function<Result<int>()>;

// Each declares its subcommand on `app` and sets `chosen` when that subcommand was parsed.
void add_run_command(CLI::App& app, Command& chosen);
void add_inspect_command(CLI::App& app, Command& chosen);
void add_tokenize_command(CLI::App& app, Command& chosen);
void add_eval_command(CLI::App& app, Command& chosen);
void add_trace_command(CLI::App& app, Command& chosen);
void add_trace_record_command(CLI::App& trace, Command& chosen);  // a part of it
void add_bench_command(CLI::App& app, Command& chosen);
void add_pack_command(CLI::App& app, Command& chosen);
void add_plan_command(CLI::App& app, Command& chosen);
void add_probe_command(CLI::App& app, Command& chosen);

}  // namespace offstage
