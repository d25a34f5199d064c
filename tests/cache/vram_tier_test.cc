// Experts in VRAM on the simulated device: whole or not at all, only where it pays, and nothing
// that a device does ends more than the tier.
#include "cache/vram_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "gpu/sim_device.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kLayers = 2, kExperts = 4;
constexpr uint64_t kExpertBytes = 1024, kTableBytes = 256;
constexpr std::array<uint64_t, kExpertMatrices> kMatrixBytes = {512, 256, 256};
constexpr int64_t kCopyNs = 3 * 1'000 + 1'024;  // latency of each matrix, 1 byte a ns
constexpr int64_t kDeadlineNs = 5'000'000;

SimDeviceModel small_card() {
  SimDeviceModel model;
  model.memory_bytes = 1 << 20;
  model.memory_bytes_per_s = 1'000'000'000;
  model.pcie_bytes_per_s = 1'000'000'000;
  model.copy_latency_ns = 1'000;
  model.launch_latency_ns = 10;
  return model;
}

struct Rig {
  explicit Rig(std::vector<SimDeviceFault> faults = {}, uint64_t slots = 2, uint32_t visitors = 0)
      : device(small_card(), clock, std::move(faults)) {
    VramPlan plan;
    plan.budget_bytes = kTableBytes + (kLayers * slots + visitors) * kExpertBytes;
    plan.visitors = visitors;
    plan.n_experts = kExperts;
    plan.matrix_bytes.assign(kLayers, kMatrixBytes);
    plan.copy_deadline_ns = kDeadlineNs;
    plan.copy_bytes_per_s = 1'000'000'000;
    auto created = VramTier::create({device, clock, notices, write_entry}, plan);
    if (!created) {
      refusal = created.error();
      return;
    }
    tier = std::move(*created);
    settle();
    tier->token_done(1'000'000'000);  // credit enough
    ram = *device.allocate_pinned(kExperts * kExpertBytes);
    for (uint32_t e = 0; e < kExperts; ++e)
      std::memset(ram + e * kExpertBytes, static_cast<int>(e + 1), kExpertBytes);
  }

  static gpu::CallStatus write_entry(gpu::StreamHandle, const gpu::SetSlotArgs& args) {
    *args.entry = args.slot;
    return {};
  }
  void settle() { clock.advance_ns(1'000'000); }
  Promotion promote(uint32_t expert, std::vector<double> calls = {4, 3, 2, 1},
                    int64_t saved_ns = 10'000) {
    return tier->promote(LayerIndex(1), ExpertId(expert), matrices_of(expert), calls, saved_ns);
  }
  Visit visit(uint32_t expert, std::vector<double> calls = {4, 3, 2, 1}) {
    return tier->visit(LayerIndex(1), ExpertId(expert), matrices_of(expert), calls);
  }
  ExpertBytes matrices_of(uint32_t expert) const {
    ExpertBytes matrices;
    const std::byte* next = ram + expert * kExpertBytes;
    for (size_t m = 0; m < kExpertMatrices; next += kMatrixBytes[m++])
      matrices[m] = {next, kMatrixBytes[m]};
    return matrices;
  }
  // Promoted, and there.
  void bring(uint32_t expert) {
    ASSERT_EQ(promote(expert), Promotion::kStarted);
    settle();
    ASSERT_EQ(tier->poll().size(), 1u);
    ASSERT_TRUE(tier->is_resident(LayerIndex(1), ExpertId(expert)));
    settle();
  }
  // What a kernel that runs over the layer's table sees: per expert its first byte, 0 where null.
  // It takes a long time, and uses all slots.
  void launch_reader(std::vector<int>* seen, std::optional<uint32_t> visitor = {}) {
    DeviceWork work;
    work.name = "reader";
    work.bytes = 100'000;
    const auto* table = tier->table(LayerIndex(1));
    work.ranges = {{reinterpret_cast<const std::byte*>(table), kExperts * sizeof(*table)}};
    for (uint32_t e = 0; e < kExperts; ++e)
      if (table[e] != nullptr) work.ranges.push_back({table[e], kExpertBytes});
    if (visitor) work.ranges.push_back(tier->slot_memory(LayerIndex(1), ExpertId(*visitor)));
    work.launch = [table, seen](gpu::StreamHandle) {
      seen->clear();
      for (uint32_t e = 0; e < kExperts; ++e) {
        seen->push_back(table[e] == nullptr ? 0 : static_cast<int>(table[e][0]));
        EXPECT_TRUE(table[e] == nullptr || table[e][0] == table[e][kExpertBytes - 1]);
      }
      return gpu::CallStatus{};
    };
    ASSERT_TRUE(device.launch(std::move(work)));
  }
  std::vector<int> read() {
    std::vector<int> seen;
    launch_reader(&seen);
    settle();
    EXPECT_TRUE(device.mark(DeviceStream::kCompute));  // what is over has happened
    return seen;
  }

  ManualClock clock;
  Notices notices;
  SimDevice device;
  std::unique_ptr<VramTier> tier;
  std::optional<Error> refusal;
  std::byte* ram = nullptr;
};

TEST(VramTier, AnExpertIsThereOnceItsCopyHasArrived) {
  Rig rig;
  EXPECT_EQ(rig.tier->slots_per_layer(), 2u);
  EXPECT_EQ(rig.read(), (std::vector<int>{0, 0, 0, 0}));
  ASSERT_EQ(rig.promote(2), Promotion::kStarted);
  EXPECT_EQ(rig.promote(2), Promotion::kThere);
  rig.clock.advance_ns(kCopyNs - 1);
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(2)));
  rig.clock.advance_ns(1);
  const auto arrived = rig.tier->poll();
  ASSERT_EQ(arrived.size(), 1u);
  EXPECT_EQ(arrived[0].layer, LayerIndex(1));
  EXPECT_EQ(arrived[0].expert, ExpertId(2));
  EXPECT_TRUE(rig.tier->is_resident(LayerIndex(1), ExpertId(2)));
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(0), ExpertId(2)));
  EXPECT_EQ(rig.read(), (std::vector<int>{0, 0, 3, 0}));
}

TEST(VramTier, TheLeastExpectedLeavesAndKernelsUnderWayKeepIt) {
  Rig rig;
  rig.bring(3);
  rig.bring(2);
  std::vector<int> seen;
  rig.launch_reader(&seen);  // 100 µs with both; the simulated device ends the program for a race
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(3)));
  EXPECT_TRUE(rig.tier->is_resident(LayerIndex(1), ExpertId(2)));
  rig.clock.advance_ns(kCopyNs + 1'000);
  EXPECT_TRUE(rig.tier->poll().empty());  // behind the kernel
  rig.settle();
  EXPECT_EQ(rig.tier->poll().size(), 1u);
  EXPECT_EQ(seen, (std::vector<int>{0, 0, 3, 4}));
  EXPECT_EQ(rig.read(), (std::vector<int>{1, 0, 3, 0}));
  EXPECT_EQ(rig.tier->counters().evictions, 1u);
}

TEST(VramTier, APromotionMustPay) {
  Rig rig;
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 1}, 1'000), Promotion::kUnpaid);
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 2}, 1'000), Promotion::kStarted);
  EXPECT_EQ(rig.promote(2, {0, 0, 2, 2}, 1'000), Promotion::kStarted);
  EXPECT_EQ(rig.promote(1, {0, 9, 2, 2}, 1'000), Promotion::kBusy);
  rig.settle();
  EXPECT_EQ(rig.tier->poll().size(), 2u);
  rig.settle();
  // What the one that leaves saves is lost.
  EXPECT_EQ(rig.promote(1, {0, 3, 2, 2}, 1'000), Promotion::kUnpaid);
  EXPECT_EQ(rig.tier->counters().unpaid, 2u);
  EXPECT_EQ(rig.tier->counters().busy, 1u);
}

TEST(VramTier, CopiesTakeAShareOfTheTokensTime) {
  Rig rig;
  rig.tier->token_done(4);  // one token's share is all that is saved up: 1 ns
  EXPECT_EQ(rig.promote(0), Promotion::kStarted);
  EXPECT_EQ(rig.promote(1), Promotion::kNoTime);
  rig.tier->token_done(2'000);  // a debt of 1,023 ns isn't paid by 500
  EXPECT_EQ(rig.promote(1), Promotion::kNoTime);
  rig.tier->token_done(4'000);
  EXPECT_EQ(rig.promote(1), Promotion::kStarted);
}

TEST(VramTier, MemoryRefusedAtStartMeansFewerSlots) {
  Rig fewer({{SimDeviceFaultKind::kOutOfMemory, 1, 2}}, 4);
  ASSERT_TRUE(fewer.tier);
  EXPECT_EQ(fewer.tier->slots_per_layer(), 2u);
  ASSERT_EQ(fewer.notices.list().size(), 1u);
  EXPECT_THAT(fewer.notices.list()[0].text, HasSubstr("2 experts per layer instead of 4"));
  fewer.bring(1);
  Rig none({{SimDeviceFaultKind::kOutOfMemory, 1, 100}}, 4);
  ASSERT_TRUE(none.refusal);
  EXPECT_EQ(none.refusal->code, ErrorCode::kOutOfMemory);
  Rig floor({}, 0);
  ASSERT_TRUE(floor.refusal);
  EXPECT_EQ(floor.refusal->code, ErrorCode::kBudget);
  EXPECT_THAT(floor.refusal->message, HasSubstr("2304"));
}

TEST(VramTier, AFailedCopyEmptiesItForGoodAndSaysSoOnce) {
  Rig rig({{SimDeviceFaultKind::kCopyError, 4, 1}});  // the second expert's first matrix
  rig.bring(1);
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  rig.settle();
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(1)));
  EXPECT_EQ(rig.promote(2), Promotion::kLost);
  EXPECT_TRUE(rig.tier->poll().empty());
  ASSERT_EQ(rig.notices.list().size(), 1u);
  EXPECT_THAT(rig.notices.list()[0].text, HasSubstr("simulated fault"));
}

// Marks: the first is of the copy itself.
TEST(VramTier, ACopyThatNeverEndsIsGivenUpAtItsDeadline) {
  Rig rig({{SimDeviceFaultKind::kNeverReached, 1, 1}});
  ASSERT_EQ(rig.promote(0), Promotion::kStarted);
  for (int i = 0; i < 3; ++i) {
    rig.settle();
    EXPECT_TRUE(rig.tier->poll().empty());
  }
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(0)));
  EXPECT_FALSE(rig.tier->is_lost());
  EXPECT_EQ(rig.read(), (std::vector<int>{0, 0, 0, 0}));
  rig.clock.advance_ns(kDeadlineNs);
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_TRUE(rig.tier->is_lost());
  ASSERT_EQ(rig.notices.list().size(), 1u);
  EXPECT_THAT(rig.notices.list()[0].text, HasSubstr("isn't done after 5 ms"));
}

// Copies of 1,024 bytes take 4 µs, latencies and all, and 1 byte a ns was believed.
TEST(VramTier, WhatCopiesCostIsLearnedFromThem) {
  Rig rig({}, 3);
  rig.promote(0);
  rig.clock.advance_ns(kCopyNs - 1);
  EXPECT_TRUE(rig.tier->poll().empty());  // so it takes longer than that
  rig.clock.advance_ns(1);
  EXPECT_EQ(rig.tier->poll().size(), 1u);
  rig.settle();
  // A quarter of the way from 1 ns a byte to 4: what saves 1,700 ns doesn't pay any more.
  EXPECT_EQ(rig.tier->copy_ns(LayerIndex(1)), 1'773);
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 1}, 1'700), Promotion::kUnpaid);
  EXPECT_EQ(rig.promote(3, {0, 0, 0, 1}, 1'800), Promotion::kStarted);
}

// Two slots of residents that are called more, two of visitors: each visitor is seen by its own
// reader, which the third's copy waits for, and the simulated device ends the program for a race.
TEST(VramTier, VisitorsAreSeenByWhatIsLaunchedAfterThem) {
  Rig rig({}, 1, 2);
  rig.bring(0);
  std::vector<int> seen[3];
  for (uint32_t e = 1; e < 4; ++e) {
    ASSERT_EQ(rig.visit(e), Visit::kLeaves);
    rig.launch_reader(&seen[e - 1], e);
  }
  EXPECT_EQ(rig.visit(0), Visit::kRefused);
  EXPECT_EQ(rig.visit(3), Visit::kRefused);
  EXPECT_FALSE(rig.tier->is_resident(LayerIndex(1), ExpertId(3)));
  EXPECT_TRUE(rig.tier->await_burst(kDeadlineNs));
  rig.settle();
  EXPECT_TRUE(rig.tier->poll().empty());
  EXPECT_TRUE(rig.device.mark(DeviceStream::kCompute));  // what is over has happened
  EXPECT_EQ(seen[0], (std::vector<int>{1, 2, 0, 0}));
  EXPECT_EQ(seen[1], (std::vector<int>{1, 2, 3, 0}));
  EXPECT_EQ(seen[2], (std::vector<int>{1, 0, 3, 4}));
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
  rig.launch_reader(&seen, 3);
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

TEST(VramTier, AVisitorWhoseCopyFailsEndsTheTier) {
  Rig rig({{SimDeviceFaultKind::kCopyError, 2, 1}}, 1, 1);
  ASSERT_EQ(rig.visit(3, {}), Visit::kLeaves);
  const Status status = rig.tier->await_burst(kDeadlineNs);
  ASSERT_FALSE(status);
  rig.tier->lose(status.error());
  rig.tier->end_visits();
  EXPECT_EQ(rig.visit(2), Visit::kLost);
}

TEST(VramTier, LayersWithoutKernelsGetNoSlots) {
  ManualClock clock;
  Notices notices;
  SimDevice device(small_card(), clock);
  VramPlan plan;
  plan.n_experts = kExperts;
  plan.matrix_bytes = {kMatrixBytes, {}, kMatrixBytes};
  plan.budget_bytes = kTableBytes + 2 * 3 * kExpertBytes;
  auto tier = VramTier::create({device, clock, notices, Rig::write_entry}, plan);
  ASSERT_TRUE(tier);
  EXPECT_EQ((*tier)->slots_per_layer(), 3u);
  EXPECT_TRUE((*tier)->has_slots(LayerIndex(2)));
  EXPECT_FALSE((*tier)->has_slots(LayerIndex(1)));
  EXPECT_EQ((*tier)->offset(LayerIndex(2), ExpertMatrix::kDown), 768u);
  const std::vector<double> calls(kExperts, 100);
  EXPECT_EQ((*tier)->promote(LayerIndex(1), ExpertId(0), {}, calls, 1'000), Promotion::kNoSlot);
}

}  // namespace
}  // namespace offstage
