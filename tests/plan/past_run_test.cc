// Forecasts of runs that have been. The world of these tests is a simulation too, so that what is
// measured is exactly known.
#include "plan/past_run.h"

#include <gtest/gtest.h>

#include "plan/cells.h"
#include "plan/needs.h"
#include "plan/token_simulation.h"
#include "tests/cache/synthetic_routes.h"
#include "tests/plan/machine.h"

namespace offstage {
namespace {

using testing::random_routes;
using testing::small_machine;

constexpr uint64_t kPace = 40'000'000;

class PastRunTest : public ::testing::Test {
 protected:
  PastRunTest() {
    auto file = ModelFile::open(OFFSTAGE_TEST_DATA "/models/micro-qwen3moe-q4_k_m.gguf");
    EXPECT_TRUE(file) << file.error().message;
    run_.file = std::move(*file);
    run_.options.context = 256;
    run_.options.process_bytes = 1 << 20;
    run_.options.chunk_rows = 8;
    run_.options.chunk_rows_max = 8;
    run_.threads = 2;
    run_.drive_names = {"sim0"};
    run_.drive_of_file = {0};
    const PlannedModel model = planned_file(run_.file);
    const auto floor = floor_ram_bytes(model, run_.options);
    EXPECT_TRUE(floor);
    const auto plan = plan_for(model, run_.options, *floor + model.experts_bytes() / 3);
    EXPECT_TRUE(plan);
    EXPECT_FALSE(plan->all_resident(model.layout));
    run_.plan = *plan;
    const RouteShape shape = route_shape_of(model.spec);
    const size_t places = size_t{shape.n_layers} * shape.n_experts;
    run_.usage = {shape.n_layers, shape.n_experts, 10, std::vector<float>(places, 1)};
    for (size_t i = 0; i < places; i += 3) run_.usage.calls[i] = 5;
    run_.routes = random_routes(shape, 100, 5);
  }

  // Runs it on a machine: a warm-up, a prompt of two chunks with 20 tokens, another in the middle
  // of a conversation.
  void measure(const HardwareProfile& machine) {
    Notices notices;
    ForecastOptions options;
    options.runtime = run_.options;
    options.drive = run_.drive;
    const PlannedModel model = planned_file(run_.file);
    const auto world =
        TokenSimulation::create({model, run_.plan, machine, options, notices, &run_.usage});
    ASSERT_TRUE(world) << world.error().message;
    TokenSimulation& simulation = **world;
    simulation.preload();
    uint64_t row = 0;
    for (const auto& [position, prompt, n, counts] :
         {std::tuple{0u, 1u, 10u, false}, {0u, 12u, 20u, true}, {40u, 3u, 10u, true}}) {
      PastGeneration& generation = run_.generations.emplace_back();
      generation.position = position;
      generation.prompt_tokens = prompt;
      generation.counts = counts;
      const Phase phase = prompt > 1 ? Phase::kPrefill : Phase::kDecode;
      for (uint32_t done = 0; done < prompt; done += 8) {
        const uint32_t rows = std::min(8u, prompt - done);
        simulation.run_rows(run_.routes, row, rows, position + done, phase);
        row += rows;
      }
      generation.prefill_ns = simulation.end_step().total_ns();
      for (uint32_t t = 0; t < n; ++t) {
        const TierCounters before = simulation.counters();
        const CauseTimes times = simulation.run_token(run_.routes, row++, position + prompt + t);
        const TierCounters& after = simulation.counters();
        generation.tokens.push_back({times.total_ns(), after.ram_hits - before.ram_hits,
                                     after.drive_reads - before.drive_reads});
      }
    }
  }

  Hindsight hindsight(const HardwareProfile& profile) {
    const auto found = look_back(
        run_, profile, [] { return true; }, notices_);
    EXPECT_TRUE(found) << (found ? "" : found.error().message);
    return found ? *found : Hindsight();
  }
  std::string said() const {
    std::string text;
    for (const Notice& notice : notices_.list()) text += notice.text + "\n";
    return text;
  }

  PastRun run_;
  Notices notices_;
};

TEST_F(PastRunTest, OfTheSameMachineThereIsNoError) {
  measure(small_machine());
  const Hindsight h = hindsight(small_machine());
  EXPECT_EQ(h.tokens, 30u);
  EXPECT_EQ(h.prompt_tokens, 15u);
  EXPECT_EQ(h.forecast.decode_tok_s, h.measured.decode_tok_s);
  EXPECT_EQ(h.forecast.prefill_tok_s, h.measured.prefill_tok_s);
  EXPECT_EQ(h.forecast.ram_hit_rate, h.measured.ram_hit_rate);
  EXPECT_EQ(h.forecast.p99_ns, h.measured.p99_ns);
  EXPECT_EQ(h.forecast.max_ns, h.measured.max_ns);
  EXPECT_GT(h.measured.ram_hit_rate, 0);
  EXPECT_LT(h.measured.ram_hit_rate, 1);
  EXPECT_NEAR(static_cast<double>(h.token.total_ns()) * h.forecast.decode_tok_s, 1e9, 1e6);
  EXPECT_EQ(said().find("drive"), std::string::npos) << said();
}

// Whoever believes in a faster machine than there is promises too much.
TEST_F(PastRunTest, AWrongProfileShows) {
  measure(small_machine());
  HardwareProfile fast = small_machine();
  fast.drives[0].bytes_per_s *= 2;
  fast.drives[0].latency_ns /= 4;
  for (KernelSpeed& kernel : fast.kernels) kernel.decode_bytes_per_s *= 2;
  const Hindsight h = hindsight(fast);
  EXPECT_GT(h.forecast.decode_tok_s, 1.2 * h.measured.decode_tok_s);
  EXPECT_EQ(h.forecast.ram_hit_rate, h.measured.ram_hit_rate);
}

TEST_F(PastRunTest, ItIsTheRunsOwnDriveAtItsPace) {
  run_.options.pace_bytes_per_s = kPace;
  measure(with_drives_paced(small_machine(), kPace));
  HardwareProfile two = with_drives_added(small_machine(), 1);
  two.drives[1].bytes_per_s = 1e6;  // not the run's
  const Hindsight h = hindsight(two);
  EXPECT_EQ(h.forecast.decode_tok_s, h.measured.decode_tok_s);
  run_.drive_names = {"nvme7n1"};
  EXPECT_EQ(hindsight(two).forecast.decode_tok_s, h.forecast.decode_tok_s);
  EXPECT_NE(said().find("no drive nvme7n1"), std::string::npos) << said();
}

TEST_F(PastRunTest, OtherThreadsAreAnotherSpeed) {
  measure(small_machine());
  const double tok_s = hindsight(small_machine()).forecast.decode_tok_s;
  run_.threads = 1;
  EXPECT_LT(hindsight(small_machine()).forecast.decode_tok_s, tok_s);
  EXPECT_NE(said().find("2 threads"), std::string::npos) << said();
}

// Only what both sides have is compared.
TEST_F(PastRunTest, EndsWithTheTimeOrTheLog) {
  measure(small_machine());
  int forwards = 0;
  const auto some = look_back(
      run_, small_machine(), [&] { return ++forwards <= 1 + 10 + 2 + 5; }, notices_);
  ASSERT_TRUE(some);
  EXPECT_EQ(some->tokens, 5u);
  EXPECT_EQ(some->prompt_tokens, 12u);
  EXPECT_EQ(some->forecast.decode_tok_s, some->measured.decode_tok_s);
  const auto none = look_back(
      run_, small_machine(), [] { return false; }, notices_);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kDeadline);
  run_.routes.tokens.resize(11 + 12 + 20);
  const Hindsight h = hindsight(small_machine());
  EXPECT_EQ(h.tokens, 20u);
  EXPECT_EQ(h.prompt_tokens, 12u);
}

}  // namespace
}  // namespace offstage
