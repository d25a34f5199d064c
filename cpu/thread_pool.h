// Compute workers: a fixed team that splits index ranges, bound one per physical core.
//
// The caller is worker 0; parallel_for returns when all is done. Between calls workers spin for a
// few microseconds, then sleep, so that an idle Offstage uses no CPU and a two-core machine leaves
// a core to the drive's completions. Splitting never changes results: kernels are pure in their
// range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

#include "base/notices.h"
#include "base/ring.h"

namespace offstage {

// A worker's share in one job.
struct WorkerSpan {
  int64_t begin_ns = 0, end_ns = 0;  // SteadyClock's
  uint8_t tag = 0;                   // the job's
};

class ThreadPool {
 public:
  // Longer than the serial gaps between the matrices of one layer, shorter than anything a person
  // or a drive notices. Sleeping costs the next call a wake-up of 5–50 µs.
  static constexpr int64_t kSpinNs = 100'000;

  // `threads`: 0 = one per physical core that this process may use. Binding that the system refuses
  // is announced (subject "threads").
  ThreadPool(uint32_t threads, Notices& notices);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t size() const;

  // `between` runs on the caller's thread after every chunk that the caller computed: for what
  // can't wait until a long job is over. It must not call parallel_for.
  void set_between_chunks(std::function<void()> between);

  // From now on each worker keeps its last `spans_max` shares. `tag` says what a job is; it runs on
  // the caller's thread when the job begins. Memory is taken now. Between jobs only, as the two
  // below.
  void record_spans(size_t spans_max, std::function<uint8_t()> tag);
  const Ring<WorkerSpan>* spans(uint32_t worker) const;  // nullptr: nothing is recorded
  void clear_spans();

  // Runs body(begin, end, worker) over [0, n) in chunks of at least `grain`, taken dynamically.
  // Not reentrant: one caller at a time.
  template <typename Body>
  void parallel_for(uint32_t n, uint32_t grain, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(n, grain, const_cast<void*>(static_cast<const void*>(&body)),
        [](void* context, uint32_t begin, uint32_t end, uint32_t worker) {
          (*static_cast<Plain*>(context))(begin, end, worker);
        });
  }

 private:
  using Trampoline = void (*)(void* context, uint32_t begin, uint32_t end, uint32_t worker);
  void run(uint32_t n, uint32_t grain, void* context, Trampoline trampoline);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace offstage
