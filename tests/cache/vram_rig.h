// A VRAM tier of two layers of four experts on a small simulated card, whose clock is moved by
// hand.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/vram_tier.h"
#include "gpu/sim_device.h"

namespace offstage::testing::vram {

inline constexpr uint32_t kLayers = 2, kExperts = 4;
inline constexpr uint64_t kExpertBytes = 1024, kTableBytes = 256;
inline constexpr std::array<uint64_t, kExpertMatrices> kMatrixBytes = {512, 256, 256};
inline constexpr int64_t kCopyNs = 3 * 1'000 + 1'024;  // latency of each matrix, 1 byte a ns
inline constexpr int64_t kDeadlineNs = 5'000'000;

inline SimDeviceModel small_card() {
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
    VramParts parts = {device, clock, notices, write_entry};
    parts.keep = [this](LayerIndex, ExpertId expert) { return room_for(expert); };
    auto created = VramTier::create(std::move(parts), plan);
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
  // Where experts go that leave, if `room` was taken.
  std::optional<ExpertSpace> room_for(ExpertId expert) {
    left.push_back(expert.value);
    if (room == nullptr) return std::nullopt;
    return ExpertSpace{std::span(room, 512), std::span(room + 512, 256),
                       std::span(room + 768, 256)};
  }
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
  // It takes a long time, uses all that the table names, and finds those that the tier said.
  void launch_reader(std::vector<int>* seen) {
    DeviceWork work;
    work.name = "reader";
    work.bytes = 100'000;
    const auto* table = tier->table(LayerIndex(1));
    work.ranges = {{reinterpret_cast<const std::byte*>(table), kExperts * sizeof(*table)}};
    tier->add_memory_of(LayerIndex(1), work.ranges);
    std::vector<bool> named;
    for (uint32_t e = 0; e < kExperts; ++e)
      named.push_back(tier->is_in_table(LayerIndex(1), ExpertId(e)));
    work.launch = [table, seen, named, ranges = work.ranges](gpu::StreamHandle) {
      seen->clear();
      for (uint32_t e = 0; e < kExperts; ++e) {
        EXPECT_EQ(table[e] != nullptr, named[e]) << e;
        seen->push_back(table[e] == nullptr ? 0 : static_cast<int>(table[e][0]));
        if (table[e] == nullptr) continue;
        EXPECT_EQ(table[e][0], table[e][kExpertBytes - 1]);
        EXPECT_TRUE(std::any_of(ranges.begin(), ranges.end(), [&](const auto& range) {
          return range.data() <= table[e] && table[e] + kExpertBytes <= range.data() + range.size();
        }));
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
  std::byte *ram = nullptr, *room = nullptr;
  std::vector<uint32_t> left;  // who was asked for by room_for()
};

}  // namespace offstage::testing::vram
