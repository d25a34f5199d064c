// Requests go down through a bounded queue, completions come up through another; the thread in
// between owns the ring and sleeps in io_uring_enter, the only syscall it makes: it submits a
// whole burst, waits for completions, and waits for the eventfd that the owner writes when the
// thread sleeps (a read of it is always armed in the ring).
#include "io/uring.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/lockfree/spsc_queue.hpp>
#include <chrono>
#include <future>
#include <thread>

#include "base/check.h"
#include "base/clock.h"
#include "io/engine_doorbell.h"
#include "io/engine_priority.h"
#include "io/engine_signals.h"
#include "io/extent.h"
#include "io/uring_ring.h"

namespace offstage {
namespace {

// How long closing waits for reads that the kernel still has. NVMe's own time-out is 30 s; a drive
// that far gone may keep the ring, whose pages the kernel holds until the reads end.
constexpr int64_t kCloseWaitNs = 10'000'000'000;
constexpr auto kBackOffSleep = std::chrono::milliseconds(1);
constexpr auto kDeadRingSleep = std::chrono::milliseconds(10);

class UringEngine final : public IoEngine {
 public:
  UringEngine(uint32_t depth, UniqueFd wake_fd)
      : depth_(depth), wake_fd_(std::move(wake_fd)), requests_(depth), completions_(depth) {}
  ~UringEngine() override;

  Status start(std::vector<ReadFile>& files, const IoEngineOptions& options, Notices& notices);

  std::string_view name() const override { return "uring"; }
  bool direct_io(uint32_t file) const override { return files_[file].direct; }
  uint64_t file_bytes(uint32_t file) const override { return files_[file].bytes; }
  uint32_t depth() const override { return depth_; }
  IoEngineCounters counters() const override;
  size_t submit(std::span<const ReadRequest> requests) override;
  size_t reap(std::span<ReadCompletion> out, int64_t timeout_ns) override;
  void interrupt() override;

 private:
  struct Flight {  // a read that the io thread has in hand
    uint64_t tag = 0;
    int64_t issued_ns = 0;
  };
  void run();
  void take_requests();
  bool fall_asleep();
  void answer(uint64_t key, int32_t result, int64_t now_ns);
  size_t drain();
  void refuse_everything();
  void wake_io_thread();

  // Owner thread.
  const uint32_t depth_;
  uint32_t outstanding_ = 0;
  std::thread thread_;

  // Set before the io thread runs, read-only after.
  std::vector<ReadFile> files_;
  UniqueFd wake_fd_;

  // Between the two.
  boost::lockfree::spsc_queue<ReadRequest> requests_;
  boost::lockfree::spsc_queue<ReadCompletion> completions_;
  std::atomic<bool> io_thread_asleep_{false};
  std::atomic<bool> stop_{false};
  std::atomic<bool> interrupted_{false};
  Doorbell completed_;
  std::atomic<uint64_t> reads_{0}, fixed_reads_{0}, submit_calls_{0};
  std::atomic<uint32_t> in_flight_max_{0};

  // Io thread.
  SteadyClock clock_;
  UringRing ring_;
  std::vector<Flight> flights_;
  std::vector<uint32_t> free_flights_;
  uint32_t pushed_ = 0;  // reads in the ring that no enter() has seen yet
  bool wake_armed_ = false;
  int64_t closing_since_ns_ = 0;
};

UringEngine::~UringEngine() {
  if (!thread_.joinable()) return;
  stop_.store(true);
  wake_io_thread();
  thread_.join();
}

Status UringEngine::start(std::vector<ReadFile>& files, const IoEngineOptions& options,
                          Notices& notices) {
  flights_.resize(depth_);
  for (uint32_t i = 0; i < depth_; ++i) free_flights_.push_back(depth_ - 1 - i);
  std::promise<Status> promise;
  std::future<Status> ready = promise.get_future();
  {
    const ScopedSignalBlock no_signals;
    thread_ = std::thread([&, promise = std::move(promise)]() mutable {
      pthread_setname_np(pthread_self(), "offstage-io");
      ask_to_wake_promptly();
      // The ring must be set up by the thread that will use it (SINGLE_ISSUER).
      Status status = ring_.set_up(depth_, files, options.buffers, notices);
      const bool able = status.has_value();
      if (able) files_ = std::move(files);
      promise.set_value(std::move(status));  // from here on, start()'s variables are gone
      if (able) run();
    });
  }
  Status status = ready.get();
  if (!status) thread_.join();
  return status;
}

IoEngineCounters UringEngine::counters() const {
  return {.reads = reads_.load(),
          .fixed_reads = fixed_reads_.load(),
          .submit_calls = submit_calls_.load(),
          .in_flight_max = in_flight_max_.load()};
}

size_t UringEngine::submit(std::span<const ReadRequest> requests) {
  const size_t count = std::min<size_t>(requests.size(), depth_ - outstanding_);
  for (const ReadRequest& request : requests.first(count)) {
    CHECK_LT(request.file, files_.size());
    CHECK_EQ(request.offset % kSectorBytes, 0u);
    CHECK_EQ(request.bytes % kSectorBytes, 0u);
    CHECK_EQ(reinterpret_cast<uintptr_t>(request.buffer) % kSectorBytes, 0u);
    CHECK(requests_.push(request));
  }
  outstanding_ += static_cast<uint32_t>(count);
  if (count != 0) wake_io_thread();
  return count;
}

// Exchanges on both sides (here and in fall_asleep) order the queue's contents against the flag:
// either we see the thread asleep, or it sees what we pushed.
void UringEngine::wake_io_thread() {
  if (!io_thread_asleep_.exchange(false)) return;
  const uint64_t one = 1;
  // The counter is far from overflow and the write can't block; EINTR can't happen before it.
  const ssize_t written = write(wake_fd_.get(), &one, sizeof one);
  CHECK_EQ(written, static_cast<ssize_t>(sizeof one));
}

size_t UringEngine::reap(std::span<ReadCompletion> out, int64_t timeout_ns) {
  const int64_t give_up_ns = give_up_time_ns(clock_.now_ns(), timeout_ns);
  while (true) {
    const size_t count = completions_.pop(out.data(), out.size());
    outstanding_ -= static_cast<uint32_t>(count);
    if (count != 0 || out.empty() || timeout_ns <= 0) return count;
    if (interrupted_.exchange(false)) return 0;
    const int64_t left_ns = give_up_ns - clock_.now_ns();
    if (left_ns <= 0) return 0;
    completed_.wait(left_ns);
  }
}

void UringEngine::interrupt() {
  interrupted_.store(true);
  completed_.ring();
}

// ---- the io thread ----

void UringEngine::run() {
  while (true) {
    take_requests();
    if (stop_.load()) {
      const int64_t now_ns = clock_.now_ns();
      if (closing_since_ns_ == 0) closing_since_ns_ = now_ns;
      if (free_flights_.size() == depth_ || now_ns - closing_since_ns_ > kCloseWaitNs) return;
    } else if (!fall_asleep()) {
      continue;
    }
    const bool submits_reads = pushed_ != 0;
    const auto outcome = ring_.enter(true, stop_.load() ? kCloseWaitNs : UringRing::kNoTimeout);
    io_thread_asleep_.exchange(false);
    if (submits_reads) submit_calls_.fetch_add(1, std::memory_order_relaxed);
    pushed_ = 0;
    const size_t drained = drain();
    if (outcome == EnterOutcome::kDead) return refuse_everything();
    if (outcome == EnterOutcome::kBackOff && drained == 0)
      std::this_thread::sleep_for(kBackOffSleep);
  }
}

void UringEngine::take_requests() {
  if (!wake_armed_) {
    ring_.push_wake(wake_fd_.get());
    wake_armed_ = true;
  }
  if (requests_.read_available() == 0) return;
  const int64_t now_ns = clock_.now_ns();
  requests_.consume_all([&](const ReadRequest& request) {
    CHECK(!free_flights_.empty());
    const uint32_t key = free_flights_.back();
    free_flights_.pop_back();
    flights_[key] = {.tag = request.tag, .issued_ns = now_ns};
    const bool fixed = ring_.push_read(request, key);
    fixed_reads_.fetch_add(fixed ? 1 : 0, std::memory_order_relaxed);
    ++pushed_;
  });
  const auto in_flight = static_cast<uint32_t>(depth_ - free_flights_.size());
  if (in_flight > in_flight_max_.load(std::memory_order_relaxed)) {
    in_flight_max_.store(in_flight, std::memory_order_relaxed);
  }
}

// Says that the next push must write the eventfd; false if one came before it could know.
bool UringEngine::fall_asleep() {
  io_thread_asleep_.exchange(true);
  if (requests_.read_available() == 0 && !stop_.load()) return true;
  io_thread_asleep_.exchange(false);
  return false;
}

size_t UringEngine::drain() {
  const int64_t now_ns = clock_.now_ns();
  size_t answered = 0;
  const size_t drained = ring_.drain([&](uint64_t key, int32_t result) {
    if (key == UringRing::kWakeKey) {
      wake_armed_ = false;  // whatever it said: armed again before the next sleep
      return;
    }
    answer(key, result, now_ns);
    ++answered;
  });
  if (answered != 0) completed_.ring();
  return drained;
}

void UringEngine::answer(uint64_t key, int32_t result, int64_t now_ns) {
  const auto flight = static_cast<uint32_t>(key);
  CHECK_LT(flight, depth_);
  CHECK(completions_.push(ReadCompletion{.tag = flights_[flight].tag,
                                         .result = result,
                                         .issued_ns = flights_[flight].issued_ns,
                                         .completed_ns = now_ns}));
  free_flights_.push_back(flight);
  reads_.fetch_add(1, std::memory_order_relaxed);
}

// The ring is dead: reads that the kernel never took are answered with its errno, and so is
// everything that comes. What the kernel took may still arrive; if not, its buffers stay with us
// and the scheduler's deadline tells the caller.
void UringEngine::refuse_everything() {
  while (!stop_.load()) {
    take_requests();
    size_t answered = 0;
    while (ring_.unsubmitted() != 0) {
      const uint64_t key = ring_.take_back();
      if (key == UringRing::kWakeKey) continue;
      answer(key, -ring_.dead_errno(), clock_.now_ns());
      ++answered;
    }
    if (answered != 0) completed_.ring();
    drain();
    std::this_thread::sleep_for(kDeadRingSleep);  // its eventfd is as dead; rare enough to poll
  }
}

}  // namespace

Result<std::unique_ptr<IoEngine>> open_uring_engine(std::vector<ReadFile>& files,
                                                    const IoEngineOptions& options,
                                                    Notices& notices) {
  UniqueFd wake_fd(eventfd(0, EFD_CLOEXEC));
  if (!wake_fd.valid()) return tl::unexpected(errno_error("io_uring", "cannot make an eventfd"));
  auto engine = std::make_unique<UringEngine>(options.depth, std::move(wake_fd));
  OFFSTAGE_TRY_VOID(engine->start(files, options, notices));
  return engine;
}

}  // namespace offstage
