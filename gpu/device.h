// What the machine's GPUs are, and one of them at work: memory, copies, kernels. One header for
// all: nobody else sees the vendor's.
//
// Three devices implement it. The build has either CUDA's (cuda_*: a toolkit was found) or none
// (no_cuda_device.cc), and always the simulated one (sim_device.h), on which the code above this
// seam is tested.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "gpu/kernels/kernels.h"

namespace offstage {

struct DeviceFacts {
  uint32_t index = 0;  // the runtime's number, after CUDA_VISIBLE_DEVICES
  std::string name;
  std::string pci_id;  // "0000:19:00.0": the same whatever the order of the numbers
  uint32_t compute_major = 0;
  uint32_t compute_minor = 0;
  uint64_t memory_bytes = 0;
  std::optional<uint64_t> memory_free_bytes;  // at the time of asking; see FreeMemory
};

// The driver tells free memory only to a context. One costs a few tenths of a second, device memory
// and host memory, so a command that doesn't use the device shouldn't ask. kAsk resets every
// device when it is done: for a process that hasn't touched one yet.
enum class FreeMemory { kSkip, kAsk };

// Every device, by index; never an empty list. Errors, each a sentence fit for a notice:
// kUnsupported (built without CUDA; a driver older than the toolkit), kNotFound (no driver, no
// device), kIo (the driver refused, with its words). From one thread, as it resets devices.
Result<std::vector<DeviceFacts>> list_devices(FreeMemory free_memory);

// What this program was built with: "CUDA 13.0" or "none".
std::string device_backend();

// Work on one stream happens in order; work on different ones at the same time.
enum class DeviceStream : uint32_t { kCompute, kToDevice, kToHost };
inline constexpr uint32_t kDeviceStreams = 3;

// A point in a stream, reached once everything put there before it has happened. Numbers count up
// from 1 per stream, so a later mark reached means the earlier ones are.
struct DeviceMark {
  DeviceStream stream = DeviceStream::kCompute;
  uint64_t number = 0;
};

// Puts kernels (gpu/kernels/kernels.h) on the stream it is given.
using DeviceLaunch = std::function<gpu::CallStatus(gpu::StreamHandle)>;
struct DeviceWork {
  std::string_view name;  // for messages; static
  // For the simulated device's clock: what it reads of the device's memory, and what it moves
  // between that and pinned host memory.
  uint64_t bytes = 0, host_bytes = 0;
  std::vector<std::span<const std::byte>> ranges;  // device memory it uses, for its race check
  DeviceLaunch launch;
};

// One device, used by one thread. Errors: kOutOfMemory (nothing else changed, go on with less), kIo
// (an error of copies or kernels; once there is one, every call but release answers with it: the
// device is lost to this process), kDeadline (wait). Destroying it waits for nothing and gives its
// memory back.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceFacts& facts() const = 0;

  // At a multiple of 256; contents undefined. Released only after all work on it is known to be
  // done.
  virtual Result<std::byte*> allocate(uint64_t bytes) = 0;
  virtual void release(std::byte* memory) = 0;
  virtual Result<uint64_t> free_bytes() = 0;

  // Host memory that copies reach at full speed, and kernels by the same pointer. pin() is for
  // memory that exists, whole pages, and for copies alone.
  virtual Result<std::byte*> allocate_pinned(uint64_t bytes) = 0;
  virtual void release_pinned(std::byte* memory) = 0;
  virtual Status pin(std::span<std::byte> memory) = 0;
  virtual void unpin(std::byte* memory) = 0;

  // Host ↔ device, by the stream's direction: kToDevice or kToHost. `from` must stay as it is, and
  // nobody may read `to`, until a mark behind it is reached. From and to pageable memory it works
  // too, but slower and not beside other work.
  virtual Status copy(DeviceStream stream, std::byte* to, const std::byte* from,
                      uint64_t bytes) = 0;
  // On kCompute.
  virtual Status launch(DeviceWork work) = 0;

  virtual Result<DeviceMark> mark(DeviceStream stream) = 0;
  // What is put on `stream` from now on begins after `mark` is reached.
  virtual Status order(DeviceStream stream, DeviceMark mark) = 0;
  virtual Result<bool> reached(DeviceMark mark) = 0;
  // Sleeps. kDeadline: not reached within the time; the mark may still be.
  virtual Status wait(DeviceMark mark, int64_t timeout_ns) = 0;
};

// The device of that index in list_devices(), with a context of its own. Errors as there.
Result<std::unique_ptr<Device>> open_device(uint32_t index);

// The kernels of gpu/kernels that a run takes (gpu/kernel_table.h), or what stands for them on the
// simulated device.
struct DeviceKernels {
  template <typename Args>
  using Kernel = std::function<gpu::CallStatus(gpu::StreamHandle, const Args&)>;
  std::function<uint64_t(TensorType weights, uint32_t k)> activation_row_bytes;
  Kernel<gpu::SetSlotArgs> set_slot;
  Kernel<gpu::MoveWordsArgs> move_words;
  Kernel<gpu::QuantiseArgs> quantise_activations;
  Kernel<gpu::GateUpArgs> expert_gate_up;
  Kernel<gpu::MatvecArgs> matvec;
  // Beside those, what the dense part of a layer takes.
  Kernel<gpu::FloatMatvecArgs> float_matvec;
  Kernel<gpu::RmsNormArgs> rms_norm;
  Kernel<gpu::LayerNormArgs> layer_norm;
  Kernel<gpu::RopeArgs> rope;
  Kernel<gpu::StoreKvArgs> store_kv;
  Kernel<gpu::AttentionArgs> attention;
  Kernel<gpu::AddScaledArgs> add_scaled;
  Kernel<gpu::RouteArgs> route;
  Kernel<gpu::ActivateArgs> activate;
  // What a prompt's chunk takes of experts.
  Kernel<gpu::GroupCallsArgs> group_calls;
  Kernel<gpu::MatvecArgs> matmul;
};

// Those of open_device()'s devices. None in a build without CUDA.
std::optional<DeviceKernels> device_kernels();

}  // namespace offstage
