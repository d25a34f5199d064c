// A CUDA device at work: device.h's memory, copies, kernels and marks as calls to the runtime.
//
// One context, three streams that don't wait for the default one. A mark is an event from a pool,
// given back once a later query finds it done.
#include <cuda_runtime_api.h>

#include <array>
#include <chrono>
#include <deque>
#include <thread>
#include <utility>

#include "base/check.h"
#include "gpu/device.h"

namespace offstage {
namespace {

// Errors after which the context is of no more use come back from every later call; those of an
// allocation don't.
ErrorCode code_of(cudaError_t error) {
  const bool memory =
      error == cudaErrorMemoryAllocation || error == cudaErrorHostMemoryAlreadyRegistered;
  return memory ? ErrorCode::kOutOfMemory : ErrorCode::kIo;
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(DeviceFacts facts) : facts_(std::move(facts)) {}
  ~CudaDevice() override;
  Status open();

  const DeviceFacts& facts() const override { return facts_; }
  Result<std::byte*> allocate(uint64_t bytes) override;
  void release(std::byte* memory) override;
  Result<uint64_t> free_bytes() override;
  Result<std::byte*> allocate_pinned(uint64_t bytes) override;
  void release_pinned(std::byte* memory) override;
  Status pin(std::span<std::byte> memory) override;
  void unpin(std::byte* memory) override;
  Status copy(DeviceStream stream, std::byte* to, const std::byte* from, uint64_t bytes) override;
  Status launch(DeviceWork work) override;
  Result<DeviceMark> mark(DeviceStream stream) override;
  Status order(DeviceStream stream, DeviceMark mark) override;
  Result<bool> reached(DeviceMark mark) override;
  Status wait(DeviceMark mark, int64_t timeout_ns) override;

 private:
  struct Stream {
    cudaStream_t handle = nullptr;
    std::deque<cudaEvent_t> marks;  // not yet seen done, oldest first
    uint64_t last = 0;              // number of the newest
  };

  Status status_of(std::string_view call, cudaError_t error) const;
  Result<cudaEvent_t> take_event();
  Stream& stream_of(DeviceStream stream) { return streams_[static_cast<size_t>(stream)]; }

  DeviceFacts facts_;
  std::array<Stream, kDeviceStreams> streams_;
  std::vector<cudaEvent_t> events_;  // free
};

Status CudaDevice::status_of(std::string_view call, cudaError_t error) const {
  if (error == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());  // an answer that doesn't stay is not asked for again
  return make_error(code_of(error), "GPU {} ({}): {}: {} ({})", facts_.index, facts_.name, call,
                    cudaGetErrorString(error), cudaGetErrorName(error));
}

Status CudaDevice::open() {
  OFFSTAGE_TRY_VOID(status_of("cudaSetDevice", cudaSetDevice(static_cast<int>(facts_.index))));
  for (Stream& stream : streams_)
    OFFSTAGE_TRY_VOID(status_of("cudaStreamCreateWithFlags",
                                cudaStreamCreateWithFlags(&stream.handle, cudaStreamNonBlocking)));
  return {};
}

// Their answers would tell nothing that can still be acted on.
CudaDevice::~CudaDevice() {
  for (Stream& stream : streams_) {
    for (const cudaEvent_t event : stream.marks) static_cast<void>(cudaEventDestroy(event));
    if (stream.handle != nullptr) static_cast<void>(cudaStreamDestroy(stream.handle));
  }
  for (const cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
  static_cast<void>(cudaDeviceReset());
}

Result<std::byte*> CudaDevice::allocate(uint64_t bytes) {
  void* memory = nullptr;
  OFFSTAGE_TRY_VOID(
      status_of(fmt::format("cudaMalloc of {} bytes", bytes), cudaMalloc(&memory, bytes)));
  return static_cast<std::byte*>(memory);
}

void CudaDevice::release(std::byte* memory) { static_cast<void>(cudaFree(memory)); }

Result<uint64_t> CudaDevice::free_bytes() {
  size_t free = 0, total = 0;
  OFFSTAGE_TRY_VOID(status_of("cudaMemGetInfo", cudaMemGetInfo(&free, &total)));
  return uint64_t{free};
}

Result<std::byte*> CudaDevice::allocate_pinned(uint64_t bytes) {
  void* memory = nullptr;
  OFFSTAGE_TRY_VOID(status_of(fmt::format("cudaHostAlloc of {} bytes", bytes),
                              cudaHostAlloc(&memory, bytes, cudaHostAllocPortable)));
  return static_cast<std::byte*>(memory);
}

void CudaDevice::release_pinned(std::byte* memory) { static_cast<void>(cudaFreeHost(memory)); }

Status CudaDevice::pin(std::span<std::byte> memory) {
  return status_of(fmt::format("cudaHostRegister of {} bytes", memory.size()),
                   cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterPortable));
}

void CudaDevice::unpin(std::byte* memory) { static_cast<void>(cudaHostUnregister(memory)); }

Status CudaDevice::copy(DeviceStream stream, std::byte* to, const std::byte* from, uint64_t bytes) {
  CHECK(stream != DeviceStream::kCompute);
  const cudaMemcpyKind kind =
      stream == DeviceStream::kToDevice ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  return status_of("cudaMemcpyAsync",
                   cudaMemcpyAsync(to, from, bytes, kind, stream_of(stream).handle));
}

Status CudaDevice::launch(DeviceWork work) {
  const gpu::CallStatus status =
      work.launch(reinterpret_cast<gpu::StreamHandle>(stream_of(DeviceStream::kCompute).handle));
  if (status.ok()) return {};
  return make_error(ErrorCode::kIo, "GPU {} ({}): {}: {}: {} ({})", facts_.index, facts_.name,
                    work.name, status.call, status.meaning, status.error);
}

Result<cudaEvent_t> CudaDevice::take_event() {
  cudaEvent_t event = nullptr;
  if (!events_.empty()) {
    event = events_.back();
    events_.pop_back();
    return event;
  }
  OFFSTAGE_TRY_VOID(
      status_of("cudaEventCreateWithFlags",
                cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync)));
  return event;
}

Result<DeviceMark> CudaDevice::mark(DeviceStream stream) {
  Stream& on = stream_of(stream);
  OFFSTAGE_TRY(const cudaEvent_t event, take_event());
  const cudaError_t error = cudaEventRecord(event, on.handle);
  if (error != cudaSuccess) {
    events_.push_back(event);
    return tl::unexpected(status_of("cudaEventRecord", error).error());
  }
  on.marks.push_back(event);
  return DeviceMark{stream, ++on.last};
}

Status CudaDevice::order(DeviceStream stream, DeviceMark mark) {
  Stream& earlier = stream_of(mark.stream);
  const uint64_t behind = earlier.last - mark.number;  // marks after it
  if (behind >= earlier.marks.size()) return {};       // seen done
  const cudaEvent_t event = earlier.marks[earlier.marks.size() - 1 - behind];
  return status_of("cudaStreamWaitEvent", cudaStreamWaitEvent(stream_of(stream).handle, event, 0));
}

Result<bool> CudaDevice::reached(DeviceMark mark) {
  Stream& on = stream_of(mark.stream);
  while (!on.marks.empty()) {
    if (mark.number <= on.last - on.marks.size()) return true;
    const cudaError_t error = cudaEventQuery(on.marks.front());
    if (error == cudaErrorNotReady) return false;
    if (error != cudaSuccess) return tl::unexpected(status_of("cudaEventQuery", error).error());
    events_.push_back(on.marks.front());
    on.marks.pop_front();
  }
  return true;
}

// cudaEventSynchronize knows no deadline: asks, at first quickly, then ever more rarely.
Status CudaDevice::wait(DeviceMark mark, int64_t timeout_ns) {
  using std::chrono::nanoseconds;
  const auto deadline = std::chrono::steady_clock::now() + nanoseconds(timeout_ns);
  for (nanoseconds pause{2'000};; pause = std::min(pause * 2, nanoseconds{500'000})) {
    OFFSTAGE_TRY(const bool there, reached(mark));
    if (there) return {};
    if (std::chrono::steady_clock::now() >= deadline)
      return make_error(ErrorCode::kDeadline, "GPU {} ({}): not done within {} ms", facts_.index,
                        facts_.name, timeout_ns / 1'000'000);
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace

Result<std::unique_ptr<Device>> open_device(uint32_t index) {
  OFFSTAGE_TRY(const std::vector<DeviceFacts> devices, list_devices(FreeMemory::kSkip));
  if (index >= devices.size())
    return make_error(ErrorCode::kNotFound, "CUDA: no device {}, there are {}", index,
                      devices.size());
  auto device = std::make_unique<CudaDevice>(devices[index]);
  OFFSTAGE_TRY_VOID(device->open());
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace offstage
