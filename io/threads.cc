// One mutex guards both rings (requests, completions). It is held for a few stores at a time and
// never across a pread. Each thread hands one pread's answer up as it is: short, or −errno.
#include "io/threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/check.h"
#include "base/clock.h"
#include "io/engine_doorbell.h"
#include "io/engine_priority.h"
#include "io/engine_signals.h"
#include "io/extent.h"

namespace offstage {
namespace {

constexpr uint32_t kThreadsMax = 16;

// A bounded first-in first-out; its user knows that it can't overflow (depth bounds both).
template <typename T>
class Ring {
 public:
  explicit Ring(size_t capacity) : items_(capacity) {}
  bool empty() const { return count_ == 0; }
  void push(const T& item) {
    CHECK_LT(count_, items_.size());
    items_[(head_ + count_++) % items_.size()] = item;
  }
  T pop() {
    CHECK_GT(count_, 0u);
    const T item = items_[head_];
    head_ = (head_ + 1) % items_.size();
    --count_;
    return item;
  }

 private:
  std::vector<T> items_;
  size_t head_ = 0;
  size_t count_ = 0;
};

class ThreadsEngine final : public IoEngine {
 public:
  ThreadsEngine(std::vector<ReadFile> files, const IoEngineOptions& options)
      : depth_(options.depth),
        files_(std::move(files)),
        drive_of_file_(options.drive_of_file),
        completions_(options.depth) {
    uint32_t n_drives = 1;
    for (const uint32_t drive : drive_of_file_) n_drives = std::max(n_drives, drive + 1);
    for (uint32_t i = 0; i < n_drives; ++i) pools_.emplace_back(depth_);
  }
  ~ThreadsEngine() override;

  Status start();

  std::string_view name() const override { return "threads"; }
  bool direct_io(uint32_t file) const override { return files_[file].direct; }
  uint64_t file_bytes(uint32_t file) const override { return files_[file].bytes; }
  uint32_t depth() const override { return depth_; }
  IoEngineCounters counters() const override;
  size_t submit(std::span<const ReadRequest> requests) override;
  size_t reap(std::span<ReadCompletion> out, int64_t timeout_ns) override;
  void interrupt() override;

 private:
  struct Pool {  // one drive's
    explicit Pool(uint32_t depth) : requests(depth) {}
    Ring<ReadRequest> requests;
    std::condition_variable requested;
  };
  Pool& pool_of(const ReadRequest& request) {
    return pools_[drive_of_file_.empty() ? 0 : drive_of_file_[request.file]];
  }
  void work(Pool& pool);
  ReadCompletion read(const ReadRequest& request) const;

  const uint32_t depth_;
  const std::vector<ReadFile> files_;
  const std::vector<uint32_t> drive_of_file_;
  const SteadyClock clock_;
  uint32_t outstanding_ = 0;  // owner thread
  std::vector<std::thread> threads_;
  std::atomic<bool> interrupted_{false};
  Doorbell completed_;

  mutable std::mutex mutex_;  // guards everything below
  std::deque<Pool> pools_;    // by drive; a pool can't move
  Ring<ReadCompletion> completions_;
  bool stop_ = false;
  uint32_t reading_ = 0;
  IoEngineCounters counters_;
};

Status ThreadsEngine::start() {
  const ScopedSignalBlock no_signals;
  const auto n_drives = static_cast<uint32_t>(pools_.size());
  const uint32_t of_drive = std::clamp(depth_ / n_drives, 1u, kThreadsMax);
  const uint32_t count = n_drives * of_drive;
  for (uint32_t i = 0; i < count; ++i) {
    try {  // std::thread has no other way to say that a limit was reached
      threads_.emplace_back([this, i, n_drives] {
        pthread_setname_np(pthread_self(), "offstage-pread");
        ask_to_wake_promptly();
        work(pools_[i % n_drives]);
      });
    } catch (const std::system_error& error) {
      return make_error(ErrorCode::kOutOfMemory, "cannot start read thread {} of {}: {}", i + 1,
                        count, error.what());
    }
  }
  return {};
}

ThreadsEngine::~ThreadsEngine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  for (Pool& pool : pools_) pool.requested.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

IoEngineCounters ThreadsEngine::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

size_t ThreadsEngine::submit(std::span<const ReadRequest> requests) {
  const size_t count = std::min<size_t>(requests.size(), depth_ - outstanding_);
  if (count == 0) return 0;
  for (const ReadRequest& request : requests.first(count)) {
    CHECK_LT(request.file, files_.size());
    CHECK_EQ(request.offset % kSectorBytes, 0u);
    CHECK_EQ(request.bytes % kSectorBytes, 0u);
    CHECK_EQ(reinterpret_cast<uintptr_t>(request.buffer) % kSectorBytes, 0u);
  }
  {
    const std::lock_guard lock(mutex_);
    for (const ReadRequest& request : requests.first(count))
      pool_of(request).requests.push(request);
  }
  outstanding_ += static_cast<uint32_t>(count);
  if (count == 1) {
    pool_of(requests.front()).requested.notify_one();
  } else {
    for (Pool& pool : pools_) pool.requested.notify_all();
  }
  return count;
}

size_t ThreadsEngine::reap(std::span<ReadCompletion> out, int64_t timeout_ns) {
  const int64_t give_up_ns = give_up_time_ns(clock_.now_ns(), timeout_ns);
  while (true) {
    size_t count = 0;
    {
      const std::lock_guard lock(mutex_);
      while (count < out.size() && !completions_.empty()) out[count++] = completions_.pop();
    }
    outstanding_ -= static_cast<uint32_t>(count);
    if (count != 0 || out.empty() || timeout_ns <= 0) return count;
    if (interrupted_.exchange(false)) return 0;
    const int64_t left_ns = give_up_ns - clock_.now_ns();
    if (left_ns <= 0) return 0;
    completed_.wait(left_ns);
  }
}

void ThreadsEngine::interrupt() {
  interrupted_.store(true);
  completed_.ring();
}

void ThreadsEngine::work(Pool& pool) {
  std::unique_lock lock(mutex_);
  while (true) {
    pool.requested.wait(lock, [&] { return stop_ || !pool.requests.empty(); });
    if (stop_) return;  // what wasn't begun is dropped: nobody can reap it any more
    const ReadRequest request = pool.requests.pop();
    counters_.in_flight_max = std::max(counters_.in_flight_max, ++reading_);
    ++counters_.submit_calls;
    lock.unlock();
    const ReadCompletion completion = read(request);
    lock.lock();
    --reading_;
    ++counters_.reads;
    completions_.push(completion);
    lock.unlock();
    completed_.ring();
    lock.lock();
  }
}

ReadCompletion ThreadsEngine::read(const ReadRequest& request) const {
  ReadCompletion completion = {.tag = request.tag, .issued_ns = clock_.now_ns()};
  const ssize_t got = pread(files_[request.file].fd.get(), request.buffer, request.bytes,
                            static_cast<off_t>(request.offset));
  completion.result = got < 0 ? -errno : static_cast<int32_t>(got);
  completion.completed_ns = clock_.now_ns();
  return completion;
}

}  // namespace

Result<std::unique_ptr<IoEngine>> open_threads_engine(std::vector<ReadFile> files,
                                                      const IoEngineOptions& options) {
  auto engine = std::make_unique<ThreadsEngine>(std::move(files), options);
  OFFSTAGE_TRY_VOID(engine->start());
  return engine;
}

}  // namespace offstage
