// stderr as people see it: notices, the plan, a one-line progress bar; and Ctrl-C.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

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

// A bar that redraws itself; silent when stderr is no terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string_view label);
  ~ProgressBar() { finish(); }
  void update(uint64_t done, uint64_t total);
  void finish();  // clears the line

 private:
  std::string_view label_;
  bool active_;
  int last_percent_ = -1;
};

// The first Ctrl-C sets the flag, the second ends the process.
const std::atomic<bool>& install_interrupt_flag();

// A file's text, or standard input for "-". Errors name the path.
Result<std::string> read_text_file(const std::string& path);

}  // namespace offstage
