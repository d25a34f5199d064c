// The forecast of what was just run, beside what was measured: gathered while the run lasts, made
// when its last token is out, printed, kept.
//
// Needs the profile that `offstage probe` keeps; says so where there is none. Takes a second of CPU
// time at most: of a longer run its first tokens are compared. Whatever goes wrong is a notice, the
// run stands as it is.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/notices.h"
#include "plan/forecast_history.h"
#include "plan/hardware_profile.h"
#include "plan/past_run.h"
#include "runtime/session.h"

namespace offstage {

class RunForecast {
 public:
  // `is_wanted`: not --no-forecast.
  explicit RunForecast(bool is_wanted);
  // Whether there is a profile to forecast with: the run keeps its first routes then
  // (RuntimeOptions::keep_first_routes).
  bool is_on() const { return profile_.has_value(); }

  // What comes from now on is compared. Once the runtime is open, before its first forward; again
  // for what is to be compared by itself.
  void begin(Runtime& runtime);
  // `position`: tokens in front of the prompt. Of one that doesn't count the cache learns alone.
  void add(const GenerationRecord& record, uint32_t position, bool counts = true);
  // Makes, keeps and returns it; nothing where nothing can be compared. `command`: "run", or the
  // test of a bench.
  std::optional<KeptForecast> make(Runtime& runtime, const std::string& command, Notices& notices);

  // One line with its end; of nothing why there is none, if that should be said.
  std::string line(const std::optional<KeptForecast>& kept) const;

 private:
  std::optional<HardwareProfile> profile_;
  std::optional<Error> unreadable_;  // a profile that is there
  bool is_wanted_;
  ExpertUsage usage_;
  std::vector<PastGeneration> generations_;
};

// "3.4 % too high" and the like, of a relative error.
std::string error_text(double error);
// `forecast` of the JSON of run and bench; documented in the README.
nlohmann::ordered_json forecast_json(const KeptForecast& kept);

}  // namespace offstage
