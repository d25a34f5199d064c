#include "io/sim.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/rng.h"
#include "io/engine_doorbell.h"
#include "io/extent.h"

namespace offstage {
namespace {

constexpr int64_t kRefusalNs = 10'000;  // a drive that isn't there says so at once

// Exponential with mean 1, by straight lines between the powers of two: no std::log, whose last
// bit differs between systems, so that a seed means the same everywhere.
double exponential(Rng& rng) {
  constexpr double kLn2 = 0.693147180559945309;
  const int halvings = std::countl_zero(rng.next_u64() | 1);
  return kLn2 * (halvings + rng.uniform());
}

}  // namespace

struct SimEngine::State {
  struct Drive {
    SimDrive model;
    std::vector<int64_t> channel_free_ns;
    int64_t bus_free_ns = 0;
    int64_t answer_ns = 0;  // of one that answers together
  };
  struct Flight {  // with the drive
    ReadRequest request;
    ReadCompletion answer;
    uint64_t number = 0;
  };

  State(SimOptions options, ManualClock& clock_in);
  void take(const ReadRequest& request);
  int64_t answer_together(uint32_t drive, int64_t now_ns, int64_t end_ns);
  void land();
  size_t deliver(std::span<ReadCompletion> out);

  ManualClock& clock;
  const std::vector<SimFile> files;
  const uint32_t depth;
  const int64_t wake_ns;
  std::vector<Drive> drives;
  Rng rng;
  std::vector<Flight> flights;          // a heap, the next to be over on top
  std::vector<ReadCompletion> answers;  // over, not yet reaped, in order
  uint64_t submitted = 0;
  IoEngineCounters counters;
  std::atomic<bool> interrupted = false;
};

namespace {

// For heaps: the later one sinks; at one time the order of submission decides.
template <typename Flight>
bool later(const Flight& a, const Flight& b) {
  if (a.answer.completed_ns != b.answer.completed_ns)
    return a.answer.completed_ns > b.answer.completed_ns;
  return a.number > b.number;
}

uint64_t bytes_of(const SimFile& file) {
  return file.contents.empty() ? file.bytes : file.contents.size();
}

// When a drive answers a read that it is given now, and with which errno (0: bytes).
template <typename Drive>
std::pair<int64_t, int> serve(Drive& drive, uint32_t bytes, int64_t now_ns, Rng& rng) {
  const SimDrive& model = drive.model;
  const auto channel = std::min_element(drive.channel_free_ns.begin(), drive.channel_free_ns.end());
  const int64_t begin_ns = std::max(now_ns, *channel);
  int64_t slower = 1;
  for (const SimSpell& spell : model.spells) {
    if (begin_ns < spell.begin_ns || begin_ns >= spell.end_ns) continue;
    if (spell.err != 0) return {begin_ns + kRefusalNs, spell.err};
    slower = spell.slower;
  }
  const auto moved_ns = [bytes](uint64_t bytes_per_s) {
    return static_cast<int64_t>(static_cast<double>(bytes) * 1e9 /
                                static_cast<double>(bytes_per_s));
  };
  const int64_t transfer_ns = moved_ns(model.bytes_per_s);
  const int64_t lone_ns = model.channel_bytes_per_s == 0 ? 0 : moved_ns(model.channel_bytes_per_s);
  const auto jitter_ns =
      static_cast<int64_t>(exponential(rng) * static_cast<double>(model.jitter_ns));
  const int64_t found_ns = begin_ns + model.latency_ns * slower;
  drive.bus_free_ns =
      std::max(drive.bus_free_ns, found_ns) + (model.request_ns + transfer_ns) * slower;
  int64_t end_ns = std::max(drive.bus_free_ns, found_ns + lone_ns * slower) + jitter_ns * slower;
  int err = 0;
  for (const SimSpell& spell : model.spells) {
    if (spell.err == 0 || spell.begin_ns <= begin_ns || spell.begin_ns >= end_ns) continue;
    end_ns = spell.begin_ns;
    err = spell.err;
  }
  *channel = end_ns;
  return {end_ns, err};
}

}  // namespace

SimEngine::State::State(SimOptions options, ManualClock& clock_in)
    : clock(clock_in),
      files(std::move(options.files)),
      depth(options.depth),
      wake_ns(options.wake_ns),
      rng(options.seed) {
  CHECK_GT(depth, 0u);
  for (SimDrive& model : options.drives) {
    CHECK_GT(model.channels, 0u);
    CHECK_GT(model.bytes_per_s, 0u);
    const uint32_t channels = model.channels;
    drives.push_back({std::move(model), std::vector<int64_t>(channels, 0)});
  }
  for (const SimFile& file : files) CHECK_LT(file.drive, drives.size());
  flights.reserve(depth);
  answers.reserve(depth);
}

void SimEngine::State::take(const ReadRequest& request) {
  CHECK_LT(request.file, files.size());
  CHECK_EQ(request.offset % kSectorBytes, 0u);
  CHECK_EQ(request.bytes % kSectorBytes, 0u);
  CHECK_EQ(reinterpret_cast<uintptr_t>(request.buffer) % kSectorBytes, 0u);
  const SimFile& file = files[request.file];
  const uint64_t rest = bytes_of(file) - std::min(bytes_of(file), request.offset);
  const auto bytes = static_cast<uint32_t>(std::min<uint64_t>(request.bytes, rest));
  const int64_t now_ns = clock.now_ns();
  auto [end_ns, err] = serve(drives[file.drive], bytes, now_ns, rng);
  if (drives[file.drive].model.answers_together)
    end_ns = answer_together(file.drive, now_ns, end_ns);
  const int32_t result = err != 0 ? -err : static_cast<int32_t>(bytes);
  flights.push_back(
      {request,
       {.tag = request.tag, .result = result, .issued_ns = now_ns, .completed_ns = end_ns},
       submitted++});
  std::push_heap(flights.begin(), flights.end(), later<Flight>);
  counters.in_flight_max = std::max(counters.in_flight_max, static_cast<uint32_t>(flights.size()));
}

// When a read is answered that a drive will be done with at end_ns: as late as the last of those
// that it has then, which are as late as this one.
int64_t SimEngine::State::answer_together(uint32_t drive, int64_t now_ns, int64_t end_ns) {
  int64_t& answer_ns = drives[drive].answer_ns;
  if (answer_ns <= now_ns) return answer_ns = end_ns;
  if (end_ns <= answer_ns) return answer_ns;
  answer_ns = end_ns;
  for (Flight& flight : flights)
    if (files[flight.request.file].drive == drive && flight.answer.completed_ns > now_ns)
      flight.answer.completed_ns = end_ns;
  std::make_heap(flights.begin(), flights.end(), later<Flight>);
  return end_ns;
}

void SimEngine::State::land() {
  const int64_t now_ns = clock.now_ns();
  while (!flights.empty() && flights.front().answer.completed_ns <= now_ns) {
    std::pop_heap(flights.begin(), flights.end(), later<Flight>);
    const Flight flight = flights.back();
    flights.pop_back();
    const SimFile& file = files[flight.request.file];
    if (flight.answer.result > 0 && !file.contents.empty()) {
      std::memcpy(flight.request.buffer, file.contents.data() + flight.request.offset,
                  static_cast<size_t>(flight.answer.result));
    }
    answers.push_back(flight.answer);
  }
}

size_t SimEngine::State::deliver(std::span<ReadCompletion> out) {
  land();
  const size_t count = std::min(out.size(), answers.size());
  std::copy_n(answers.begin(), count, out.begin());
  answers.erase(answers.begin(), answers.begin() + static_cast<ptrdiff_t>(count));
  counters.reads += count;
  return count;
}

SimEngine::SimEngine(SimOptions options, ManualClock& clock)
    : state_(std::make_unique<State>(std::move(options), clock)) {}
SimEngine::~SimEngine() = default;

uint64_t SimEngine::file_bytes(uint32_t file) const { return bytes_of(state_->files[file]); }
uint32_t SimEngine::depth() const { return state_->depth; }
IoEngineCounters SimEngine::counters() const { return state_->counters; }
void SimEngine::interrupt() { state_->interrupted.store(true); }
void SimEngine::land() { state_->land(); }

size_t SimEngine::submit(std::span<const ReadRequest> requests) {
  State& s = *state_;
  const size_t count = std::min(requests.size(), s.depth - s.flights.size() - s.answers.size());
  for (const ReadRequest& request : requests.first(count)) s.take(request);
  s.counters.submit_calls += count != 0 ? 1 : 0;
  return count;
}

size_t SimEngine::reap(std::span<ReadCompletion> out, int64_t timeout_ns) {
  State& s = *state_;
  const int64_t now_ns = s.clock.now_ns();
  const size_t at_once = s.deliver(out);
  if (at_once != 0 || timeout_ns <= 0 || out.empty()) return at_once;
  if (s.interrupted.exchange(false)) return 0;
  const int64_t give_up_ns = give_up_time_ns(now_ns, timeout_ns);
  const int64_t next_ns = s.flights.empty() ? INT64_MAX : s.flights.front().answer.completed_ns;
  const int64_t until_ns = std::min(next_ns, give_up_ns);
  CHECK_LT(until_ns, INT64_MAX);  // nothing under way and all the time in the world: a hang
  s.clock.advance_ns(until_ns - now_ns + s.wake_ns);
  return s.deliver(out);
}

}  // namespace offstage
