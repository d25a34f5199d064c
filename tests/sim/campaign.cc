#include "tests/sim/campaign.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>

#include "tests/sim/simulation.h"

namespace offstage::sim {
namespace {

constexpr uint64_t kReportEvery = 50'000;
constexpr unsigned kSecondsMax = 60;  // of a seed, which needs a millisecond: it hangs

volatile uint64_t seed_now = 0;

void add(CampaignTotals& totals, const SimOutcome& outcome) {
  ++totals.seeds;
  totals.forwards += outcome.forwards;
  totals.failed_forwards += outcome.failed_forwards;
  totals.reads += outcome.reads;
  totals.faults += outcome.faults;
  totals.rereads += outcome.rereads;
  totals.hits += outcome.hits;
  totals.prefetches_useful += outcome.prefetches_useful;
  totals.deadline_misses += outcome.deadline_misses;
}

}  // namespace

uint64_t current_seed() { return seed_now; }

CampaignTotals run_seeds(uint64_t from, uint64_t count) {
  CampaignTotals totals;
  for (uint64_t seed = from; seed < from + count; ++seed) {
    seed_now = seed;
    alarm(kSecondsMax);
    const SimOutcome outcome = simulate(draw_case(seed), false);
    alarm(0);
    add(totals, outcome);
    if (outcome.violation.empty()) continue;
    totals.failed_seed = seed;
    totals.violation = fmt::format("seed {}: {}\nreplay: offstage_sim_tests --seed {}", seed,
                                   outcome.violation, seed);
    return totals;
  }
  return totals;
}

std::string describe(const CampaignTotals& totals) {
  return fmt::format(
      "{} seeds: {} forwards ({} failed explicitly), {} reads, {} faults, {} read again for their "
      "hash, {} hits, {} useful guesses, {} deadlines missed",
      totals.seeds, totals.forwards, totals.failed_forwards, totals.reads, totals.faults,
      totals.rereads, totals.hits, totals.prefetches_useful, totals.deadline_misses);
}

int campaign(uint64_t from, uint64_t count) {
  const auto begin = std::chrono::steady_clock::now();
  uint64_t done = 0;
  while (done < count) {
    const CampaignTotals part = run_seeds(from + done, std::min(kReportEvery, count - done));
    done += part.seeds;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    fmt::print("{} of {} seeds, {:.0f} s; the last {}\n", done, count, seconds.count(),
               describe(part));
    std::fflush(stdout);
    if (part.violation.empty()) continue;
    fmt::print("{}\n", part.violation);
    return 1;
  }
  fmt::print("{} seeds from {}: no violation\n", count, from);
  return 0;
}

int replay(uint64_t seed) {
  seed_now = seed;
  const SimCase c = draw_case(seed);
  fmt::print("{}", describe(c));
  const SimOutcome outcome = simulate(c, true);
  for (const std::string& line : outcome.log) fmt::print("{}\n", line);
  fmt::print("{}\n", outcome.violation.empty() ? "no violation" : outcome.violation);
  return outcome.violation.empty() ? 0 : 1;
}

}  // namespace offstage::sim
