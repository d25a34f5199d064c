// stderr as people see it: notices, the plan, a one-line progress bar; and Ctrl-C.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/notices.h"
#include "base/result.h"

namespace offstage {

// Prints what hasn't been printed yet, one line each.
class NoticePrinter {
 public:
  explicit NoticePrinter(const Notices& notices) : notices_(notices) {}
  void print();
  void skip(size_t n) { printed_ = n; }  // said by somebody else

 private:
  const Notices& notices_;
  size_t printed_ = 0;
};

// A bar that redraws itself; silent when stderr is no terminal. With the time left, for what takes
// minutes: then a log gets a line every ten seconds.
class ProgressBar {
 public:
  enum class Eta : bool { kHide, kShow };
  explicit ProgressBar(std::string_view label, Eta eta = Eta::kHide);
  ~ProgressBar() { finish(); }
  void update(uint64_t done, uint64_t total);
  void finish();  // clears the line

 private:
  std::string eta(uint64_t done, uint64_t total);
  void log_line(uint64_t done, uint64_t total);

  std::string_view label_;
  Eta eta_;
  bool active_;
  int last_percent_ = -1;
  SteadyClock clock_;
  int64_t begun_ns_ = 0, logged_ns_ = 0;
};

// The first Ctrl-C sets the flag, the second ends the process.
const std::atomic<bool>& install_interrupt_flag();

// A file's text, or standard input for "-". Errors name the path.
Result<std::string> read_text_file(const std::string& path);

}  // namespace offstage
