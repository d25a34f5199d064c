// The report of --report: one HTML file that needs no network and no other file.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace offstage {

// A JSON text that may stand between <script> and </script>: the same value, without a character
// that HTML knows, in ASCII. Bytes that aren't UTF-8 become U+FFFD.
std::string script_safe(const nlohmann::ordered_json& json);

// Which page: that of runs, or of a plan.
enum class ReportPage : uint8_t { kRuns, kPlan };

// `report` as report_json() or plan_page_json() makes it; its text reaches the page in one place,
// as script_safe() data. Errors: kIo naming the file.
Status write_report(const std::string& path, const nlohmann::ordered_json& report,
                    ReportPage page = ReportPage::kRuns);

}  // namespace offstage
