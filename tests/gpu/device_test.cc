// True on every machine: with and without toolkit, driver and device. Where there is a device, its
// facts are checked; where not, that the reason says whose fault it is.
#include "gpu/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace offstage {
namespace {

using ::testing::AnyOf;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

void expect_sound(const DeviceFacts& device) {
  EXPECT_FALSE(device.name.empty());
  EXPECT_THAT(device.pci_id, MatchesRegex("[0-9A-Fa-f]+:[0-9A-Fa-f]+:[0-9A-Fa-f]+\\.[0-9]"));
  EXPECT_THAT(device.compute_major, Ge(1u));
  EXPECT_THAT(device.memory_bytes, Ge(uint64_t{1} << 28));
}

void expect_reason(const Error& error) {
  EXPECT_THAT(error.message, StartsWith("CUDA: "));
  EXPECT_THAT(error.code, AnyOf(ErrorCode::kUnsupported, ErrorCode::kNotFound, ErrorCode::kIo));
  if (device_backend() == "none") {
    EXPECT_EQ(error.code, ErrorCode::kUnsupported);
    EXPECT_THAT(error.message, HasSubstr("built without"));
  }
}

TEST(Device, BackendNamesTheToolkitOrNone) {
  EXPECT_THAT(device_backend(), MatchesRegex("none|CUDA [0-9]+\\.[0-9]+"));
}

TEST(Device, ListsSoundFactsOrOneReason) {
  const auto devices = list_devices(FreeMemory::kSkip);
  if (!devices) {
    expect_reason(devices.error());
    return;
  }
  ASSERT_FALSE(devices->empty());
  for (uint32_t index = 0; index < devices->size(); ++index) {
    const DeviceFacts& device = (*devices)[index];
    EXPECT_EQ(device.index, index);
    EXPECT_FALSE(device.memory_free_bytes.has_value());
    expect_sound(device);
  }
}

TEST(Device, FreeMemoryIsToldWhenAsked) {
  const auto devices = list_devices(FreeMemory::kAsk);
  if (!devices) {
    expect_reason(devices.error());
    return;
  }
  for (const DeviceFacts& device : *devices) {
    ASSERT_TRUE(device.memory_free_bytes.has_value());
    EXPECT_THAT(*device.memory_free_bytes, Le(device.memory_bytes));
  }
}

TEST(Device, TheSameAnswerTwice) {
  const auto first = list_devices(FreeMemory::kSkip);
  const auto second = list_devices(FreeMemory::kSkip);
  ASSERT_EQ(first.has_value(), second.has_value());
  if (!first) {
    EXPECT_EQ(first.error().message, second.error().message);
    return;
  }
  ASSERT_EQ(first->size(), second->size());
  for (size_t i = 0; i < first->size(); ++i) {
    EXPECT_EQ((*first)[i].pci_id, (*second)[i].pci_id);
  }
}

}  // namespace
}  // namespace offstage
