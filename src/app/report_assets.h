// The report's parts that don't change, as the build embedded them (report/embed.cmake).
#pragma once

#include <string_view>

namespace offstage::report_assets {

extern const std::string_view kPage;    // report/page.html, with @marks@
extern const std::string_view kStyle;   // report/page.css
extern const std::string_view kCharts;  // the scripts, in their order
extern const std::string_view kElements;
extern const std::string_view kTimeSections;
extern const std::string_view kTierSections;
extern const std::string_view kFrame;
extern const std::string_view kScript;          // of runs
extern const std::string_view kPlanScript;      // of a plan, with none of the sections
extern const std::string_view kLibrary;         // dygraphs
extern const std::string_view kLibraryStyle;    // its style sheet
extern const std::string_view kLibraryLicence;  // report/dygraphs-licence.txt

}  // namespace offstage::report_assets
