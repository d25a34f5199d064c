#include "tests/sim/simulation.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "tests/sim/simulation_state.h"
#include "tests/sim/stand_in.h"
#include "tests/sim/verdict.h"

namespace offstage::sim {
namespace {

constexpr int64_t kMicrosecond = 1'000;
constexpr int64_t kMillisecond = 1'000'000;
constexpr int kPoison = 0xDD;

// One worker, the caller: a seed is one thread from start to end.
ThreadPool& workers() {
  static Notices notices;
  static ThreadPool pool(1, notices);
  return pool;
}

}  // namespace

Simulation::Simulation(const SimCase& c, bool log)
    : c_(c),
      log_(log),
      rng_(mix(c.seed, 1)),
      layout_(c.layers, c.n_experts),
      index_(HashIndex::in_memory(
          std::vector<uint32_t>(size_t{c.n_layers()} * kExpertMatrices, c.n_experts))),
      timer_(clock_),
      outputs_(c.n_experts),
      used_(c.n_experts),
      requests_(c.n_requests) {
  auto plan = plan_slots(layout_, c.n_used, c.budget_bytes);
  CHECK(plan.has_value());
  plan_ = std::move(*plan);
  if (plan_.bytes() > c.budget_bytes) accuse("I10: the plan is larger than its budget");
  policy_ = std::move(
      *make_policy(c.policy, {c.n_layers(), c.n_experts, c.n_used, plan_.kept_per_layer}));
  auto pool = SlotPool::create(plan_, notices_);
  CHECK(pool.has_value());
  pool_.emplace(std::move(*pool));
  poisoned_.assign(pool_->size(), 0);
  last_use_.resize(pool_->size());

  auto sim = std::make_unique<SimEngine>(SimOptions{c.files, c.drives, c.depth, c.seed}, clock_);
  sim_ = sim.get();
  auto faults = std::make_unique<FaultEngine>(std::move(sim), c.faults, clock_);
  faults_ = faults.get();
  std::vector<std::span<const std::byte>> contents;
  for (size_t f = 0; f < c.files.size(); ++f) {
    contents.push_back(c.files[f].contents);
    paths_.push_back(fmt::format("/sim/model-{}.gguf", f));
  }
  witness_ = std::make_unique<Witness>(std::move(faults), std::move(contents), clock_, c.poison);
  witness_->watch(*pool_, layout_);
  ReadSchedulerOptions options;
  options.block_bytes = c.block_bytes;
  options.deadline_ns = c.deadline_ns;
  options.prefetch_depth = c.prefetch_depth;
  if (c.knows_drives)
    for (const SimFile& file : c.files) options.drive_of_file.push_back(file.drive);
  reads_.emplace(*witness_, paths_, clock_, options, 2 * c.reads_max);
  tier_.emplace(RamTierParts{layout_, plan_, *pool_, *reads_, index_, workers(), *policy_, timer_,
                             notices_, paths_, c.reads_max});
  know_truth();
  for (Request& request : requests_) renew(request);
}

// What every expert gives by the files' bytes, and what the index knows of it at the start.
void Simulation::know_truth() {
  for (uint32_t l = 0; l < c_.n_layers(); ++l) {
    for (uint32_t e = 0; e < c_.n_experts; ++e) {
      const LayerIndex layer(l);
      const ExpertId expert(e);
      std::span<const std::byte> bytes[kExpertMatrices];
      for (uint32_t m = 0; m < kExpertMatrices; ++m) {
        const auto matrix = static_cast<ExpertMatrix>(m);
        const Extent extent = layout_.extent(layer, expert, matrix);
        bytes[m] = c_.files[extent.file].contents.subspan(extent.offset, extent.bytes);
        const PieceId piece = layout_.piece(layer, expert, matrix);
        if (c_.index == IndexKnows::kAll) index_.confirm(piece, hash_piece(bytes[m]));
        if (c_.index == IndexKnows::kOneRead) index_.judge(piece, hash_piece(bytes[m]));
      }
      truth_.push_back(output_of(bytes[0], bytes[1], bytes[2]));
    }
  }
}

void Simulation::accuse(std::string what) {
  if (!is_over()) outcome_.violation = std::move(what);
}

void Simulation::renew(Request& request) {
  request = {};
  request.row = request.oracle = rng_.next_u64();
}

// ---- the load ----

void Simulation::step() {
  const auto waiting = std::find_if(requests_.begin(), requests_.end(),
                                    [](const Request& request) { return !request.prefilled; });
  if (waiting != requests_.end() && rng_.below(4) != 0) {
    const auto who = static_cast<size_t>(waiting - requests_.begin());
    const auto n_rows = static_cast<uint32_t>(1 + rng_.below(c_.rows_max));
    if (serve({&who, 1}, Phase::kPrefill, n_rows)) requests_[who].prefilled = true;
    return;
  }
  std::vector<size_t> who;
  for (size_t i = 0; i < requests_.size(); ++i)
    if (requests_[i].prefilled && rng_.below(3) != 0) who.push_back(i);
  if (!who.empty()) serve(who, Phase::kDecode, static_cast<uint32_t>(who.size()));
}

// One forward for these requests: they all get their tokens, the right ones, or all of them fail.
bool Simulation::serve(std::span<const size_t> who, Phase phase, uint32_t n_rows) {
  std::vector<uint64_t> rows(n_rows), oracle(n_rows);
  for (uint32_t r = 0; r < n_rows; ++r) {
    const Request& request = requests_[who[phase == Phase::kPrefill ? 0 : r]];
    rows[r] = mix(request.row, r);
    oracle[r] = mix(request.oracle, r);
  }
  ++outcome_.forwards;
  note("{} of {} rows", phase == Phase::kPrefill ? "prefill" : "decode", n_rows);
  const Status status = forward(rows, phase);
  if (is_over()) return false;
  if (!status) {
    ++outcome_.failed_forwards;
    note("failed: {}: {}", error_code_name(status.error().code), status.error().message);
    for (const size_t i : who) renew(requests_[i]);
    // The next request comes at once, while late reads still hold slots, or when they are back.
    const bool at_once = rng_.below(2) == 0;
    const int64_t pause_ns = static_cast<int64_t>(rng_.below(at_once ? 5 : 5'000)) * kMillisecond;
    clock_.advance_ns(pause_ns);
    // What was given up grows old meanwhile, and may be past its deadline soon after.
    if (reads_->unfinished() != 0) witness_->excuse(pause_ns);
    return false;
  }
  for (uint32_t l = 0; l < c_.n_layers(); ++l) {
    const std::span<const uint64_t> of_layer(&truth_[place(LayerIndex(l), ExpertId(0))],
                                             c_.n_experts);
    oracle = after_layer(LayerIndex(l), oracle, of_layer);
  }
  if (rows != oracle) accuse("I6: tokens differ from the run without faults");
  for (uint32_t r = 0; r < n_rows; ++r) {
    Request& request = requests_[who[phase == Phase::kPrefill ? 0 : r]];
    request.row = rows[r];
    request.oracle = oracle[r];
    outcome_.tokens_hash = mix(outcome_.tokens_hash, rows[r]);
  }
  return true;
}

Status Simulation::forward(std::vector<uint64_t>& rows, Phase phase) {
  const uint32_t n_layers = c_.n_layers();
  for (uint32_t l = 0; l < n_layers; ++l) {
    const LayerIndex layer(l), coming((l + 1) % n_layers);
    const std::span<const uint64_t> of_layer(&truth_[place(layer, ExpertId(0))], c_.n_experts);
    call(layer, rows);
    const std::vector<uint64_t> foreseen = after_layer(layer, rows, of_layer);
    tier_->begin({layer, event_.calls, static_cast<uint32_t>(rows.size()), event_.row_experts, {}},
                 phase);
    const bool early = coming != layer && rng_.below(2) == 0;
    if (early) guess(coming, foreseen);
    const Status status = take_experts();
    tier_->end();
    poison_empty_slots();
    if (!witness_->violation().empty()) accuse(witness_->violation());
    if (tier_->resident_count(layer) > plan_.kept_per_layer[l])
      accuse(fmt::format("I10: layer {} keeps more than its share", l));
    if (is_over() || !status) return status;
    check_completeness();
    rows = after_layer(layer, rows, outputs_);
    if (!early) guess(coming, foreseen);
  }
  return {};
}

void Simulation::call(LayerIndex layer, std::span<const uint64_t> rows) {
  event_.layer = layer;
  event_.calls.clear();
  event_.row_experts.resize(rows.size() * c_.n_used);
  for (size_t r = 0; r < rows.size(); ++r) {
    const auto called = std::span(event_.row_experts).subspan(r * c_.n_used, c_.n_used);
    route(rows[r], layer.value, c_.n_experts, called);
    for (const ExpertId expert : called) {
      const auto known = std::find_if(event_.calls.begin(), event_.calls.end(),
                                      [&](const ExpertCall& x) { return x.expert == expert; });
      if (known == event_.calls.end())
        event_.calls.push_back({expert, 1, 0.5f});
      else
        ++known->uses;
    }
  }
}

// From begin() to the last batch: every expert is used while it is pinned.
Status Simulation::take_experts() {
  std::fill(used_.begin(), used_.end(), 0);
  while (true) {
    const int64_t asked_ns = clock_.now_ns();
    if (rng_.below(40) == 0) witness_->interrupt();
    Result<PinnedExperts> pinned = tier_->next();
    if (clock_.now_ns() - asked_ns > 6 * c_.deadline_ns + 2'000 * kMillisecond)
      accuse(fmt::format("I3: next() took {} ms", (clock_.now_ns() - asked_ns) / kMillisecond));
    if (!pinned) {
      const std::string doubt = doubt_about(pinned.error(), {layout_, *witness_, paths_},
                                            event_.layer, event_.calls, c_.deadline_ns);
      if (!doubt.empty()) accuse(doubt);
      return tl::unexpected(pinned.error());
    }
    if (pinned->experts().empty() || is_over()) return {};
    compute_for_a_while();
    for (const ReadyExpert& ready : pinned->experts()) use(ready);
  }
}

// Time in which the drives go on writing, whoever looks.
void Simulation::compute_for_a_while() {
  const bool long_while = rng_.below(32) == 0;
  clock_.advance_ns(static_cast<int64_t>(rng_.below(200)) *
                    (long_while ? kMillisecond : kMicrosecond));
  sim_->land();
}

std::vector<uint64_t> Simulation::after_layer(LayerIndex layer, std::span<const uint64_t> rows,
                                              std::span<const uint64_t> outputs) const {
  std::vector<uint64_t> after(rows.begin(), rows.end());
  ExpertId called[8];
  for (uint64_t& row : after) {
    route(row, layer.value, c_.n_experts, {called, c_.n_used});
    for (uint32_t j = 0; j < c_.n_used; ++j) row = mix(row, outputs[called[j].value]);
  }
  return after;
}

void Simulation::guess(LayerIndex layer, std::span<const uint64_t> rows) {
  if (c_.guesses == 0 || rows.size() > 4) return;
  std::vector<ExpertId> guesses;
  std::vector<ExpertId> called(c_.n_used);
  for (const uint64_t row : rows) {
    route(row, layer.value, c_.n_experts, called);
    const auto n = std::max<size_t>(1, static_cast<size_t>(c_.guesses * c_.n_used));
    for (size_t j = 0; j < n; ++j) {
      const bool right = j < called.size() && rng_.uniform() < c_.guess_recall;
      guesses.push_back(right ? called[j]
                              : ExpertId(static_cast<uint32_t>(rng_.below(c_.n_experts))));
    }
  }
  tier_->prefetch(layer, guesses);
}

// What an emptied slot held must never be of use to anybody.
void Simulation::poison_empty_slots() {
  if (!c_.poison) return;
  for (uint32_t i = 0; i < pool_->size(); ++i) {
    const Slot& slot = (*pool_)[SlotIndex(i)];
    if (slot.state != SlotState::kEmpty || poisoned_[i] == slot.generation + 1) continue;
    std::memset(slot.memory, kPoison, layout_.class_bytes(slot.slot_class));
    poisoned_[i] = slot.generation + 1;
  }
}

SimOutcome Simulation::run() {
  try {
    for (uint32_t i = 0; i < c_.n_steps && !is_over(); ++i) step();
    if (!is_over()) settle();
    if (!is_over()) check_baseline();
    // Whatever happened: the next request is served, or refused for a reason.
    if (!is_over()) serve({{size_t{0}}}, Phase::kDecode, 1);
    if (!is_over()) check_visibility();
  } catch (const Hang& hang) {
    accuse(hang.what());
  }
  for (const Notice& notice : notices_.list()) note("notice {}: {}", notice.subject, notice.text);
  const FaultCounters& faults = faults_->fault_counters();
  outcome_.reads = faults.requests;
  for (size_t kind = 1; kind < kFaultKinds; ++kind) outcome_.faults += faults.injected[kind];
  outcome_.faults += faults.injected[static_cast<size_t>(FaultKind::kNone)];
  outcome_.hits = tier_->counters().ram_hits;
  outcome_.rereads = tier_->counters().rereads;
  outcome_.prefetches_useful = tier_->counters().prefetches_useful;
  outcome_.deadline_misses = reads_->counters().deadline_misses;
  return std::move(outcome_);
}

SimOutcome simulate(const SimCase& c, bool log) { return Simulation(c, log).run(); }

}  // namespace offstage::sim
