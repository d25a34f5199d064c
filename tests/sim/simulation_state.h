// The inside of one seed's run: the load (simulation.cc) and the checkers (simulation_checks.cc).
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "cache/ram_tier.h"
#include "tests/sim/simulation.h"
#include "tests/sim/witness.h"

namespace offstage::sim {

struct Request {
  uint64_t row = 0;     // of its last token
  uint64_t oracle = 0;  // the same where nothing ever fails
  bool prefilled = false;
};

class Simulation {
 public:
  Simulation(const SimCase& c, bool log);
  SimOutcome run();

 private:
  struct SlotUse {
    uint32_t generation = 0;
    LayerIndex layer;
    ExpertId expert;
  };
  struct Event {
    LayerIndex layer;
    std::vector<ExpertId> row_experts;
    std::vector<ExpertCall> calls;
  };

  void know_truth();
  void step();
  bool serve(std::span<const size_t> who, Phase phase, uint32_t n_rows);
  Status forward(std::vector<uint64_t>& rows, Phase phase);
  void call(LayerIndex layer, std::span<const uint64_t> rows);
  Status take_experts();
  void use(const ReadyExpert& ready);
  void check_completeness();
  void guess(LayerIndex layer, std::span<const uint64_t> rows);
  std::vector<uint64_t> after_layer(LayerIndex layer, std::span<const uint64_t> rows,
                                    std::span<const uint64_t> outputs) const;
  void compute_for_a_while();
  void poison_empty_slots();
  void settle();
  void check_baseline();
  void check_visibility();
  void renew(Request& request);

  void accuse(std::string what);
  bool is_over() const { return !outcome_.violation.empty(); }
  template <typename... Args>
  void note(fmt::format_string<Args...> format, Args&&... args) {
    if (log_)
      outcome_.log.push_back(fmt::format("{:>12.3f} ms  {}",
                                         static_cast<double>(clock_.now_ns()) / 1e6,
                                         fmt::format(format, std::forward<Args>(args)...)));
  }
  size_t place(LayerIndex layer, ExpertId expert) const {
    return size_t{layer.value} * c_.n_experts + expert.value;
  }

  const SimCase& c_;
  const bool log_;
  SimOutcome outcome_;
  Rng rng_;
  ManualClock clock_;
  Notices notices_;
  ExpertLayout layout_;
  SlotPlan plan_;
  HashIndex index_;
  CauseTimer timer_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::optional<SlotPool> pool_;
  SimEngine* sim_ = nullptr;       // in faults_
  FaultEngine* faults_ = nullptr;  // in witness_
  std::unique_ptr<Witness> witness_;
  std::optional<ReadScheduler> reads_;
  std::optional<RamTier> tier_;

  std::vector<std::string> paths_;
  std::vector<uint64_t> truth_;     // by place: the expert's output by the files' own bytes
  std::vector<uint64_t> outputs_;   // by expert: this event's, from the slots
  std::vector<uint8_t> used_;       // by expert: handed out in this event
  std::vector<uint32_t> poisoned_;  // by slot: generation whose remains were overwritten, + 1
  std::vector<SlotUse> last_use_;   // by slot
  Event event_;
  std::vector<Request> requests_;
};

}  // namespace offstage::sim
