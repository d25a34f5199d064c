#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "cpu/topology.h"

namespace offstage {
namespace {

// A worker takes this part of its fair share of what is left: long pieces of the weights first, and
// in the end ones so short that all workers are done at nearly the same time.
constexpr uint32_t kShareParts = 2;

// The caller is moved off a worker's core at most this often: a system that insists gets its way.
constexpr auto kMoveInterval = std::chrono::milliseconds(1);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

template <typename Condition>
bool spin_until(Condition&& condition) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::nanoseconds(ThreadPool::kSpinNs);
  do {
    for (int i = 0; i < 16; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return condition();
}

}  // namespace

// A job is open from run()'s start until its caller finds no chunk left. A worker joins by raising
// the count of an *open* job, and only then reads the job's fields; the caller waits for those who
// joined and for nobody else, so a worker that wakes late costs nothing.
struct ThreadPool::State {
  static constexpr uint32_t kOpen = 1u << 31;

  alignas(64) std::atomic<uint32_t> generation{0};  // changes at every job, workers sleep on it
  alignas(64) std::atomic<uint32_t> joined{0};      // workers inside, | kOpen
  alignas(64) std::atomic<uint32_t> next{0};
  alignas(64) std::atomic<bool> stop{false};
  uint32_t n = 0, grain = 0;
  void* context = nullptr;
  Trampoline trampoline = nullptr;
  std::vector<std::thread> workers;
  std::vector<uint32_t> processors;  // [worker]; empty: not bound
  std::chrono::steady_clock::time_point next_move{};
  std::function<void()> between_chunks;  // the caller's
  SteadyClock clock;
  std::vector<Ring<WorkerSpan>> spans;  // [worker], each its worker's while a job is open
  std::function<uint8_t()> tag_of;
  uint8_t tag = 0;  // the job's

  // Workers are bound and the caller isn't, so the system may put both on one core and leave it
  // so: measured on two cores with one busy, the second worker then got 2 % of the chunks.
  void keep_caller_apart() {
    if (processors.empty()) return;
    const int here = this_processor();
    if (here < 0) return;
    const auto others = processors.begin() + 1;
    if (std::find(others, processors.end(), static_cast<uint32_t>(here)) == processors.end())
      return;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_move) return;
    next_move = now + kMoveInterval;
    move_this_thread(processors[0]);
  }

  uint32_t chunk_of(uint32_t left) const {
    const uint32_t parts = kShareParts * (static_cast<uint32_t>(workers.size()) + 1);
    return std::max(left / parts / grain, 1u) * grain;
  }

  // False if no chunk was left.
  bool take_chunks(uint32_t worker) {
    bool took = false;
    uint32_t begin = next.load(std::memory_order_relaxed);
    while (begin < n) {
      const uint32_t end = begin + std::min(n - begin, chunk_of(n - begin));
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      trampoline(context, begin, end, worker);
      if (worker == 0 && between_chunks) between_chunks();
      took = true;
      begin = next.load(std::memory_order_relaxed);
    }
    return took;
  }

  // `share()` is a worker's part of the job: false if it had none.
  template <typename Share>
  void recorded(uint32_t worker, Share&& share) {
    const int64_t begin_ns = spans.empty() ? 0 : clock.now_ns();
    if (share() && !spans.empty()) spans[worker].push({begin_ns, clock.now_ns(), tag});
  }

  bool join() {
    uint32_t seen = joined.load(std::memory_order_relaxed);
    while ((seen & kOpen) != 0)
      if (joined.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) return true;
    return false;
  }

  void leave() {
    // The last one out of a closed job wakes the caller.
    if (joined.fetch_sub(1, std::memory_order_release) == 1) joined.notify_all();
  }

  void work(uint32_t worker) {
    uint32_t seen = 0;
    for (;;) {
      const auto changed = [&] { return generation.load(std::memory_order_acquire) != seen; };
      if (!spin_until(changed)) generation.wait(seen, std::memory_order_acquire);
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      if (!join()) continue;
      recorded(worker, [&] { return take_chunks(worker); });
      leave();
    }
  }
};

ThreadPool::ThreadPool(uint32_t threads, Notices& notices) : state_(std::make_unique<State>()) {
  const Topology topology = read_topology();
  const auto n_cores = static_cast<uint32_t>(topology.core_processors.size());
  if (threads == 0) {
    threads = std::max(1u, n_cores);
    if (topology.quota_cores != 0 && topology.quota_cores < threads) {
      notices.add("threads", fmt::format("{} of {} cores used: the control group's quota pays for "
                                         "no more",
                                         topology.quota_cores, threads));
      threads = topology.quota_cores;
    }
  }
  const bool bind = threads <= n_cores;
  if (!bind && threads > 1) {
    notices.add("threads",
                fmt::format("{} threads on {} physical cores: not bound", threads, n_cores));
  }
  // The caller is worker 0 and stays unbound: threads that it starts later (io) would inherit its
  // mask. The others leave it the first core, and keep_caller_apart() sees that it is there.
  if (bind && threads > 1)
    state_->processors.assign(topology.core_processors.begin(),
                              topology.core_processors.begin() + threads);
  std::latch started(threads);
  for (uint32_t worker = 1; worker < threads; ++worker) {
    const uint32_t processor = bind ? topology.core_processors[worker] : 0;
    state_->workers.emplace_back([this, worker, bind, processor, &notices, &started] {
      if (bind) {
        if (const Status bound = bind_this_thread(processor); !bound)
          notices.add("threads", bound.error().message);
      }
      started.count_down();
      state_->work(worker);
    });
  }
  started.arrive_and_wait();  // refusals are known before anyone prints the notices
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_relaxed);
  state_->generation.fetch_add(1, std::memory_order_release);
  state_->generation.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::set_between_chunks(std::function<void()> between) {
  state_->between_chunks = std::move(between);
}

void ThreadPool::record_spans(size_t spans_max, std::function<uint8_t()> tag) {
  state_->spans.assign(size(), Ring<WorkerSpan>(spans_max));
  state_->tag_of = std::move(tag);
}

const Ring<WorkerSpan>* ThreadPool::spans(uint32_t worker) const {
  return state_->spans.empty() ? nullptr : &state_->spans[worker];
}

void ThreadPool::clear_spans() {
  for (Ring<WorkerSpan>& spans : state_->spans) spans.clear();
}

uint32_t ThreadPool::size() const { return static_cast<uint32_t>(state_->workers.size()) + 1; }

void ThreadPool::run(uint32_t n, uint32_t grain, void* context, Trampoline trampoline) {
  if (n == 0) return;
  grain = std::max(1u, grain);
  State& state = *state_;
  if (state.tag_of) state.tag = state.tag_of();
  state.n = n;
  state.grain = grain;
  state.context = context;
  state.trampoline = trampoline;
  state.next.store(0, std::memory_order_relaxed);
  if (size() == 1 || n <= grain) {
    state.recorded(0, [&] { return state.take_chunks(0); });
    return;
  }
  state.keep_caller_apart();
  state.joined.store(State::kOpen, std::memory_order_release);
  state.generation.fetch_add(1, std::memory_order_release);
  state.generation.notify_all();
  state.recorded(0, [&] { return state.take_chunks(0); });
  state.joined.fetch_and(~State::kOpen, std::memory_order_acquire);
  const auto alone = [&] { return state.joined.load(std::memory_order_acquire) == 0; };
  if (spin_until(alone)) return;
  for (uint32_t inside; (inside = state.joined.load(std::memory_order_acquire)) != 0;)
    state.joined.wait(inside, std::memory_order_acquire);
}

}  // namespace offstage
