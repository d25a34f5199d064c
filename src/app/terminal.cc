#include "app/terminal.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "base/units.h"

namespace offstage {
namespace {

constexpr int kBarWidth = 30;
constexpr int64_t kLogEveryNs = 10'000'000'000;
std::atomic<bool> g_interrupted{false};  // the one thing a signal handler can reach
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_interrupt(int) { g_interrupted.store(true, std::memory_order_relaxed); }

}  // namespace

void NoticePrinter::print() {
  const auto notices = notices_.list();
  for (; printed_ < notices.size(); ++printed_)
    fmt::print(stderr, "note: {}: {}\n", notices[printed_].subject, notices[printed_].text);
}

ProgressBar::ProgressBar(std::string_view label, Eta eta)
    : label_(label),
      eta_(eta),
      active_(isatty(STDERR_FILENO) != 0),
      begun_ns_(clock_.now_ns()),
      logged_ns_(begun_ns_) {}

// " 8.1 s left", from the speed so far.
std::string ProgressBar::eta(uint64_t done, uint64_t total) {
  if (eta_ == Eta::kHide || done == 0) return "";
  const double ns_per_unit =
      static_cast<double>(clock_.now_ns() - begun_ns_) / static_cast<double>(done);
  return fmt::format(
      ", {} left",
      format_duration_ns(static_cast<int64_t>(ns_per_unit * static_cast<double>(total - done))));
}

void ProgressBar::log_line(uint64_t done, uint64_t total) {
  const int64_t now_ns = clock_.now_ns();
  if (now_ns - logged_ns_ < kLogEveryNs) return;
  logged_ns_ = now_ns;
  fmt::print(stderr, "{}: {} of {}{}\n", label_, format_bytes(done), format_bytes(total),
             eta(done, total));
}

void ProgressBar::update(uint64_t done, uint64_t total) {
  if (total == 0) return;
  if (!active_ && eta_ == Eta::kShow) log_line(done, total);
  if (!active_) return;
  const int percent =
      static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
  if (percent == last_percent_) return;
  last_percent_ = percent;
  const int filled = percent * kBarWidth / 100;
  fmt::print(stderr, "\r{:<10} [{:#<{}}{:<{}}] {:3} %{}\033[K", label_, "", filled, "",
             kBarWidth - filled, percent, eta(done, total));
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
  if (!file) return tl::unexpected(errno_error(path, "cannot open"));
  text << file.rdbuf();
  if (file.bad()) return make_error(ErrorCode::kIo, "{}: cannot read", path);
  return text.str();
}

}  // namespace offstage
