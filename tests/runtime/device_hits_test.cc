// Hits that the device begins with before the host knows what its router chose: the CPU's bits,
// whatever comes to VRAM or leaves it meanwhile, whatever fails, and never with weights that aren't
// the expert's.
#include "runtime/device_hits.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cctype>

#include "tests/cache/synthetic_routes.h"
#include "tests/io/temp_file.h"
#include "tests/runtime/dense_fixture.h"

namespace offstage {
namespace {

using ::testing::HasSubstr;

constexpr const char* kModels[] = {"micro-qwen3moe-q4_k_m.gguf", "micro-qwen2moe-mxfp4.gguf",
                                   "gpt-oss-s2-mxfp4.gguf", "micro-deepseek2-q4_k_m.gguf"};

// VRAM for the dense part, the logits, and all of the experts or a share, so that they come and go.
RuntimeOptions with_room_for(const std::string& name, uint32_t one_of) {
  RuntimeOptions options = options_of(name);
  if (one_of == 1) return options;
  const auto ample = open_with_device(options);
  if (ample == nullptr || ample->runtime->device_dense() == nullptr) return options;
  const DeviceDense& dense = *ample->runtime->device_dense();
  const DeviceExperts& experts = *ample->runtime->device_experts();
  const DeviceLogits* logits = ample->runtime->device_logits();
  options.vram_bytes = dense.memory_bytes() - dense.chunk_bytes() + experts.working_bytes() +
                       (logits == nullptr ? 0 : logits->memory_bytes()) +
                       experts.vram().memory_bytes() / one_of;
  return options;
}

// Tokens of one sequence, then of two side by side, so that experts have several rows.
std::vector<float> steps(Runtime& runtime) {
  std::vector<float> all = decode_logits(runtime, tokens_of(14));
  const std::vector<TokenId> tokens = tokens_of(12, 5);
  for (uint32_t i = 0; i < 6; ++i) {
    const Row rows[] = {{SequenceId(0), i, tokens[i], true},
                        {SequenceId(1), i, tokens[6 + i], true}};
    step(runtime, rows, all);
  }
  runtime.kv().release(SequenceId(0));
  runtime.kv().release(SequenceId(1));
  return all;
}

class HitsStarted : public ::testing::TestWithParam<const char*> {};

// What VRAM hasn't got by the CPU, or by copies; with room for all experts, and for some.
TEST_P(HitsStarted, GiveTheCpusBits) {
  const bool is_called_evenly = std::string(GetParam()).find("gpt-oss") == std::string::npos;
  for (const uint32_t one_of : {1u, is_called_evenly ? 3u : 6u}) {  // else nobody leaves
    RuntimeOptions options = with_room_for(GetParam(), one_of);
    const std::vector<float> expected = reference(options, steps);
    for (const Placement placement : {Placement::kCpu, Placement::kCopy}) {
      options.placement = placement;
      const auto model = open_with_device(options);
      ASSERT_NE(model, nullptr);
      EXPECT_TRUE(same_bits(steps(*model->runtime), expected));
      if (model->runtime->device_dense() == nullptr) GTEST_SKIP() << model->notice("vram_dense");
      ASSERT_NE(model->runtime->device_experts(), nullptr) << model->notice("vram");
      const DeviceExperts& experts = *model->runtime->device_experts();
      EXPECT_FALSE(experts.is_lost()) << model->notice("vram");
      EXPECT_GT(experts.hits(), 0u);
      EXPECT_EQ(experts.started(), experts.hits());
      EXPECT_EQ(experts.vram().counters().evictions > 0, one_of != 1)
          << experts.vram().slots_per_layer();
      EXPECT_EQ(experts.placements().copied() > 0, placement == Placement::kCopy);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, HitsStarted, ::testing::ValuesIn(kModels), model_test_name);

TEST(DeviceHitsTest, OnACardThatTakesItsTime) {
  RuntimeOptions options = with_room_for(kModels[0], 2);
  SimDeviceModel card;
  card.copy_latency_ns = 200'000;
  card.launch_latency_ns = 1'000;
  const auto model = open_with_device(options, {}, stand_in_kernels, card);
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(same_bits(steps(*model->runtime), reference(options, steps)));
  const DeviceExperts& experts = *model->runtime->device_experts();
  EXPECT_FALSE(experts.is_lost()) << model->notice("vram");
  // Who arrives in an empty layer after its start isn't started.
  EXPECT_GT(experts.started(), 0u);
  EXPECT_LE(experts.started(), experts.hits());
}

// Where a trace chooses, the device's router doesn't.
TEST(DeviceHitsTest, ATracesCallsAreLaunchedWhenTheyAreKnown) {
  RuntimeOptions options = options_of(kModels[0]);
  testing::TempFile file({});
  ASSERT_TRUE(write_route_log(file.path(), testing::random_routes({3, 8, 2, true, false}, 40, 5)));
  options.replay_routing = file.path();
  const auto model = open_with_device(options);
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(same_bits(steps(*model->runtime), reference(options, steps)));
  EXPECT_GT(model->runtime->device_experts()->hits(), 0u);
  EXPECT_EQ(model->runtime->device_experts()->started(), 0u);
}

// The simulated device, and somebody who acts whenever the host waits for a kernel.
class Interrupted final : public Device {
 public:
  Interrupted(const SimDeviceModel& card, const SteadyClock& clock) : device_(card, clock) {}
  std::function<void()> interrupt;
  uint64_t for_all = 0;  // such waits that weren't for what came before the hits alone

  const DeviceFacts& facts() const override { return device_.facts(); }
  Result<std::byte*> allocate(uint64_t bytes) override { return device_.allocate(bytes); }
  void release(std::byte* memory) override { device_.release(memory); }
  Result<uint64_t> free_bytes() override { return device_.free_bytes(); }
  Result<std::byte*> allocate_pinned(uint64_t bytes) override {
    return device_.allocate_pinned(bytes);
  }
  void release_pinned(std::byte* memory) override { device_.release_pinned(memory); }
  Status pin(std::span<std::byte> memory) override { return device_.pin(memory); }
  void unpin(std::byte* memory) override { device_.unpin(memory); }
  Status copy(DeviceStream stream, std::byte* to, const std::byte* from, uint64_t bytes) override {
    return device_.copy(stream, to, from, bytes);
  }
  Status launch(DeviceWork work) override {
    if (work.name == "find hits") {
      has_found_ = true;
      marks_behind_ = 0;
      choice_ = *device_.mark(DeviceStream::kCompute);
    }
    return device_.launch(std::move(work));
  }
  Result<DeviceMark> mark(DeviceStream stream) override {
    if (stream == DeviceStream::kCompute) ++marks_behind_;
    return device_.mark(stream);
  }
  Status order(DeviceStream stream, DeviceMark mark) override {
    return device_.order(stream, mark);
  }
  Result<bool> reached(DeviceMark mark) override { return device_.reached(mark); }
  Status wait(DeviceMark mark, int64_t timeout_ns) override {
    // The first after a layer's hits were launched: for its choice, which came before them.
    if (std::exchange(has_found_, false)) {
      EXPECT_EQ(mark.stream, DeviceStream::kCompute);
      EXPECT_GT(marks_behind_, 0u);
      if (mark.number >= choice_.number) ++for_all;
      if (interrupt) interrupt();
    }
    return device_.wait(mark, timeout_ns);
  }

 private:
  SimDevice device_;
  bool has_found_ = false;
  DeviceMark choice_;          // before the hits
  uint64_t marks_behind_ = 0;  // behind them
};

// Between the launch of a layer's hits and what the host learns of its choice, experts arrive, and
// others leave for them: in every layer one.
TEST(DeviceHitsTest, WhateverComesOrGoesBetweenLaunchAndChoice) {
  for (const int64_t copy_ns : {0, 30'000}) {
    const RuntimeOptions options = with_room_for(kModels[0], 2);
    SimDeviceModel card = instant_card();
    card.copy_latency_ns = copy_ns;
    Notices notices;
    Interrupted* device = nullptr;
    Runtime::Hooks hooks;
    hooks.choose_device = [&](const Kernels& of_cpu, const SteadyClock& clock) {
      auto made = std::make_unique<Interrupted>(card, clock);
      device = made.get();
      return ChosenDevice{std::move(made), stand_in_kernels(of_cpu)};
    };
    auto runtime = Runtime::open(options, notices, hooks);
    ASSERT_TRUE(runtime);
    auto& experts = const_cast<DeviceExperts&>(*(*runtime)->device_experts());
    uint32_t next = 0, interrupts = 0;
    device->interrupt = [&] {
      ++interrupts;
      for (uint32_t layer = 0; layer < (*runtime)->spec().n_moe_layers(); ++layer) {
        const ExpertId expert(next++ % (*runtime)->spec().router.n_experts);
        const Nominee wanted = {expert, 1000.0f};
        experts.nominate(LayerIndex(layer), std::span(&wanted, 1));
      }
    };
    EXPECT_TRUE(same_bits(steps(**runtime), reference(options, steps)));
    EXPECT_FALSE(experts.is_lost());
    EXPECT_GT(interrupts, 0u);
    EXPECT_EQ(device->for_all, 0u);
    EXPECT_GT(experts.nominated(), 20u);
    EXPECT_GT(experts.vram().counters().evictions, 20u);
    EXPECT_GT(experts.started(), 0u);
    EXPECT_LE(experts.started(), experts.hits());
  }
}

// An entry that isn't cleared when its expert leaves, or isn't set when one has arrived: the device
// computes other experts than lie there, says so, and nothing of it is taken.
TEST(DeviceHitsTest, ATableThatMissesAChangeLosesTheDeviceAndNoBit) {
  for (const bool clears : {true, false}) {
    RuntimeOptions options = with_room_for(kModels[0], 2);
    options.placement = Placement::kCpu;
    bool is_open = false;
    uint64_t left_out = 0;
    const auto model = open_with_device(options, {}, [&](const Kernels& of_cpu) {
      DeviceKernels table = stand_in_kernels(of_cpu);
      table.set_slot = [&, set = table.set_slot](gpu::StreamHandle stream,
                                                 const gpu::SetSlotArgs& args) {
        if (!is_open || (args.slot == nullptr) != clears) return set(stream, args);
        ++left_out;
        return gpu::CallStatus{};
      };
      return table;
    });
    ASSERT_NE(model, nullptr);
    is_open = true;
    EXPECT_TRUE(same_bits(steps(*model->runtime), reference(options, steps)));
    EXPECT_GT(left_out, 0u);
    EXPECT_EQ(model->runtime->vram_state(), VramState::kLost);
    EXPECT_EQ(times_said(*model, "the CPU computes all"), 1u);
    EXPECT_THAT(model->notice("vram"), HasSubstr("the device computed expert"));
  }
}

// A launch, a copy or an event, wherever it fails in a few tokens: said once, the same bits.
TEST(DeviceHitsTest, WhateverTheDeviceDoes) {
  RuntimeOptions options = with_room_for(kModels[1], 2);
  options.placement = Placement::kCpu;
  options.device_deadline_ns = 100'000;  // the instant device's events come at once or never
  const auto talk = [](Runtime& runtime) { return decode_logits(runtime, tokens_of(6)); };
  const std::vector<float> expected = reference(options, talk);
  const auto healthy = open_with_device(options);
  ASSERT_NE(healthy, nullptr);
  const SimDeviceCounters at_open = healthy->device->counters();
  EXPECT_TRUE(same_bits(talk(*healthy->runtime), expected));
  const SimDeviceCounters after = healthy->device->counters();
  EXPECT_GT(healthy->runtime->device_experts()->started(), 0u);
  std::vector<SimDeviceFault> faults;
  const auto spread = [&](SimDeviceFaultKind kind, uint64_t before, uint64_t n) {
    for (uint64_t part = 0; part < 24; ++part)
      faults.push_back({kind, before + 1 + (n - 1) * part / 24, 1});
  };
  spread(SimDeviceFaultKind::kLaunchError, at_open.launches, after.launches - at_open.launches);
  spread(SimDeviceFaultKind::kNeverReached, at_open.marks, after.marks - at_open.marks);
  for (const SimDeviceFault& fault : faults) {
    const auto model = open_with_device(options, {fault});
    ASSERT_NE(model, nullptr);
    const std::string what = fmt::format("fault {} at {}", static_cast<int>(fault.kind), fault.nth);
    EXPECT_TRUE(same_bits(talk(*model->runtime), expected)) << what;
    EXPECT_TRUE(same_bits(talk(*model->runtime), expected)) << what;
    EXPECT_EQ(model->device->counters().faults, 1u) << what;
    EXPECT_EQ(model->runtime->vram_state(), VramState::kLost) << what;
    EXPECT_EQ(times_said(*model, "the CPU computes all"), 1u) << what;
  }
}

}  // namespace
}  // namespace offstage
