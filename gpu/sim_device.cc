#include "gpu/sim_device.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <thread>
#include <utility>

#include "base/check.h"

namespace offstage {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr uint64_t kAlignment = 256;
constexpr int kPoison = 0xff;
constexpr size_t kMarksKept = 4096;  // on a stream, for who asks late; earlier ones were reached

// By stream, the number of the last piece of work that something comes after: a vector clock.
using After = std::array<uint64_t, kDeviceStreams>;

uint32_t index_of(DeviceStream stream) { return static_cast<uint32_t>(stream); }

int64_t transfer_ns(uint64_t bytes, uint64_t bytes_per_s) {
  return static_cast<int64_t>(static_cast<double>(bytes) / static_cast<double>(bytes_per_s) * 1e9);
}

struct Range {
  const std::byte* begin = nullptr;
  uint64_t bytes = 0;
  bool written = false;

  bool meets(const Range& other) const {
    return (written || other.written) && begin < other.begin + other.bytes &&
           other.begin < begin + bytes;
  }
};

std::byte* aligned_memory(uint64_t bytes) {
  const uint64_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole));
  CHECK(memory != nullptr);
  std::memset(memory, kPoison, whole);
  return memory;
}

}  // namespace

struct SimDevice::State {
  struct Work {
    uint64_t number = 0;  // on its stream
    int64_t done_ns = 0;
    bool fails = false;
    std::string_view name;
    std::vector<Range> ranges;
    After after = {};
    std::function<gpu::CallStatus()> effect;
  };
  struct Stream {
    std::deque<Work> pending;
    After after = {};                                     // what its next work comes after
    int64_t free_ns = 0;                                  // when its next work may begin
    uint64_t last = 0;                                    // number given out
    uint64_t finished = 0;                                // number
    std::map<uint64_t, std::pair<After, int64_t>> marks;  // by number: what lies before, and when
  };

  bool strikes(SimDeviceFaultKind kind);
  Status lost() const;
  Status put(DeviceStream stream, Work work, int64_t duration_ns);
  void check_race(DeviceStream stream, const Work& work) const;
  void run_until(int64_t now_ns);
  bool is_pinned(const std::byte* memory, uint64_t bytes) const;

  DeviceFacts facts;
  SimDeviceModel model;
  const Clock* clock = nullptr;
  std::function<void(int64_t ns)> pass;  // lets time go by
  std::vector<SimDeviceFault> faults;
  std::array<uint64_t, 5> calls = {};  // by SimDeviceFaultKind
  std::array<Stream, kDeviceStreams> streams;
  After host = {};                        // what the caller has waited for
  std::map<std::byte*, uint64_t> memory;  // bytes by beginning
  std::map<std::byte*, uint64_t> pinned;  // allocated
  std::map<std::byte*, uint64_t> registered;
  std::optional<Error> error;
  SimDeviceCounters counters;
};

bool SimDevice::State::strikes(SimDeviceFaultKind kind) {
  const uint64_t call = ++calls[static_cast<size_t>(kind)];
  for (const SimDeviceFault& fault : faults) {
    if (fault.kind != kind || call < fault.nth || call - fault.nth >= fault.times) continue;
    ++counters.faults;
    return true;
  }
  return false;
}

Status SimDevice::State::lost() const {
  if (error) return tl::unexpected(*error);
  return {};
}

// Unfinished work elsewhere that nothing puts before this.
void SimDevice::State::check_race(DeviceStream stream, const Work& work) const {
  const After& after = streams[index_of(stream)].after;
  for (uint32_t other = 0; other < kDeviceStreams; ++other) {
    if (other == index_of(stream)) continue;
    for (const Work& theirs : streams[other].pending) {
      if (theirs.number <= std::max(after[other], host[other])) continue;
      for (const Range& a : work.ranges)
        for (const Range& b : theirs.ranges) CHECK(!a.meets(b) && "a race between two streams");
    }
  }
}

Status SimDevice::State::put(DeviceStream stream, Work work, int64_t duration_ns) {
  run_until(clock->now_ns());
  OFFSTAGE_TRY_VOID(lost());
  check_race(stream, work);
  Stream& on = streams[index_of(stream)];
  work.number = ++on.last;
  work.after = on.after;
  const int64_t begin_ns = std::max(on.free_ns, clock->now_ns());
  work.done_ns = begin_ns == kNever ? kNever : begin_ns + duration_ns;
  on.free_ns = work.done_ns;
  on.pending.push_back(std::move(work));
  return {};
}

// What is over by `now_ns`, in the order of its times; of what is over at the same time, nothing
// before what it comes after.
void SimDevice::State::run_until(int64_t now_ns) {
  const auto may_happen = [&](const Work& work) {
    for (uint32_t s = 0; s < kDeviceStreams; ++s)
      if (streams[s].finished < work.after[s]) return false;
    return true;
  };
  while (!error) {
    Stream* next = nullptr;
    for (Stream& stream : streams) {
      if (stream.pending.empty() || stream.pending.front().done_ns > now_ns) continue;
      if (!may_happen(stream.pending.front())) continue;
      if (next == nullptr || stream.pending.front().done_ns < next->pending.front().done_ns)
        next = &stream;
    }
    if (next == nullptr) return;
    const Work work = std::move(next->pending.front());
    next->pending.pop_front();
    next->finished = work.number;
    gpu::CallStatus status;
    if (work.fails)
      status = {"sim", "simulated fault", "by plan"};
    else if (work.effect)
      status = work.effect();
    if (!status.ok())
      error = Error{ErrorCode::kIo, fmt::format("{}: {}: {} ({})", facts.name, work.name,
                                                status.meaning, status.error)};
  }
}

bool SimDevice::State::is_pinned(const std::byte* begin, uint64_t bytes) const {
  for (const auto* regions : {&pinned, &registered}) {
    auto region = regions->upper_bound(const_cast<std::byte*>(begin));
    if (region == regions->begin()) continue;
    --region;
    if (begin + bytes <= region->first + region->second) return true;
  }
  return false;
}

SimDevice::SimDevice(const SimDeviceModel& model, ManualClock& clock,
                     std::vector<SimDeviceFault> faults)
    : SimDevice(
          model, clock, [&clock](int64_t ns) { clock.advance_ns(ns); }, std::move(faults)) {}

SimDevice::SimDevice(const SimDeviceModel& model, const SteadyClock& clock,
                     std::vector<SimDeviceFault> faults)
    : SimDevice(
          model, clock,
          [](int64_t ns) { std::this_thread::sleep_for(std::chrono::nanoseconds(ns)); },
          std::move(faults)) {}

SimDevice::SimDevice(const SimDeviceModel& model, const Clock& clock,
                     std::function<void(int64_t)> pass, std::vector<SimDeviceFault> faults)
    : state_(std::make_unique<State>()) {
  state_->model = model;
  state_->clock = &clock;
  state_->pass = std::move(pass);
  state_->faults = std::move(faults);
  state_->facts.name = "simulated device";
  state_->facts.memory_bytes = model.memory_bytes;
}

Result<std::vector<SimDeviceFault>> parse_sim_device_faults(std::string_view text) {
  constexpr std::array<std::string_view, 5> kKinds = {"alloc", "pin", "copy", "launch", "mark"};
  const auto number = [](std::string_view digits, uint64_t* value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), *value);
    return error == std::errc() && end == digits.data() + digits.size() && *value != 0;
  };
  std::vector<SimDeviceFault> faults;
  while (!text.empty()) {
    std::string_view part = text.substr(0, text.find(';'));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    part.remove_prefix(std::min(part.size(), part.find_first_not_of(' ')));
    const size_t equals = std::min(part.find('='), part.size());
    const auto kind = std::find(kKinds.begin(), kKinds.end(), part.substr(0, equals));
    const std::string_view when = part.substr(std::min(part.size(), equals + 1));
    const size_t times = std::min(when.find('x'), when.size());
    SimDeviceFault fault;
    if (kind == kKinds.end() || !number(when.substr(0, times), &fault.nth) ||
        (times != when.size() && !number(when.substr(times + 1), &fault.times)))
      return make_error(ErrorCode::kInvalidArgument,
                        "faults of the simulated device: expected one of {} =NTH or =NTHxTIMES, "
                        "found '{}'",
                        fmt::join(kKinds, ", "), part);
    fault.kind = static_cast<SimDeviceFaultKind>(kind - kKinds.begin());
    faults.push_back(fault);
  }
  return faults;
}

SimDevice::~SimDevice() {
  for (const auto& [memory, bytes] : state_->memory) std::free(memory);
  for (const auto& [memory, bytes] : state_->pinned) std::free(memory);
}

const DeviceFacts& SimDevice::facts() const { return state_->facts; }
const SimDeviceCounters& SimDevice::counters() const { return state_->counters; }

Result<std::byte*> SimDevice::allocate(uint64_t bytes) {
  OFFSTAGE_TRY_VOID(state_->lost());
  SimDeviceCounters& counters = state_->counters;
  const bool refused = state_->strikes(SimDeviceFaultKind::kOutOfMemory);
  const uint64_t free = state_->model.memory_bytes - counters.allocated_bytes;
  if (refused || bytes > free)
    return make_error(ErrorCode::kOutOfMemory, "{}: {} bytes asked, {} of {} free",
                      state_->facts.name, bytes, free, state_->model.memory_bytes);
  std::byte* memory = aligned_memory(bytes);
  state_->memory[memory] = bytes;
  counters.allocated_bytes += bytes;
  counters.allocated_bytes_max = std::max(counters.allocated_bytes_max, counters.allocated_bytes);
  return memory;
}

void SimDevice::release(std::byte* memory) {
  state_->run_until(state_->clock->now_ns());
  const auto found = state_->memory.find(memory);
  CHECK(found != state_->memory.end());
  const Range whole = {memory, found->second, true};
  for (const State::Stream& stream : state_->streams)
    for (const State::Work& work : stream.pending)
      for (const Range& range : work.ranges)
        CHECK((state_->error || !whole.meets(range)) && "released memory that work still uses");
  state_->counters.allocated_bytes -= found->second;
  std::free(memory);
  state_->memory.erase(found);
}

Result<uint64_t> SimDevice::free_bytes() {
  OFFSTAGE_TRY_VOID(state_->lost());
  return state_->model.memory_bytes - state_->counters.allocated_bytes;
}

Result<std::byte*> SimDevice::allocate_pinned(uint64_t bytes) {
  OFFSTAGE_TRY_VOID(state_->lost());
  if (state_->strikes(SimDeviceFaultKind::kPinRefused))
    return make_error(ErrorCode::kOutOfMemory, "{}: {} bytes can't be pinned", state_->facts.name,
                      bytes);
  std::byte* memory = aligned_memory(bytes);
  state_->pinned[memory] = bytes;
  return memory;
}

void SimDevice::release_pinned(std::byte* memory) {
  CHECK_EQ(state_->pinned.erase(memory), 1u);
  std::free(memory);
}

Status SimDevice::pin(std::span<std::byte> memory) {
  OFFSTAGE_TRY_VOID(state_->lost());
  if (state_->strikes(SimDeviceFaultKind::kPinRefused))
    return make_error(ErrorCode::kOutOfMemory, "{}: {} bytes can't be pinned", state_->facts.name,
                      memory.size());
  CHECK(!state_->is_pinned(memory.data(), memory.size()) && "pinned twice");  // a card refuses
  state_->registered[memory.data()] = memory.size();
  return {};
}

void SimDevice::unpin(std::byte* memory) { CHECK_EQ(state_->registered.erase(memory), 1u); }

Status SimDevice::copy(DeviceStream stream, std::byte* to, const std::byte* from, uint64_t bytes) {
  CHECK(stream != DeviceStream::kCompute);
  const SimDeviceModel& model = state_->model;
  const bool pinned = state_->is_pinned(stream == DeviceStream::kToDevice ? from : to, bytes);
  State::Work work;
  work.name = stream == DeviceStream::kToDevice ? "copy to the device" : "copy to the host";
  work.fails = state_->strikes(SimDeviceFaultKind::kCopyError);
  work.ranges = {{from, bytes, false}, {to, bytes, true}};
  work.effect = [to, from, bytes] {
    std::memcpy(to, from, bytes);
    return gpu::CallStatus{};
  };
  const uint32_t slower = pinned ? 1 : model.pageable_slower;
  OFFSTAGE_TRY_VOID(
      state_->put(stream, std::move(work),
                  model.copy_latency_ns + transfer_ns(bytes, model.pcie_bytes_per_s) * slower));
  ++state_->counters.copies[index_of(stream)];
  state_->counters.bytes[index_of(stream)] += bytes;
  return {};
}

Status SimDevice::launch(DeviceWork launched) {
  State::Work work;
  work.name = launched.name;
  work.fails = state_->strikes(SimDeviceFaultKind::kLaunchError);
  // Which of them a kernel writes, it doesn't say: any.
  for (const std::span<const std::byte> range : launched.ranges)
    work.ranges.push_back({range.data(), range.size(), true});
  if (launched.launch) work.effect = [run = std::move(launched.launch)] { return run(nullptr); };
  const SimDeviceModel& model = state_->model;
  const int64_t busy_ns = transfer_ns(launched.bytes, model.memory_bytes_per_s) +
                          transfer_ns(launched.host_bytes, model.pcie_bytes_per_s);
  OFFSTAGE_TRY_VOID(
      state_->put(DeviceStream::kCompute, std::move(work), model.launch_latency_ns + busy_ns));
  ++state_->counters.launches;
  return {};
}

Result<DeviceMark> SimDevice::mark(DeviceStream stream) {
  State::Work work;
  work.name = "mark";
  const bool never = state_->strikes(SimDeviceFaultKind::kNeverReached);
  OFFSTAGE_TRY_VOID(state_->put(stream, std::move(work), 0));
  ++state_->counters.marks;
  State::Stream& on = state_->streams[index_of(stream)];
  if (never) on.pending.back().done_ns = on.free_ns = kNever;
  After after = on.after;
  after[index_of(stream)] = on.last;
  on.marks[on.last] = {after, on.free_ns};
  while (on.marks.size() > kMarksKept && on.marks.begin()->first <= on.finished)
    on.marks.erase(on.marks.begin());
  return DeviceMark{stream, on.last};
}

Status SimDevice::order(DeviceStream stream, DeviceMark mark) {
  OFFSTAGE_TRY_VOID(state_->lost());
  const auto& marks = state_->streams[index_of(mark.stream)].marks;
  const auto found = marks.find(mark.number);
  if (found == marks.end()) return {};  // reached long ago
  const auto& [after, at_ns] = found->second;
  State::Stream& on = state_->streams[index_of(stream)];
  on.free_ns = std::max(on.free_ns, at_ns);
  for (uint32_t s = 0; s < kDeviceStreams; ++s) on.after[s] = std::max(on.after[s], after[s]);
  return {};
}

Result<bool> SimDevice::reached(DeviceMark mark) {
  state_->run_until(state_->clock->now_ns());
  OFFSTAGE_TRY_VOID(state_->lost());
  const State::Stream& on = state_->streams[index_of(mark.stream)];
  if (on.finished < mark.number) return false;
  const auto found = on.marks.find(mark.number);
  for (uint32_t s = 0; found != on.marks.end() && s < kDeviceStreams; ++s)
    state_->host[s] = std::max(state_->host[s], found->second.first[s]);
  return true;
}

Status SimDevice::wait(DeviceMark mark, int64_t timeout_ns) {
  const int64_t now_ns = state_->clock->now_ns();
  const auto& marks = state_->streams[index_of(mark.stream)].marks;
  const auto found = marks.find(mark.number);
  const int64_t at_ns = found == marks.end() ? now_ns : found->second.second;
  const int64_t until_ns = at_ns - now_ns > timeout_ns ? now_ns + timeout_ns : at_ns;
  if (until_ns > now_ns) state_->pass(until_ns - now_ns);
  OFFSTAGE_TRY(const bool there, reached(mark));
  if (!there)
    return make_error(ErrorCode::kDeadline, "{}: not done within {} ms", state_->facts.name,
                      timeout_ns / 1'000'000);
  return {};
}

}  // namespace offstage
