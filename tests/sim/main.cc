// The simulation's tests, and campaigns by hand:
//   offstage_sim_tests                        what ctest runs
//   offstage_sim_tests --seeds FROM COUNT     as many seeds, progress and totals on stdout
//   offstage_sim_tests --seed N               one seed, with a log of all that happened
// A seed that fails is printed with the command that replays it; so is one that ends the process.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <optional>

#include "tests/sim/campaign.h"

namespace offstage::sim {
namespace {

// CHECKs and sanitizers end the process: the seed is said first.
void say_seed(int signal) {
  char text[160];
  const auto end = fmt::format_to_n(text, sizeof text,
                                    "seed {} ended the process (signal {}); replay: "
                                    "offstage_sim_tests --seed {}\n",
                                    current_seed(), signal, current_seed());
  [[maybe_unused]] const ssize_t written = write(2, text, static_cast<size_t>(end.out - text));
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

std::optional<uint64_t> number(const char* text) {
  uint64_t value = 0;
  const std::string_view view(text);
  const auto parsed = std::from_chars(view.data(), view.data() + view.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != view.data() + view.size()) return std::nullopt;
  return value;
}

int usage() {
  std::fputs("usage: offstage_sim_tests [--seeds FROM COUNT | --seed N]\n", stderr);
  return 2;
}

}  // namespace
}  // namespace offstage::sim

int main(int argc, char** argv) {
  using namespace offstage::sim;
  for (const int signal : {SIGABRT, SIGALRM, SIGSEGV, SIGBUS, SIGILL, SIGFPE})
    std::signal(signal, say_seed);
  const std::string_view first = argc > 1 ? argv[1] : "";
  if (first == "--seed") {
    const auto seed = argc == 3 ? number(argv[2]) : std::nullopt;
    return seed ? replay(*seed) : usage();
  }
  if (first == "--seeds") {
    const auto from = argc == 4 ? number(argv[2]) : std::nullopt;
    const auto count = argc == 4 ? number(argv[3]) : std::nullopt;
    return from && count ? campaign(*from, *count) : usage();
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
