// A block's threads as fibers, in turn.
#include "tests/gpu_shim/shim.h"

#include <fmt/format.h>

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
// Without AddressSanitizer nobody has to know which stack runs.
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

offstage::gpu_shim::Index3 threadIdx, blockIdx;

namespace offstage::gpu_shim {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr uint32_t kWarp = 32;

// One call of a warp function: who has come, and with what.
struct Meeting {
  const char* operation = nullptr;
  uint32_t arrived = 0;  // lanes
  uint64_t number = 0;   // of this meeting
  uint64_t values[kWarp] = {};
  uint64_t last_values[kWarp] = {};  // of the meeting before, for lanes that haven't looked yet
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Stack {
  const void* bottom = nullptr;
  size_t bytes = 0;
};

// Remembers the stack that a fiber gets, which AddressSanitizer wants to know.
struct RecordingStacks {
  Stack* record;
  boost::context::stack_context allocate() {
    boost::context::stack_context stack =
        boost::context::protected_fixedsize_stack(kStackBytes).allocate();
    *record = {static_cast<const std::byte*>(stack.sp) - stack.size, stack.size};
    return stack;
  }
  void deallocate(boost::context::stack_context& stack) {
    boost::context::protected_fixedsize_stack(kStackBytes).deallocate(stack);
  }
};

// A fiber that runs one kernel's thread after another, until it is asked to end.
class Thread {
 public:
  explicit Thread(uint32_t index) : index_(index) {
    fiber_ = boost::context::fiber(std::allocator_arg, RecordingStacks{&stack_},
                                   [this](boost::context::fiber&& from) {
                                     from_ = std::move(from);
                                     return live();
                                   });
  }
  ~Thread() {
    kernel_ = nullptr;
    switch_in();
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  void start(const std::function<void()>* kernel) {
    kernel_ = kernel;
    state_ = State::kReady;
  }
  // From the scheduler: runs it until it waits or is done.
  void switch_in() {
    threadIdx = {index_, 0, 0};
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_.bottom, stack_.bytes);
    fiber_ = std::move(fiber_).resume();
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  }
  // From inside: back to the scheduler, which will have resumed it when this returns.
  void wait(State state) {
    state_ = state;
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_.bottom, scheduler_.bytes);
    from_ = std::move(from_).resume();
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_.bottom, &scheduler_.bytes);
  }
  State state() const { return state_; }
  void set_ready() { state_ = State::kReady; }

 private:
  boost::context::fiber live() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_.bottom, &scheduler_.bytes);
    while (kernel_ != nullptr) {
      (*kernel_)();
      wait(State::kDone);
    }
    // For good: a null fake stack is given back.
    __sanitizer_start_switch_fiber(nullptr, scheduler_.bottom, scheduler_.bytes);
    return std::move(from_);
  }

  uint32_t index_;
  State state_ = State::kDone;
  const std::function<void()>* kernel_ = nullptr;
  Stack stack_, scheduler_;
  boost::context::fiber fiber_, from_;
};

struct Block {
  const char* kernel = "";
  std::vector<std::unique_ptr<Thread>> threads;  // kept from block to block
  uint32_t n_threads = 0;
  std::vector<Meeting> warps;
  std::map<const void*, std::unique_ptr<std::byte[]>> shared;
};

Block block;
ThreadOrder thread_order = ThreadOrder::kAscending;

Thread& current() { return *block.threads[threadIdx.x]; }

// Lets every thread run that can. Returns whether any did.
bool run_ready() {
  bool ran = false;
  for (uint32_t turn = 0; turn < block.n_threads; ++turn) {
    const uint32_t t = thread_order == ThreadOrder::kAscending ? turn : block.n_threads - 1 - turn;
    if (block.threads[t]->state() != State::kReady) continue;
    block.threads[t]->switch_in();
    ran = true;
  }
  return ran;
}

uint32_t threads_in(State state) {
  uint32_t count = 0;
  for (uint32_t t = 0; t < block.n_threads; ++t) count += block.threads[t]->state() == state;
  return count;
}

void run_block(const std::function<void()>& kernel) {
  block.shared.clear();
  block.warps.assign(block.n_threads / kWarp, {});
  for (uint32_t t = 0; t < block.n_threads; ++t) block.threads[t]->start(&kernel);
  while (true) {
    if (run_ready()) continue;
    const uint32_t done = threads_in(State::kDone);
    if (done == block.n_threads) return;
    if (threads_in(State::kAtBarrier) != block.n_threads)
      fail(threads_in(State::kInWarp) != 0 ? "a warp function that not all 32 lanes call"
                                           : "a barrier that not all threads of the block meet");
    for (uint32_t t = 0; t < block.n_threads; ++t) block.threads[t]->set_ready();
  }
}

}  // namespace

void fail(const char* what) {
  fmt::print(stderr, "gpu shim: {}: block ({}, {}, {}), thread {}: {}\n", block.kernel, blockIdx.x,
             blockIdx.y, blockIdx.z, threadIdx.x, what);
  std::abort();
}

void set_thread_order(ThreadOrder order) { thread_order = order; }

uint32_t lane() { return threadIdx.x % kWarp; }

void run_grid(const char* name, dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  block.kernel = name;
  block.n_threads = threads.x;
  if (threads.y != 1 || threads.z != 1 || threads.x % kWarp != 0 || threads.x > 1024)
    fail("a block that isn't one-dimensional, whole warps and at most 1024 threads");
  if (grid.x == 0 || grid.y - 1 > 65534 || grid.z - 1 > 65534) fail("a grid that no GPU takes");
  while (block.threads.size() < threads.x)
    block.threads.push_back(std::make_unique<Thread>(static_cast<uint32_t>(block.threads.size())));
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(kernel);
}

void sync_threads() { current().wait(State::kAtBarrier); }

uint64_t exchange(const char* operation, uint64_t value, uint32_t source) {
  Meeting& meeting = block.warps[threadIdx.x / kWarp];
  if (meeting.arrived == 0) meeting.operation = operation;
  if (std::strcmp(meeting.operation, operation) != 0)
    fail("lanes of a warp in different functions");
  const uint64_t number = meeting.number;
  const uint32_t first = threadIdx.x / kWarp * kWarp;
  meeting.values[lane()] = value;
  meeting.arrived |= 1u << lane();
  if (meeting.arrived == 0xffffffffu) {
    std::memcpy(meeting.last_values, meeting.values, sizeof meeting.values);
    meeting.arrived = 0;
    ++meeting.number;
    for (uint32_t t = first; t < first + kWarp; ++t)
      if (block.threads[t]->state() == State::kInWarp) block.threads[t]->set_ready();
  } else {
    current().wait(State::kInWarp);
  }
  if (meeting.number != number + 1) fail("a lane that missed its warp's meeting");
  if (source >= kWarp) fail("a lane that no warp has");
  return meeting.last_values[source];
}

void* shared_bytes(const void* place, size_t bytes) {
  std::unique_ptr<std::byte[]>& array = block.shared[place];
  if (array == nullptr) {
    array = std::make_unique<std::byte[]>(bytes);
    std::memset(array.get(), 0xff, bytes);
  }
  return array.get();
}

}  // namespace offstage::gpu_shim
