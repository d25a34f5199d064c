// What the record of a token costs: ns per event, and events per token of a model of a given shape.
//
//   record_bench [layers, default 48] [misses per layer, default 3]
//
// Each event is timed over many calls, best of five rounds; the sum of what was recorded is
// printed, so that nothing is optimised away. Looks come by time, not by token: what they take is a
// share, and a token is as long as it has to be for all of it to be 1 %.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/process_load.h"
#include "base/trace.h"

namespace offstage {
namespace {

constexpr int kCalls = 200'000;
constexpr int kRounds = 5;
// Causes entered in a layer beside its reads: attention, router, cache, look-ahead, experts.
constexpr int kEntersPerLayer = 12;

template <typename Event>
double ns_per_event(int calls, Event&& event) {
  const SteadyClock clock;
  double best = 1e18;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t begin = clock.now_ns();
    for (int i = 0; i < calls; ++i) event(i);
    best = std::min(best, static_cast<double>(clock.now_ns() - begin) / calls);
  }
  return best;
}

// What CauseTimer asks the kernel, and how much of the time that is at most.
double look_ns() {
  KernelRunDelay delay;
  int64_t sum_ns = 0;
  const double ns = ns_per_event(kCalls / 20, [&](int) { sum_ns += delay.since_last_ns(); });
  fmt::print("look {:.0f} ns, every {} us at most: {:.2f} % of the time   ({}, {} ns)\n\n", ns,
             CauseTimer::kLookEveryNs / 1000,
             100 * ns / static_cast<double>(CauseTimer::kLookEveryNs),
             delay.is_known() ? "ok" : "this kernel doesn't count", sum_ns);
  return ns;
}

void measure(int layers, int misses) {
  const SteadyClock clock;
  const double looking = look_ns() / static_cast<double>(CauseTimer::kLookEveryNs);
  Notices notices;
  const LoadProbe probe(notices);
  fmt::print("{:<8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>14} {:>14}\n", "level", "enter", "layer",
             "read", "wait", "token", "us per token", "is 1 % of ms");
  for (const RecordLevel level : {RecordLevel::kToken, RecordLevel::kLayer, RecordLevel::kRead}) {
    CauseTimer timer(clock);
    Trace trace({.level = level}, timer);
    ReadRecord read;
    read.bytes = 1 << 20;
    const double enter =
        ns_per_event(kCalls, [&](int i) { timer.enter(static_cast<Cause>(i % 8)); });
    const double layer =
        ns_per_event(kCalls, [&](int i) { trace.begin_layer(i % 48, int64_t{i} * 1000); });
    const double arrived = ns_per_event(kCalls, [&](int i) {
      read.issued_ns = int64_t{i} * 100;
      read.completed_ns = read.issued_ns + 1000;
      trace.arrived(read, 8);
      trace.delivered(0, read.bytes, read.issued_ns, read.completed_ns);
    });
    const double wait = ns_per_event(kCalls, [&](int i) { trace.waited(0, i, 8, &read); });
    ProcessLoad sum;
    uint64_t reads = 0;
    const double token = ns_per_event(kCalls / 20, [&](int i) {
      sum += probe.read();
      reads += trace.take(static_cast<uint32_t>(i)).reads;
    });
    const double reads_per_token = 3.0 * misses * layers;
    const double us = (layers * (kEntersPerLayer * enter + layer) +
                       reads_per_token * (arrived + wait + enter) + token) /
                      1e3;
    const char* name = level == RecordLevel::kToken   ? "token"
                       : level == RecordLevel::kLayer ? "layer"
                                                      : "read";
    fmt::print(
        "{:<8} {:>7.1f} ns {:>7.1f} ns {:>7.1f} ns {:>7.1f} ns {:>7.0f} ns {:>14.1f} {:>14.1f}   "
        "({} {})\n",
        name, enter, layer, arrived, wait, token, us, us / 1e3 / (0.01 - looking), reads,
        sum.cpu_ns != 0 ? "ok" : "-");
  }
  fmt::print("{} layers with {} misses each; the last column has the looks in it\n", layers,
             misses);
}

}  // namespace
}  // namespace offstage

int main(int argc, char** argv) {
  offstage::measure(argc > 1 ? std::atoi(argv[1]) : 48, argc > 2 ? std::atoi(argv[2]) : 3);
}
