// Promise 5, "nothing silent": every fallback and every option that can't act is said once, here.
//
// Layers below src/app never print. They add a notice; the app prints each as one line at start and
// puts the list into every JSON report (`fallbacks`). Thread-safe.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace offstage {

struct Notice {
  std::string subject;  // stable word: "io_engine", "direct_io", "huge_pages", "isa" …
  std::string text;     // one sentence: what was asked, what happens instead, why
};

class Notices {
 public:
  // A notice with the same subject and text as an earlier one is said only once.
  void add(std::string_view subject, std::string text);
  std::vector<Notice> list() const;

 private:
  mutable std::mutex mutex_;
  std::vector<Notice> notices_;
};

}  // namespace offstage
