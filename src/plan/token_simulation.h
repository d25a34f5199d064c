// One machine's forwards under the virtual clock: what Runtime and Forward are to a run.
//
// Put together like a run: plan, slots, index, policy, read scheduler, RAM tier, look-ahead, chunk
// forecast are the runtime's own objects, in the order in which Forward drives them. In place of
// what a forecast doesn't have: slots that share their memory, drives of a few numbers (io/sim.h),
// hashing and arithmetic that move the clock by what the profile says, and calls from a log. Time
// is split by the run's own causes. The same seed gives the same times.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cause_timer.h"
#include "base/clock.h"
#include "cache/ram_tier.h"
#include "cache/route_log.h"
#include "cache/usage.h"
#include "io/sim.h"
#include "plan/drawn_foresight.h"
#include "plan/forecast.h"
#include "plan/token_cost.h"
#include "runtime/chunk_forecast.h"
#include "runtime/lookahead.h"

namespace offstage {

class TokenSimulation {
 public:
  // Everything outlives it.
  struct Parts {
    const PlannedModel& model;
    const MemoryPlan& plan;
    const HardwareProfile& profile;
    const ForecastOptions& options;
    Notices& notices;
    const ExpertUsage* usage = nullptr;  // what earlier runs knew; none: a cold start
  };
  // Errors: the policy's name; no room for the addresses of one slot of each size.
  static Result<std::unique_ptr<TokenSimulation>> create(const Parts& parts);
  ~TokenSimulation();

  // What a run reads before its first token.
  void preload();
  // Rows [first, first + n_rows) of the log as a prompt, in the plan's chunks.
  CauseTimes run_prompt(const RouteLog& log, uint64_t first, uint32_t n_rows);
  // Token of the log, `position` others before it.
  CauseTimes run_token(const RouteLog& log, uint64_t token, uint32_t position);

  // The same step by step: a forward of rows [first, first + n) of the log, `position` tokens
  // before them; and the last one's logits, with which a prompt or a token ends. All since the last
  // end.
  void run_rows(const RouteLog& log, uint64_t first, uint32_t n, uint32_t position, Phase phase);
  CauseTimes end_step();

  const TierCounters& counters() const { return tier_->counters(); }
  uint64_t bytes_read() const { return reads_->counters().bytes_read; }

 private:
  struct Rows {
    const RouteLog& log;
    uint64_t first = 0;
    uint32_t n = 0, position = 0;  // of the last row
    Phase phase = Phase::kDecode;
  };
  explicit TokenSimulation(const Parts& parts);
  Status make_tier();
  void forward(const Rows& rows);
  void visit(LayerIndex layer, const Rows& rows);
  void gather_calls(LayerIndex layer, const Rows& rows);
  void look_ahead(uint32_t layer, const Rows& rows);
  void spend(double ns, Cause cause);
  void hash(std::span<const ReadDone> done, std::span<PieceHash> hashes);
  void advance(double ns);
  void pass(double ns);

  Parts parts_;
  const ModelSpec& spec_;
  TokenCost cost_;
  bool evicts_;  // not all experts can stay
  ManualClock clock_;
  int64_t worked_until_ns_ = 0;
  CauseTimer timer_;
  ThreadPool worker_;  // the caller: a forecast is one thread from start to end
  std::unique_ptr<Compute> compute_;
  std::optional<SlotPool> slots_;
  std::optional<HashIndex> index_;
  std::unique_ptr<IoEngine> engine_;
  std::unique_ptr<ReadScheduler> reads_;
  ExpertUsage usage_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::unique_ptr<RamTier> tier_;
  std::unique_ptr<Lookahead> lookahead_;
  std::optional<ChunkForecast> chunks_;
  DrawnForesight foresight_;
  std::vector<LayerWeights>
      no_weights_;  // by layer: the look-ahead asks for them and has an oracle

  // The event.
  std::vector<ExpertCall> calls_;
  std::vector<ExpertId> row_experts_;
  std::vector<uint32_t> uses_;        // by expert: rows that call it
  std::vector<uint32_t> batch_rows_;  // scratch of visit()
};

}  // namespace offstage
