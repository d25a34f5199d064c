// A request is decided when it comes: refused at once, swallowed, kept back until its delay is
// over, or passed to the inner engine; what was passed may be altered when its answer comes. Paced
// answers are kept back until a drive of that speed, serving its requests in order, would have
// given them: a token bucket of 1 ms for every drive.
#include "io/fault.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/rng.h"
#include "io/engine_doorbell.h"
#include "io/extent.h"

namespace offstage {
namespace {

constexpr int64_t kPaceBurstNs = 1'000'000;  // what an idle drive of that speed may catch up
constexpr int kPoison = 0xDB;
constexpr int kFlipDraws = 16;

template <typename Item>
bool due_first(const Item& a, const Item& b) {
  return a.due_ns < b.due_ns;
}

}  // namespace

struct FaultEngine::State {
  struct Flight {  // one request between submit() and reap(); its number is the inner tag
    ReadRequest request;
    const FaultRule* rule = nullptr;
    int64_t submitted_ns = 0;
    int64_t paced_ns = 0;  // the earliest time of its answer
    std::array<std::byte, kSectorBytes> last_sector;
  };
  struct LateRequest {
    uint32_t flight;
    int64_t due_ns;
  };
  struct LateAnswer {
    ReadCompletion completion;
    uint32_t flight;
    int64_t due_ns;
  };

  State(std::unique_ptr<IoEngine> inner_in, FaultPlan plan_in, const Clock& clock_in,
        std::vector<uint32_t> drives_in);
  const FaultRule* decide(const ReadRequest& request);
  void accept(const ReadRequest& request, int64_t now_ns);
  void pass_on(uint32_t flight_index);
  void submit_batch();
  void release_requests(int64_t now_ns);
  void take_answer(ReadCompletion completion, int64_t now_ns);
  void alter(Flight& flight, ReadCompletion& completion);
  void flip(const ReadRequest& request, size_t bytes);
  size_t deliver(std::span<ReadCompletion> out, int64_t now_ns);
  int64_t next_due_ns() const;

  std::unique_ptr<IoEngine> inner;
  const FaultPlan plan;
  const Clock& clock;
  const std::string name;
  const uint32_t depth;
  Rng rng;
  std::vector<uint64_t> rule_seen, rule_fired;
  std::vector<std::set<std::pair<uint32_t, uint64_t>>> rule_hit;  // `once`: (file, offset)
  std::set<std::pair<uint32_t, uint64_t>> flipped;                // (file, bit)
  FaultCounters counters;
  std::vector<Flight> flights;
  std::vector<uint32_t> free_flights;
  std::vector<LateRequest> late_requests;
  std::vector<LateAnswer> answers;
  std::vector<ReadRequest> batch;
  std::vector<ReadCompletion> completions;
  const std::vector<uint32_t> drives;  // by file; empty: all are on drive 0
  std::vector<int64_t> pace_free_ns;   // by drive: when it has done all it was asked
};

FaultEngine::State::State(std::unique_ptr<IoEngine> inner_in, FaultPlan plan_in,
                          const Clock& clock_in, std::vector<uint32_t> drives_in)
    : inner(std::move(inner_in)),
      plan(std::move(plan_in)),
      clock(clock_in),
      name(fmt::format("{}({})",
                       plan.rules.empty() && plan.pace_bytes_per_s != 0 ? "paced" : "fault",
                       inner->name())),
      depth(inner->depth()),
      rng(plan.seed),
      rule_seen(plan.rules.size()),
      rule_fired(plan.rules.size()),
      rule_hit(plan.rules.size()),
      flights(depth),
      completions(depth),
      drives(std::move(drives_in)),
      pace_free_ns(drives.empty() ? 1 : 1 + *std::max_element(drives.begin(), drives.end()), 0) {
  for (uint32_t i = depth; i-- > 0;) free_flights.push_back(i);
  late_requests.reserve(depth);
  answers.reserve(depth);
  batch.reserve(depth);
}

const FaultRule* FaultEngine::State::decide(const ReadRequest& request) {
  const FaultRule* chosen = nullptr;
  for (size_t i = 0; i < plan.rules.size(); ++i) {
    const FaultRule& rule = plan.rules[i];
    const bool touches = (!rule.file || *rule.file == request.file) &&
                         request.offset < rule.range_end &&
                         request.offset + request.bytes > rule.range_begin;
    if (!touches) continue;
    const uint64_t number = ++rule_seen[i];
    // Every rule draws for every request it sees, so that one rule doesn't shift another's luck.
    const bool lucky = rule.probability >= 1 || rng.uniform() < rule.probability;
    const bool fires = lucky && (rule.nth == 0 || number == rule.nth) &&
                       (rule.every == 0 || number % rule.every == 0) && number >= rule.from &&
                       number <= rule.until && rule_fired[i] < rule.times;
    const std::pair place(request.file, request.offset);
    const bool retry = rule.once && rule_hit[i].erase(place) != 0;
    if (!fires || retry || chosen != nullptr) continue;
    if (rule.once) rule_hit[i].insert(place);
    ++rule_fired[i];
    chosen = &rule;
  }
  return chosen;
}

void FaultEngine::State::accept(const ReadRequest& request, int64_t now_ns) {
  const uint32_t index = free_flights.back();
  free_flights.pop_back();
  Flight& flight = flights[index];
  flight.request = request;
  flight.rule = decide(request);
  flight.submitted_ns = now_ns;
  ++counters.requests;
  if (plan.pace_bytes_per_s != 0) {
    const auto service_ns = static_cast<int64_t>(static_cast<double>(request.bytes) * 1e9 /
                                                 static_cast<double>(plan.pace_bytes_per_s));
    int64_t& free_ns = pace_free_ns[drives.empty() ? 0 : drives[request.file]];
    free_ns = std::max(free_ns, now_ns - kPaceBurstNs) + service_ns;
    flight.paced_ns = free_ns;
  } else {
    flight.paced_ns = 0;
  }
  if (flight.rule == nullptr) return pass_on(index);
  ++counters.injected[static_cast<size_t>(flight.rule->kind)];
  if (flight.rule->kind == FaultKind::kNever) return;  // the flight stays taken: so does its depth
  if (flight.rule->delay_ns == 0) return pass_on(index);
  ++counters.delayed;
  late_requests.push_back({index, now_ns + flight.rule->delay_ns});
}

// To the inner engine, unless the fault answers in its place.
void FaultEngine::State::pass_on(uint32_t flight_index) {
  Flight& flight = flights[flight_index];
  ReadRequest request = flight.request;
  request.tag = flight_index;
  const FaultKind kind = flight.rule == nullptr ? FaultKind::kNone : flight.rule->kind;
  const uint64_t file_bytes = inner->file_bytes(request.file);
  if (kind == FaultKind::kErrno || kind == FaultKind::kStale) {
    const uint64_t rest = request.offset < file_bytes ? file_bytes - request.offset : 0;
    const int32_t result = kind == FaultKind::kErrno
                               ? -flight.rule->err
                               : static_cast<int32_t>(std::min<uint64_t>(request.bytes, rest));
    const int64_t now_ns = clock.now_ns();
    answers.push_back({{.tag = flight.request.tag,
                        .result = result,
                        .issued_ns = flight.submitted_ns,
                        .completed_ns = now_ns},
                       flight_index,
                       now_ns});
    return;
  }
  if (kind == FaultKind::kElsewhere && file_bytes >= uint64_t{2} * request.bytes) {
    const bool backwards = request.offset >= request.bytes;
    request.offset = backwards ? request.offset - request.bytes : request.offset + request.bytes;
  }
  if (kind == FaultKind::kTorn) {
    std::memcpy(flight.last_sector.data(), request.buffer + request.bytes - kSectorBytes,
                kSectorBytes);
  }
  batch.push_back(request);
}

void FaultEngine::State::submit_batch() {
  if (batch.empty()) return;
  CHECK_EQ(inner->submit(batch), batch.size());  // its depth is ours, and nobody else asks it
  batch.clear();
}

void FaultEngine::State::release_requests(int64_t now_ns) {
  std::erase_if(late_requests, [&](const LateRequest& late) {
    if (late.due_ns > now_ns) return false;
    pass_on(late.flight);
    return true;
  });
  submit_batch();
}

void FaultEngine::State::take_answer(ReadCompletion completion, int64_t now_ns) {
  const auto index = static_cast<uint32_t>(completion.tag);
  Flight& flight = flights[index];
  completion.tag = flight.request.tag;
  completion.issued_ns = flight.submitted_ns;  // the delay was the drive's, as far as above knows
  if (flight.rule != nullptr && completion.result > 0) alter(flight, completion);
  answers.push_back({completion, index, std::max(now_ns, flight.paced_ns)});
}

void FaultEngine::State::alter(Flight& flight, ReadCompletion& completion) {
  std::byte* const data = flight.request.buffer;
  const auto bytes = static_cast<size_t>(completion.result);
  switch (flight.rule->kind) {
    case FaultKind::kShort: {
      const int64_t wanted = flight.rule->short_bytes < 0
                                 ? completion.result + flight.rule->short_bytes
                                 : flight.rule->short_bytes;
      completion.result = static_cast<int32_t>(std::clamp<int64_t>(wanted, 0, completion.result));
      // Whoever takes the short answer for a whole one must not find the right bytes.
      const auto kept = static_cast<size_t>(completion.result);
      std::memset(data + kept, kPoison, bytes - kept);
      return;
    }
    case FaultKind::kFlip: return flip(flight.request, bytes);
    case FaultKind::kZeros: std::memset(data, 0, bytes); return;
    case FaultKind::kTorn:
      std::memcpy(data + flight.request.bytes - kSectorBytes, flight.last_sector.data(),
                  kSectorBytes);
      return;
    case FaultKind::kNone:
    case FaultKind::kErrno:
    case FaultKind::kNever:
    case FaultKind::kStale:
    case FaultKind::kElsewhere: return;  // done before the read
  }
}

// Another bit each time, as far as a few draws find one: two reads that are wrong alike would
// outvote a right one, which no index can help.
void FaultEngine::State::flip(const ReadRequest& request, size_t bytes) {
  uint64_t bit = 0;
  for (int draw = 0; draw < kFlipDraws; ++draw) {
    bit = rng.below(uint64_t{bytes} * 8);
    if (flipped.emplace(request.file, request.offset * 8 + bit).second) break;
  }
  request.buffer[bit / 8] ^= std::byte{1} << bit % 8;
}

size_t FaultEngine::State::deliver(std::span<ReadCompletion> out, int64_t now_ns) {
  size_t count = 0;
  while (count < out.size() && !answers.empty()) {
    const auto first = std::min_element(answers.begin(), answers.end(), due_first<LateAnswer>);
    if (first->due_ns > now_ns) break;
    first->completion.completed_ns = std::max(first->completion.completed_ns, first->due_ns);
    out[count++] = first->completion;
    free_flights.push_back(first->flight);
    answers.erase(first);
  }
  return count;
}

int64_t FaultEngine::State::next_due_ns() const {
  int64_t next = INT64_MAX;
  for (const LateRequest& late : late_requests) next = std::min(next, late.due_ns);
  for (const LateAnswer& late : answers) next = std::min(next, late.due_ns);
  return next;
}

FaultEngine::FaultEngine(std::unique_ptr<IoEngine> inner, FaultPlan plan, const Clock& clock,
                         std::vector<uint32_t> drives)
    : state_(std::make_unique<State>(std::move(inner), std::move(plan), clock, std::move(drives))) {
}
FaultEngine::~FaultEngine() = default;

std::string_view FaultEngine::name() const { return state_->name; }
bool FaultEngine::direct_io(uint32_t file) const { return state_->inner->direct_io(file); }
uint64_t FaultEngine::file_bytes(uint32_t file) const { return state_->inner->file_bytes(file); }
uint32_t FaultEngine::depth() const { return state_->depth; }
IoEngineCounters FaultEngine::counters() const { return state_->inner->counters(); }
void FaultEngine::interrupt() { state_->inner->interrupt(); }
const FaultPlan& FaultEngine::plan() const { return state_->plan; }
const FaultCounters& FaultEngine::fault_counters() const { return state_->counters; }

size_t FaultEngine::submit(std::span<const ReadRequest> requests) {
  State& s = *state_;
  const size_t count = std::min(requests.size(), s.free_flights.size());
  const int64_t now_ns = s.clock.now_ns();
  for (const ReadRequest& request : requests.first(count)) s.accept(request, now_ns);
  s.submit_batch();
  return count;
}

size_t FaultEngine::reap(std::span<ReadCompletion> out, int64_t timeout_ns) {
  State& s = *state_;
  int64_t now_ns = s.clock.now_ns();
  const int64_t give_up_ns = give_up_time_ns(now_ns, timeout_ns);
  int64_t wait_ns = 0;  // first what is there
  while (true) {
    const size_t answered = s.inner->reap(s.completions, wait_ns);
    const int64_t asked_until_ns = now_ns + wait_ns;
    now_ns = s.clock.now_ns();
    for (size_t i = 0; i < answered; ++i) s.take_answer(s.completions[i], now_ns);
    s.release_requests(now_ns);
    const size_t delivered = s.deliver(out, now_ns);
    if (delivered != 0 || out.empty() || now_ns >= give_up_ns) return delivered;
    // The inner engine gave nothing and had time left: it was interrupted.
    if (answered == 0 && wait_ns > 0 && now_ns < asked_until_ns) return 0;
    wait_ns = std::max<int64_t>(std::min(give_up_ns, s.next_due_ns()) - now_ns, 1);
  }
}

}  // namespace offstage
