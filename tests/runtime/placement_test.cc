// Who computes what VRAM hasn't got, by numbers, and on a modelled machine whose clock is moved by
// hand: where the CPU is slow experts are copied, where the bus is slow they aren't, and where
// neither is both work.
#include "runtime/placement.h"

#include "gpu/sim_device.h"
#include "runtime/device_experts.h"
#include "tests/cache/tier_rig.h"

namespace offstage {
namespace {

using testing::RigOptions;
using testing::TierRig;

constexpr uint32_t kUsed = 4, kHidden = 32;

TEST(PlacementTest, TheLayerIsDoneEarliest) {
  const PlacementCosts even = {10, 9, 1}, slow_cpu = {100, 9, 1}, slow_bus = {10, 900, 1};
  EXPECT_EQ(experts_to_copy(4, even, {}), 2u);
  EXPECT_EQ(experts_to_copy(4, slow_cpu, {}), 4u);
  EXPECT_EQ(experts_to_copy(4, slow_bus, {}), 0u);
  EXPECT_EQ(experts_to_copy(0, slow_cpu, {}), 0u);
  EXPECT_EQ(experts_to_copy(1, even, {}), 0u);       // 10 either way: the bus stays free
  EXPECT_EQ(experts_to_copy(4, {0, 9, 1}, {}), 0u);  // nothing is known of the CPU
}

TEST(PlacementTest, WhatStandsBeforeThemCounts) {
  const PlacementCosts even = {10, 9, 1};
  EXPECT_EQ(experts_to_copy(4, even, {.bus_ns = 12}), 1u);  // 22 beside 30 of the CPU
  EXPECT_EQ(experts_to_copy(4, even, {.bus_ns = 100}), 0u);
  EXPECT_EQ(experts_to_copy(4, even, {.device_ns = 25}), 2u);  // a device that works is no reason
  EXPECT_EQ(experts_to_copy(4, even, {.device_ns = 60}), 0u);  // not to, until it is the last
}

// Of a chunk's experts the most called ones go: 10 ns a row by the CPU, 50 an expert through VRAM.
TEST(PlacementTest, AChunksMostCalledGoThroughVram) {
  const std::vector<uint32_t> rows = {20, 8, 4, 2, 2};
  EXPECT_EQ(experts_to_stream(rows, {10, 50, 0}), 2u);  // 100 beside 80; three: 150 beside 40
  EXPECT_EQ(experts_to_stream(rows, {10, 50, 100}), 1u);
  EXPECT_EQ(experts_to_stream(rows, {10, 500, 0}), 0u);
  EXPECT_EQ(experts_to_stream(rows, {1000, 1, 0}), 5u);
  EXPECT_EQ(experts_to_stream({}, {10, 50, 0}), 0u);
  EXPECT_EQ(experts_to_stream(rows, {0, 50, 0}), 2u);  // nothing is known of the CPU
}

// Whoever waits for the drive anyway gains nothing by haste.
TEST(PlacementTest, NothingIsCopiedWhileTheDriveIsLast) {
  const PlacementCosts even = {10, 9, 1};
  EXPECT_EQ(experts_to_copy(4, even, {.drive_ns = 40}), 0u);
  EXPECT_EQ(experts_to_copy(4, even, {.drive_ns = 35}), 1u);
}

TEST(PlacementTest, ABoundLowersACostAndNeverRaisesIt) {
  RecentCost cost;
  cost.add(1'000, false);
  EXPECT_EQ(cost.ns(), 1'000);
  cost.add(5'000, false);
  EXPECT_EQ(cost.ns(), 1'000);
  cost.add(200, false);
  EXPECT_EQ(cost.ns(), 950);
  cost.add(2'550, true);
  EXPECT_EQ(cost.ns(), 1'050);
}

// The modelled machine: a CPU that takes so long for an expert, and a bus.
struct Machine {
  int64_t cpu_ns = 20'000;
  uint64_t bus_bytes_per_s = 1'000'000'000;  // an expert, 19,104 bytes: 19 µs
};

SimDeviceModel card_of(const Machine& machine) {
  SimDeviceModel card;
  card.memory_bytes = 1 << 28;
  card.pcie_bytes_per_s = machine.bus_bytes_per_s;
  card.copy_latency_ns = 100;
  card.launch_latency_ns = 50;
  return card;
}

DeviceKernels kernels_that_do_nothing() {
  DeviceKernels kernels;
  kernels.activation_row_bytes = [](TensorType, uint32_t) { return uint64_t{64}; };
  const auto nothing = [](gpu::StreamHandle, const auto&) { return gpu::CallStatus{}; };
  kernels.set_slot = nothing;
  kernels.move_words = nothing;
  kernels.quantise_activations = nothing;
  kernels.expert_gate_up = nothing;
  kernels.matvec = nothing;
  return kernels;
}

class Layers {
 public:
  Layers(const Machine& machine, Placement placement, uint32_t kept)
      : machine_(machine), device_(card_of(machine), clock_), rig_([&] {
          RigOptions options;
          options.kept = kept;
          options.staging = 2 * kUsed;
          return options;
        }()) {
    const RigOptions shape;
    spec_.n_layers = shape.n_layers;
    spec_.hidden = spec_.expert_ffn = kHidden;
    spec_.router.n_experts = shape.n_experts;
    spec_.router.n_used = kUsed;
    weights_.layers.resize(shape.n_layers);
    for (LayerWeights& layer : weights_.layers)
      layer.gate_type = layer.up_type = layer.down_type = TensorType::kQ8_0;
    DeviceExperts::Options options;
    options.vram_bytes = 1 << 20;
    options.promote = Promote::kOff;  // so that VRAM stays empty
    options.placement = placement;
    options.deadline_ns = 1'000'000'000;
    auto experts = DeviceExperts::create({device_,
                                          kernels_,
                                          spec_,
                                          weights_,
                                          rig_.layout(),
                                          rig_.tier(),
                                          rig_.pool().memory(),
                                          {},
                                          timer_,
                                          clock_,
                                          notices_},
                                         options);
    CHECK(experts.has_value());
    experts_ = std::move(*experts);
    for (uint32_t l = 0; l < shape.n_layers; ++l) rig_.expect_prefill(l);
  }

  // What so many tokens take, of drawn calls.
  int64_t run(uint32_t n_tokens) {
    const int64_t began_ns = clock_.now_ns();
    for (uint32_t t = 0; t < n_tokens; ++t) {
      experts_->begin_forward(Phase::kDecode);
      for (uint32_t l = 0; l < spec_.n_layers; ++l) visit(LayerIndex(l), drawn());
    }
    return clock_.now_ns() - began_ns;
  }
  const PlacementCounts& placed() const { return experts_->placements(); }
  uint64_t calls() const { return calls_; }

 private:
  Routing drawn() {
    std::vector<uint32_t> ids(spec_.router.n_experts);
    for (uint32_t e = 0; e < ids.size(); ++e) ids[e] = e;
    for (uint32_t i = 0; i < kUsed; ++i)
      std::swap(ids[i], ids[i + rng_.below(static_cast<uint32_t>(ids.size()) - i)]);
    Routing routing;
    routing.n_rows = 1;
    routing.n_used = kUsed;
    routing.weights.assign(kUsed, 0.25f);
    routing.call_rows.assign(kUsed, 0);
    routing.first.assign(ids.size() + 1, 0);
    for (uint32_t i = 0; i < kUsed; ++i) {
      routing.experts.push_back(ExpertId(ids[i]));
      routing.calls.push_back({ExpertId(ids[i]), 1});
      routing.first[ids[i] + 1] = 1;
    }
    for (size_t e = 0; e < ids.size(); ++e) routing.first[e + 1] += routing.first[e];
    for (const ExpertId expert : routing.experts)
      routing.place_of.push_back(routing.first[expert.value]);
    return routing;
  }

  // As MoeBlock does it; the CPU's arithmetic is the clock.
  void visit(LayerIndex layer, const Routing& routing) {
    calls_ += routing.calls.size();
    const auto here = experts_->take(layer, routing, normed_.data(), Phase::kDecode);
    rig_.tier().begin({layer, routing.calls, 1, routing.experts}, here, Phase::kDecode);
    EventCosts costs;
    while (true) {
      const auto pinned = rig_.tier().next();
      ASSERT_TRUE(pinned);
      if (pinned->experts().empty()) break;
      const auto of_cpu = experts_->place(routing, normed_.data(), pinned->experts());
      const int64_t cpu_ns = static_cast<int64_t>(of_cpu.size()) * machine_.cpu_ns;
      clock_.advance_ns(cpu_ns);
      costs.cpu_ns += cpu_ns;
      costs.calls += static_cast<uint32_t>(of_cpu.size());
    }
    EXPECT_TRUE(experts_->collect(routing, out_.data()).empty());
    rig_.tier().end();
    experts_->promote(layer, costs);
  }

  Machine machine_;
  ManualClock clock_;
  SimDevice device_;
  const DeviceKernels kernels_ = kernels_that_do_nothing();
  Notices notices_;
  CauseTimer timer_{clock_};
  TierRig rig_;
  ModelSpec spec_;
  DenseWeights weights_;
  std::unique_ptr<DeviceExperts> experts_;
  std::vector<float> normed_ = std::vector<float>(kHidden),
                     out_ = std::vector<float>(kUsed * kHidden);
  Rng rng_{3};
  uint64_t calls_ = 0;
};

constexpr uint32_t kLearning = 30, kTokens = 60, kAll = 8;

struct Times {
  double cpu = 0, copy = 0, automatic = 0;  // µs a layer
  double copied = 0;                        // of the calls, by kAuto
};

Times times_of(const Machine& machine) {
  Times times;
  for (const Placement placement : {Placement::kCpu, Placement::kCopy, Placement::kAuto}) {
    Layers layers(machine, placement, kAll);
    layers.run(kLearning);
    const PlacementCounts before = layers.placed();
    const uint64_t calls = layers.calls();
    const double us = static_cast<double>(layers.run(kTokens)) / (3 * kTokens) / 1e3;
    const double copied = static_cast<double>(layers.placed().copied() - before.copied()) /
                          static_cast<double>(layers.calls() - calls);
    (placement == Placement::kCpu    ? times.cpu
     : placement == Placement::kCopy ? times.copy
                                     : times.automatic) = us;
    if (placement != Placement::kAuto) {
      EXPECT_EQ(copied, placement == Placement::kCopy ? 1 : 0);
    }
    times.copied = copied;
  }
  fmt::print(
      "a layer of {} calls: CPU {:.1f} us, copies {:.1f} us, automatic {:.1f} us ({:.0f} % "
      "copied)\n",
      kUsed, times.cpu, times.copy, times.automatic, 100 * times.copied);
  return times;
}

TEST(PlacementRegimesTest, ASlowCpuHasItsExpertsCopied) {
  const Times times = times_of({.cpu_ns = 500'000});
  EXPECT_GT(times.copied, 0.95);
  EXPECT_LT(times.automatic, times.copy * 1.2);
  EXPECT_LT(times.automatic, times.cpu / 10);
}

TEST(PlacementRegimesTest, ASlowBusIsLeftAlone) {
  const Times times = times_of({.bus_bytes_per_s = 20'000'000});
  EXPECT_EQ(times.copied, 0);
  EXPECT_EQ(times.automatic, times.cpu);
  EXPECT_LT(times.automatic, times.copy / 10);
}

TEST(PlacementRegimesTest, WhereNeitherIsSlowBothWork) {
  const Times times = times_of({});
  EXPECT_NEAR(times.copied, 0.5, 0.1);
  EXPECT_LT(times.automatic, std::min(times.cpu, times.copy) / 1.5);
}

// What the drive brought first is counted apart, and may go either way.
TEST(PlacementRegimesTest, ExpertsFromTheDriveAreCopiedToo) {
  Layers layers({}, Placement::kCopy, 2);
  layers.run(10);
  const PlacementCounts& placed = layers.placed();
  EXPECT_GT(placed.ram_copied, 0u);
  EXPECT_GT(placed.drive_copied, 0u);
  EXPECT_EQ(placed.ram_cpu + placed.drive_cpu + placed.copied(), layers.calls());
}

}  // namespace
}  // namespace offstage
