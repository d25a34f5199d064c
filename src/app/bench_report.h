// Results of offstage bench in the forms that llama-bench has, and for people.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "app/bench_run.h"
#include "base/notices.h"

namespace offstage {

// "offstage.bench/1", documented in README.md here; names stay.
inline constexpr const char* kBenchSchema = "offstage.bench/1";

// A result with everything that explains it: llama-bench's names, then ours.
nlohmann::ordered_json bench_json(Runtime& runtime, const BenchResult& result,
                                  const std::string& text, bool cold, const Notices& notices);

// Of rows as bench_json makes them.
std::string bench_markdown(std::span<const nlohmann::ordered_json> rows);
std::string bench_csv(std::span<const nlohmann::ordered_json> rows);
// One line per token, or per prompt in a test of prompts: when, what it cost by cause, what it
// read.
std::string records_csv(std::span<const nlohmann::ordered_json> rows);
// --vram of a row, and what became of it where that isn't its use.
std::string vram_text(const nlohmann::ordered_json& row);

}  // namespace offstage
