// The flags every command that runs a model shares, spelled as llama.cpp's users know them.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/tokenizer.h"
#include "runtime/options.h"

namespace offstage {

struct ModelFlags {
  std::string model, ram, cache_type_k = "f16", cache_type_v = "f16", io_engine = "auto",
                          direct_io = "auto", prefetch = "auto", probe = "auto", numa = "off",
                          cache_policy = "auto", record = "token", io_fault, replay_routing, pace;
  std::string vram, device = "auto", promote = "auto", placement = "auto", demote = "auto",
                    dense = "auto", device_fault;
  std::vector<std::string> drives;
  uint32_t context = 4096, threads = 0, chunk = 512, batch = 4096, io_depth = 32;
  std::string gpu_layers;  // read to be answered, whatever they say
  bool cpu_moe = false;
  uint32_t spikes = 8;  // slow tokens that are explained one by one
  std::function<uint32_t(const Tokenizer&)> longest_prompt;  // the command's: Runtime::Hooks
  bool no_warm_start = false, no_preload = false, mlock = false, folders_are_drives = false;
  bool no_forecast = false;
  bool keep_first_routes = false;  // the command's: a forecast will be made
  double oracle_recall = 1;
  CLI::Option* chunk_option = nullptr;
  CLI::Option* io_depth_option = nullptr;
  std::vector<CLI::Option*> gpu_options;  // llama.cpp's that --vram stands in for
  CLI::Option* oracle_option = nullptr;   // nullptr without add_measuring_to()

  void add_to(CLI::App& command);
  void add_device_flags(CLI::App& command);
  // Of commands that measure: real routing for a model without, a drive of a fixed speed, slow
  // tokens.
  void add_measuring_to(CLI::App& command);
  // --record is at least layer from now on.
  void record_layers();
  // kInvalidArgument naming the flag.
  Result<RuntimeOptions> parse() const;
};

void add_model_flag(CLI::App& command, std::string& model);
CLI::Option* add_drive_flag(CLI::App& command, std::vector<std::string>& drives,
                            const std::string& help);
inline constexpr const char* kReadDrivesHelp =
    "folder of a store that `offstage pack` made, once for each drive (default: the GGUF in place)";

}  // namespace offstage
