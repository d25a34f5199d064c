// The comparisons' kernels on the first card, through gpu/device.h.
#include "base/check.h"
#include "gpu/device.h"
#include "tests/gpu_kernels/rig.h"

namespace offstage::gpu_rig {
namespace {

constexpr int64_t kPatienceNs = 60'000'000'000;

const Result<std::unique_ptr<Device>>& opened() {
  static const Result<std::unique_ptr<Device>> device = open_device(0);
  return device;
}

Device& device() { return **opened(); }

template <typename T>
T value_of(Result<T> result) {
  if (!result) fmt::print(stderr, "{}\n", result.error().message);
  CHECK(result.has_value());
  return std::move(*result);
}

void require(const Status& status) {
  if (!status) fmt::print(stderr, "{}\n", status.error().message);
  CHECK(status.has_value());
}

void wait_for(DeviceStream stream) {
  require(device().wait(value_of(device().mark(stream)), kPatienceNs));
}

}  // namespace

const char* why_not() { return opened() ? "" : opened().error().message.c_str(); }

std::byte* allocate(size_t bytes) {
  std::byte* memory = value_of(device().allocate(bytes));
  const std::vector<std::byte> ones(bytes, std::byte{0xff});
  upload(memory, ones.data(), bytes);
  return memory;
}
void release(std::byte* memory) { device().release(memory); }
void upload(std::byte* to, const void* from, size_t bytes) {
  require(device().copy(DeviceStream::kToDevice, to, static_cast<const std::byte*>(from), bytes));
  wait_for(DeviceStream::kToDevice);
}
void download(void* to, const std::byte* from, size_t bytes) {
  require(device().copy(DeviceStream::kToHost, static_cast<std::byte*>(to), from, bytes));
  wait_for(DeviceStream::kToHost);
}

gpu::StreamHandle stream() {
  gpu::StreamHandle compute = nullptr;
  DeviceWork work;
  work.name = "nothing";
  work.launch = [&](gpu::StreamHandle handle) {
    compute = handle;
    return gpu::CallStatus{};
  };
  require(device().launch(std::move(work)));
  return compute;
}
void finish(const gpu::CallStatus& launch) {
  if (!launch.ok()) fmt::print(stderr, "{}: {}\n", launch.call, launch.meaning);
  CHECK(launch.ok());
  wait_for(DeviceStream::kCompute);
}

uint32_t n_turns() { return 1; }
void begin_turn(uint32_t) {}

}  // namespace offstage::gpu_rig
