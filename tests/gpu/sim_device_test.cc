// The simulated device: times, order, faults, and the races it ends the program for.
#include "gpu/sim_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace offstage {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSecondNs = 1'000'000'000;

// Round numbers: 1 byte a ns over PCIe, 10 in memory, 1 µs before anything begins.
SimDeviceModel round_model() {
  SimDeviceModel model;
  model.memory_bytes = 1 << 20;
  model.memory_bytes_per_s = 10'000'000'000;
  model.pcie_bytes_per_s = 1'000'000'000;
  model.pageable_slower = 4;
  model.copy_latency_ns = model.launch_latency_ns = 1'000;
  return model;
}

struct Rig {
  explicit Rig(std::vector<SimDeviceFault> faults = {})
      : device(round_model(), clock, std::move(faults)),
        on_device(*device.allocate(kBytes)),
        on_host(*device.allocate_pinned(kBytes)) {}

  DeviceMark mark(DeviceStream stream) { return *device.mark(stream); }
  Status bring() { return device.copy(DeviceStream::kToDevice, on_device, on_host, kBytes); }
  Status compute(std::function<void()> effect = [] {}) {
    DeviceWork work;
    work.name = "kernel";
    work.bytes = kBytes;
    work.ranges = {{on_device, kBytes}};
    work.launch = [effect](gpu::StreamHandle) {
      effect();
      return gpu::CallStatus{};
    };
    return device.launch(std::move(work));
  }

  static constexpr uint64_t kBytes = 10'000;
  ManualClock clock;
  SimDevice device;
  std::byte* on_device;
  std::byte* on_host;
};

TEST(SimDevice, ACopyTakesItsTimeAndArrivesThen) {
  Rig rig;
  std::memset(rig.on_host, 7, Rig::kBytes);
  ASSERT_TRUE(rig.bring());
  const DeviceMark mark = rig.mark(DeviceStream::kToDevice);
  EXPECT_FALSE(*rig.device.reached(mark));
  EXPECT_NE(rig.on_device[0], std::byte{7});
  ASSERT_TRUE(rig.device.wait(mark, kSecondNs));
  EXPECT_EQ(rig.clock.now_ns(), 11'000);
  EXPECT_EQ(rig.on_device[Rig::kBytes - 1], std::byte{7});
}

// A kernel of no time behind a copy: both are over at the same moment, and the kernel sees its
// bytes.
TEST(SimDevice, WhatEndsAtTheSameTimeKeepsItsOrder) {
  ManualClock clock;
  SimDeviceModel model;
  model.launch_latency_ns = 0;
  SimDevice device(model, clock);
  std::byte* const on_device = *device.allocate(256);
  std::byte* const on_host = *device.allocate_pinned(256);
  on_host[0] = std::byte{7};
  ASSERT_TRUE(device.copy(DeviceStream::kToDevice, on_device, on_host, 256));
  ASSERT_TRUE(device.order(DeviceStream::kCompute, *device.mark(DeviceStream::kToDevice)));
  std::byte seen{0};
  DeviceWork work;
  work.name = "look";
  work.ranges = {{on_device, 256}};
  work.launch = [&](gpu::StreamHandle) {
    seen = on_device[0];
    return gpu::CallStatus{};
  };
  ASSERT_TRUE(device.launch(std::move(work)));
  ASSERT_TRUE(device.wait(*device.mark(DeviceStream::kCompute), kSecondNs));
  EXPECT_EQ(seen, std::byte{7});
}

TEST(SimDevice, PageableMemoryIsSlower) {
  Rig rig;
  std::vector<std::byte> pageable(Rig::kBytes);
  ASSERT_TRUE(
      rig.device.copy(DeviceStream::kToDevice, rig.on_device, pageable.data(), pageable.size()));
  ASSERT_TRUE(rig.device.wait(rig.mark(DeviceStream::kToDevice), kSecondNs));
  EXPECT_EQ(rig.clock.now_ns(), 41'000);
  ASSERT_TRUE(rig.device.pin(pageable));
  ASSERT_TRUE(
      rig.device.copy(DeviceStream::kToDevice, rig.on_device, pageable.data(), pageable.size()));
  ASSERT_TRUE(rig.device.wait(rig.mark(DeviceStream::kToDevice), kSecondNs));
  EXPECT_EQ(rig.clock.now_ns(), 52'000);
  rig.device.unpin(pageable.data());
}

TEST(SimDevice, StreamsRunBesideEachOtherUnlessOrdered) {
  Rig rig;
  std::byte* other = *rig.device.allocate(Rig::kBytes);
  ASSERT_TRUE(rig.device.copy(DeviceStream::kToDevice, other, rig.on_host, Rig::kBytes));
  const DeviceMark arrived = rig.mark(DeviceStream::kToDevice);
  ASSERT_TRUE(rig.compute());
  ASSERT_TRUE(rig.device.wait(rig.mark(DeviceStream::kCompute), kSecondNs));
  EXPECT_EQ(rig.clock.now_ns(), 2'000);  // not behind the copy
  ASSERT_TRUE(rig.device.order(DeviceStream::kCompute, arrived));
  ASSERT_TRUE(rig.compute());
  ASSERT_TRUE(rig.device.wait(rig.mark(DeviceStream::kCompute), kSecondNs));
  EXPECT_EQ(rig.clock.now_ns(), 13'000);
}

TEST(SimDevice, AKernelSeesWhatWasOrderedBeforeIt) {
  Rig rig;
  std::memset(rig.on_host, 5, Rig::kBytes);
  ASSERT_TRUE(rig.bring());
  ASSERT_TRUE(rig.device.order(DeviceStream::kCompute, rig.mark(DeviceStream::kToDevice)));
  std::byte seen{};
  ASSERT_TRUE(rig.compute([&] { seen = rig.on_device[0]; }));
  ASSERT_TRUE(rig.device.wait(rig.mark(DeviceStream::kCompute), kSecondNs));
  EXPECT_EQ(seen, std::byte{5});
}

TEST(SimDeviceDeathTest, RacesEndTheProgram) {
  Rig rig;
  ASSERT_TRUE(rig.bring());
  EXPECT_DEATH(static_cast<void>(rig.compute()), "a race between two streams");
  EXPECT_DEATH(rig.device.release(rig.on_device), "released memory that work still uses");
}

TEST(SimDevice, AWaitThatTakesTooLongSaysSo) {
  Rig rig({{SimDeviceFaultKind::kNeverReached, 2, 1}});
  ASSERT_TRUE(rig.device.wait(rig.mark(DeviceStream::kCompute), kSecondNs));
  const DeviceMark never = rig.mark(DeviceStream::kCompute);
  const Status status = rig.device.wait(never, 5'000'000);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kDeadline);
  EXPECT_EQ(rig.clock.now_ns(), 5'000'000);
  ASSERT_TRUE(rig.compute());  // behind it, so it never happens either
  EXPECT_FALSE(*rig.device.reached(rig.mark(DeviceStream::kCompute)));
}

TEST(SimDevice, MemoryIsBoundedAndARefusalHarmsNobody) {
  Rig rig({{SimDeviceFaultKind::kOutOfMemory, 3, 1}, {SimDeviceFaultKind::kPinRefused, 2, 1}});
  EXPECT_EQ(rig.device.allocate(2 << 20).error().code,
            ErrorCode::kOutOfMemory);                                         // more than it has
  EXPECT_EQ(rig.device.allocate(100).error().code, ErrorCode::kOutOfMemory);  // by plan
  EXPECT_EQ(rig.device.allocate_pinned(100).error().code, ErrorCode::kOutOfMemory);
  ASSERT_TRUE(rig.device.allocate(100));
  EXPECT_EQ(*rig.device.free_bytes(), (1u << 20) - Rig::kBytes - 100);
  ASSERT_TRUE(rig.bring());
  EXPECT_EQ(rig.device.counters().faults, 2u);
}

TEST(SimDevice, AFailedCopyOrKernelLosesTheDevice) {
  for (const auto kind : {SimDeviceFaultKind::kCopyError, SimDeviceFaultKind::kLaunchError}) {
    Rig rig({{kind, 2, 1}});
    for (int i = 0; i < 2; ++i) {  // the calls themselves go well: the errors come later
      ASSERT_TRUE(rig.bring());
      ASSERT_TRUE(rig.device.order(DeviceStream::kCompute, rig.mark(DeviceStream::kToDevice)));
      ASSERT_TRUE(rig.compute());
      ASSERT_TRUE(rig.device.order(DeviceStream::kToDevice, rig.mark(DeviceStream::kCompute)));
    }
    const Status status = rig.device.wait(rig.mark(DeviceStream::kCompute), kSecondNs);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kIo);
    EXPECT_THAT(status.error().message, HasSubstr("simulated fault"));
    EXPECT_FALSE(rig.bring());
    EXPECT_FALSE(rig.compute());
    EXPECT_FALSE(rig.device.allocate(100));
    EXPECT_FALSE(rig.device.mark(DeviceStream::kToHost));
    rig.device.release(rig.on_device);  // still possible
  }
}

TEST(SimDevice, OnTheMachinesClockItTakesRealTime) {
  const SteadyClock clock;
  SimDeviceModel model = round_model();
  model.copy_latency_ns = 2'000'000;
  SimDevice device(model, clock);
  std::byte* to = *device.allocate(100);
  std::byte* from = *device.allocate_pinned(100);
  std::memset(from, 3, 100);
  const int64_t began_ns = clock.now_ns();
  ASSERT_TRUE(device.copy(DeviceStream::kToDevice, to, from, 100));
  ASSERT_TRUE(device.wait(*device.mark(DeviceStream::kToDevice), kSecondNs));
  EXPECT_GE(clock.now_ns() - began_ns, 2'000'000);
  EXPECT_EQ(to[99], std::byte{3});
}

TEST(SimDevice, MarksOfLongAgoStayReached) {
  Rig rig;
  const DeviceMark first = rig.mark(DeviceStream::kCompute);
  for (int i = 0; i < 10'000; ++i) static_cast<void>(rig.mark(DeviceStream::kCompute));
  EXPECT_TRUE(*rig.device.reached(first));
  ASSERT_TRUE(rig.device.order(DeviceStream::kToDevice, first));
  EXPECT_TRUE(rig.device.wait(first, kSecondNs));
}

TEST(SimDevice, FaultsAsText) {
  const auto faults = parse_sim_device_faults("copy=3; mark=2x100;alloc=1");
  ASSERT_TRUE(faults);
  ASSERT_EQ(faults->size(), 3u);
  EXPECT_EQ((*faults)[0].kind, SimDeviceFaultKind::kCopyError);
  EXPECT_EQ((*faults)[0].nth, 3u);
  EXPECT_EQ((*faults)[0].times, 1u);
  EXPECT_EQ((*faults)[1].kind, SimDeviceFaultKind::kNeverReached);
  EXPECT_EQ((*faults)[1].times, 100u);
  EXPECT_EQ((*faults)[2].kind, SimDeviceFaultKind::kOutOfMemory);
  EXPECT_TRUE(parse_sim_device_faults("")->empty());
  for (const char* bad : {"copy", "copy=", "copy=0", "copy=x2", "copy=1x", "copi=1", "copy=1 ",
                          "copy=99999999999999999999"}) {
    const auto refused = parse_sim_device_faults(bad);
    ASSERT_FALSE(refused) << bad;
    EXPECT_THAT(refused.error().message, HasSubstr(bad));
  }
}

}  // namespace
}  // namespace offstage
