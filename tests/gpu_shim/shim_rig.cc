// The comparisons' kernels on the CPU.
#include <cstdlib>

#include "base/check.h"
#include "tests/gpu_kernels/rig.h"
#include "tests/gpu_shim/shim.h"

namespace offstage::gpu_rig {

const char* why_not() { return ""; }

// Exactly `bytes`, so that AddressSanitizer sees the end.
std::byte* allocate(size_t bytes) {
  void* memory = nullptr;
  CHECK_EQ(posix_memalign(&memory, 256, bytes), 0);
  std::memset(memory, 0xff, bytes);
  return static_cast<std::byte*>(memory);
}
void release(std::byte* memory) { std::free(memory); }
void upload(std::byte* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void download(void* to, const std::byte* from, size_t bytes) { std::memcpy(to, from, bytes); }

gpu::StreamHandle stream() { return nullptr; }
void finish(const gpu::CallStatus& launch) { CHECK(launch.ok()); }

uint32_t n_turns() { return 2; }
void begin_turn(uint32_t turn) {
  gpu_shim::set_thread_order(turn == 0 ? gpu_shim::ThreadOrder::kAscending
                                       : gpu_shim::ThreadOrder::kDescending);
}

}  // namespace offstage::gpu_rig
