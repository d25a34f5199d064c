// Memory of the simulated device on its way back through two pieces.
#include "runtime/device_pieces.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "gpu/sim_device.h"

namespace offstage {
namespace {

constexpr uint64_t kPiece = DevicePieces::kPieceBytes;
constexpr int64_t kDeadlineNs = 1'000'000'000;

struct Rig {
  explicit Rig(uint64_t bytes, std::vector<SimDeviceFault> faults = {})
      : device(SimDeviceModel(), clock, std::move(faults)), pieces(device, kDeadlineNs) {
    memory = *device.allocate(bytes);
    pieces.set_memory(*device.allocate_pinned(DevicePieces::kPinnedBytes));
    Rng rng(7);
    for (uint64_t i = 0; i < bytes; ++i) {
      values.push_back(static_cast<std::byte>(rng.below(256)));
      memory[i] = values.back();  // a simulated card's memory is the host's
    }
    out.resize(bytes);
  }
  ManualClock clock;
  SimDevice device;
  DevicePieces pieces;
  std::byte* memory = nullptr;
  std::vector<std::byte> values, out;
};

TEST(DevicePiecesTest, EveryByteToItsPlace) {
  for (const uint64_t bytes : {uint64_t{4}, kPiece - 4, kPiece, kPiece + 4, 3 * kPiece + 8}) {
    Rig rig(bytes);
    // The end first, in parts of other sizes than the pieces, and nothing at all.
    const uint64_t cut = bytes / 3;
    ASSERT_TRUE(rig.pieces.bring(rig.memory + cut, rig.out.data() + cut, bytes - cut));
    ASSERT_TRUE(rig.pieces.bring(rig.memory, rig.out.data(), 0));
    ASSERT_TRUE(rig.pieces.bring(rig.memory, rig.out.data(), cut));
    ASSERT_TRUE(rig.pieces.finish());
    EXPECT_EQ(rig.out, rig.values) << bytes;
    ASSERT_TRUE(rig.pieces.finish());
  }
}

TEST(DevicePiecesTest, AFailureIsTheDevicesAndWhatWasThereStays) {
  for (const SimDeviceFaultKind kind :
       {SimDeviceFaultKind::kCopyError, SimDeviceFaultKind::kNeverReached}) {
    Rig rig(4 * kPiece, {{kind, 3, 1}});
    Status status = rig.pieces.bring(rig.memory, rig.out.data(), 4 * kPiece);
    if (status) status = rig.pieces.finish();
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code,
              kind == SimDeviceFaultKind::kCopyError ? ErrorCode::kIo : ErrorCode::kDeadline);
    for (uint64_t i = 2 * kPiece; i < 4 * kPiece; ++i) ASSERT_EQ(rig.out[i], std::byte{0});
  }
}

}  // namespace
}  // namespace offstage
