#include "app/terminal.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

namespace offstage {
namespace {

constexpr int kBarWidth = 30;
std::atomic<bool> g_interrupted{false};  // the one thing a signal handler can reach
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_interrupt(int) { g_interrupted.store(true, std::memory_order_relaxed); }

}  // namespace

void NoticePrinter::print() {
  const auto notices = notices_.list();
  for (; printed_ < notices.size(); ++printed_)
    fmt::print(stderr, "note: {}: {}\n", notices[printed_].subject, notices[printed_].text);
}

ProgressBar::ProgressBar(std::string_view label)
    : label_(label), active_(isatty(STDERR_FILENO) != 0) {}

void ProgressBar::update(uint64_t done, uint64_t total) {
  if (!active_ || total == 0) return;
  const int percent =
      static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
  if (percent == last_percent_) return;
  last_percent_ = percent;
  const int filled = percent * kBarWidth / 100;
  fmt::print(stderr, "\r{:<10} [{:#<{}}{:<{}}] {:3} %", label_, "", filled, "", kBarWidth - filled,
             percent);
  std::fflush(stderr);
}

void ProgressBar::finish() {
  if (active_ && last_percent_ >= 0) fmt::print(stderr, "\r\033[K");
  last_percent_ = -1;
}

const std::atomic<bool>& install_interrupt_flag() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second one ends the process
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  return g_interrupted;
}

Result<std::string> read_text_file(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return make_error(error_code_of_errno(errno), "{}: cannot open: {}", path,
                      std::strerror(errno));
  text << file.rdbuf();
  if (file.bad()) return make_error(ErrorCode::kIo, "{}: cannot read", path);
  return text.str();
}

}  // namespace offstage
