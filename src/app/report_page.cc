#include "app/report_page.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "app/report_assets.h"
#include "base/check.h"

namespace offstage {
namespace {

// Browsers would look for the map, and it isn't there.
std::string_view without_source_map(std::string_view text) {
  const size_t mark = text.rfind("# sourceMappingURL=");
  return mark == std::string_view::npos || mark < 2 ? text : text.substr(0, mark - 2);
}

std::string page_scripts(ReportPage page) {
  std::vector<std::string_view> parts = {report_assets::kCharts, report_assets::kElements,
                                         report_assets::kFrame};
  if (page == ReportPage::kPlan) {
    parts.push_back(report_assets::kPlanScript);
  } else {
    for (const std::string_view part :
         {report_assets::kTimeSections, report_assets::kTierSections, report_assets::kScript})
      parts.push_back(part);
  }
  std::string text;
  for (const std::string_view part : parts) text.append(part).append("\n");
  return text;
}

}  // namespace

std::string script_safe(const nlohmann::ordered_json& json) {
  const std::string text = json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size());
  for (const char c : text) {
    switch (c) {  // in JSON they stand only within strings
      case '<': safe += "\\u003c"; break;
      case '>': safe += "\\u003e"; break;
      case '&': safe += "\\u0026"; break;
      default: safe += c;
    }
  }
  return safe;
}

Status write_report(const std::string& path, const nlohmann::ordered_json& report,
                    ReportPage kind) {
  const std::string data = script_safe(report), scripts = page_scripts(kind);
  const std::pair<std::string_view, std::string_view> parts[] = {
      {"@library_style@", without_source_map(report_assets::kLibraryStyle)},
      {"@style@", report_assets::kStyle},
      {"@data@", data},
      {"@library_licence@", report_assets::kLibraryLicence},
      {"@library@", without_source_map(report_assets::kLibrary)},
      {"@scripts@", scripts}};
  std::ofstream file(path, std::ios::binary);
  std::string_view page = report_assets::kPage;
  // Marks are looked for in the page alone, in their order: what is put in is never searched.
  for (const auto& [mark, text] : parts) {
    const size_t at = page.find(mark);
    CHECK_NE(at, std::string_view::npos);
    file << page.substr(0, at) << text;
    page.remove_prefix(at + mark.size());
  }
  file << page;
  file.close();
  if (!file)
    return make_error(ErrorCode::kIo, "{}: cannot write the report: {}", path,
                      std::strerror(errno));
  return {};
}

}  // namespace offstage
