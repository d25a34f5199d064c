// Visitors in VRAM: seen by the kernels of one event, gone after it, and timed on their way.
#include "tests/cache/vram_rig.h"

namespace offstage {
namespace {

using namespace testing::vram;

// Two slots of residents that are called more, two of visitors: each visitor is seen by its own
// reader alone, which the copy of the next but one waits for, and the simulated device ends the
// program for a race.
TEST(VramTier, VisitorsAreSeenByWhatIsLaunchedAfterThem) {
  Rig rig({}, 1, 2);
  rig.bring(0);
  std::vector<int> seen[3];
  for (uint32_t e = 1; e < 4; ++e) {
    ASSERT_EQ(rig.visit(e), Visit::kLeaves);
    rig.launch_reader(&seen[e - 1]);
  }
  EXPECT_EQ(rig.visit(0), Visit::kRefused);
  EXPECT_EQ(rig.visit(3), Visit::kRefused);
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(3)));
  EXPECT_TRUE(rig.tier->await_burst(kDeadlineNs));
  rig.settle();
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_TRUE(rig.device.mark(DeviceStream::kCompute));  // what is over has happened
  EXPECT_EQ(seen[0], (std::vector<int>{1, 2, 0, 0}));
  EXPECT_EQ(seen[1], (std::vector<int>{1, 0, 3, 0}));
  EXPECT_EQ(seen[2], (std::vector<int>{1, 0, 0, 4}));
  rig.tier->end_visits();
  rig.settle();
  EXPECT_EQ(rig.read(), (std::vector<int>{1, 0, 0, 0}));
  EXPECT_EQ(rig.tier->counters().visits, 3u);
  EXPECT_EQ(rig.tier->counters().promotions, 1u);
  EXPECT_EQ(rig.visit(2), Visit::kLeaves);
}

TEST(VramTier, AVisitorThatIsCalledMoreThanWhoLeavesStays) {
  Rig rig({}, 1, 1);
  EXPECT_EQ(rig.visit(3, {}), Visit::kLeaves);  // nobody says that any should stay
  rig.settle();
  rig.tier->end_visits();
  ASSERT_EQ(rig.visit(3), Visit::kStays);  // the slot is empty
  std::vector<int> seen;
  rig.launch_reader(&seen);
  rig.settle();
  ASSERT_EQ(rig.tier->poll().size(), 1u);
  EXPECT_EQ(seen, (std::vector<int>{0, 0, 0, 4}));
  EXPECT_EQ(rig.visit(2, {4, 3, 1, 1}), Visit::kLeaves);
  rig.settle();
  rig.tier->end_visits();
  EXPECT_EQ(rig.visit(2), Visit::kStays);
  rig.settle();
  ASSERT_EQ(rig.tier->poll().size(), 1u);
  rig.tier->end_visits();
  rig.settle();
  EXPECT_EQ(rig.read(), (std::vector<int>{0, 0, 3, 0}));
  EXPECT_EQ(rig.tier->counters().evictions, 1u);
}

TEST(VramTier, WhoSleepsForAVisitorKnowsWhatACopyTakes) {
  Rig rig({}, 1, 2);
  rig.bring(0);
  const int64_t believed_ns = rig.tier->copy_ns(LayerIndex(1));
  const int64_t free_ns = rig.clock.now_ns();
  ASSERT_EQ(rig.visit(1), Visit::kLeaves);
  ASSERT_EQ(rig.visit(2), Visit::kLeaves);
  EXPECT_EQ(rig.tier->bus_free_ns(), free_ns + 2 * believed_ns);
  rig.tier->end_burst();
  rig.clock.advance_ns(100);
  ASSERT_EQ(rig.visit(3), Visit::kLeaves);
  ASSERT_TRUE(rig.tier->await_burst(kDeadlineNs));
  EXPECT_EQ(rig.clock.now_ns(), free_ns + 2 * kCopyNs);
  EXPECT_EQ(rig.tier->copy_ns(LayerIndex(1)), believed_ns + (kCopyNs - believed_ns) / 4);
  ASSERT_TRUE(rig.tier->await_burst(kDeadlineNs));  // once an event
  EXPECT_EQ(rig.clock.now_ns(), free_ns + 2 * kCopyNs);
  rig.settle();
  rig.tier->end_visits();
  EXPECT_LE(rig.tier->bus_free_ns(), rig.clock.now_ns());
}

// Copies of 4 us and kernels of 100 us: but for the first, every copy is beside a kernel.
TEST(VramTier, WhileAVisitorIsComputedTheNextIsCopied) {
  Rig rig({}, 1, 2);
  const int64_t begun_ns = rig.clock.now_ns();
  std::vector<int> seen[4];
  for (uint32_t e = 0; e < 4; ++e) {
    ASSERT_EQ(rig.visit(e, {}), Visit::kLeaves);
    rig.launch_reader(&seen[e]);
  }
  const Result<DeviceMark> done = rig.device.mark(DeviceStream::kCompute);
  ASSERT_TRUE(done);
  ASSERT_TRUE(rig.device.wait(*done, kDeadlineNs));
  constexpr int64_t kKernelNs = 100'000 + 10, kEntriesNs = 7 * 10;
  EXPECT_LE(rig.clock.now_ns() - begun_ns, kCopyNs + 4 * kKernelNs + kEntriesNs);
  for (uint32_t e = 0; e < 4; ++e) EXPECT_EQ(seen[e][e], static_cast<int>(e + 1));
  rig.tier->end_visits();
}

TEST(VramTier, AVisitorWhoseCopyFailsEndsTheTier) {
  Rig rig({{SimDeviceFaultKind::kCopyError, 2, 1}}, 1, 1);
  ASSERT_EQ(rig.visit(3, {}), Visit::kLeaves);
  const Status status = rig.tier->await_burst(kDeadlineNs);
  ASSERT_FALSE(status);
  rig.tier->lose(status.error());
  rig.tier->end_visits();
  EXPECT_EQ(rig.visit(2), Visit::kLost);
}

}  // namespace
}  // namespace offstage
