// A RAM tier over a real file on disk: random bytes laid out like a model's experts, a real engine,
// the read scheduler, a hash index, and a way to run events that compares every byte handed out.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/ram_tier.h"
#include "io/fault.h"
#include "tests/io/temp_file.h"

namespace offstage::testing {

struct RigOptions {
  uint32_t n_layers = 3;
  uint32_t n_experts = 8;
  uint64_t offset = 4128;                                // of the first tensor: 32 into a sector
  uint64_t bytes[kExpertMatrices] = {5024, 5024, 9056};  // gate, up, down
  uint64_t odd_layers_down = 0;  // more bytes in odd layers: a second size class
  // Slots: `kept` of each layer and `staging` of each class.
  uint32_t kept = 2, staging = 3;
  uint32_t lent = 0;  // of the kept, to a prompt
  bool complete_index = true;
  const char* policy = "lru";
  const char* faults = "";
  int64_t deadline_ns = 10'000'000'000;
  uint32_t reads_max = 64;
  uint32_t depth = 16;
  IoEngineKind engine = IoEngineKind::kThreads;
  DirectIo direct = DirectIo::kAuto;
};

inline std::vector<ExpertLayerFacts> facts_of(const RigOptions& options) {
  std::vector<ExpertLayerFacts> layers(options.n_layers);
  const char* const names[] = {"gate", "up", "down"};
  uint64_t offset = options.offset;
  for (uint32_t l = 0; l < options.n_layers; ++l)
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const bool odd_down = l % 2 == 1 && m == 2;
      const uint64_t bytes = options.bytes[m] + (odd_down ? options.odd_layers_down : 0);
      layers[l][m] = {fmt::format("blk.{}.ffn_{}_exps.weight", l, names[m]),
                      l * kExpertMatrices + m, 0, offset, bytes};
      offset += bytes * options.n_experts;
    }
  return layers;
}

inline ExpertLayout layout_of(const RigOptions& options) {
  return ExpertLayout(facts_of(options), options.n_experts);
}

inline SlotPlan slots_of(const ExpertLayout& layout, const RigOptions& options) {
  SlotPlan plan;
  for (uint32_t c = 0; c < layout.n_classes(); ++c)
    plan.classes.push_back({layout.class_bytes(c),
                            options.staging + options.kept * layout.class_layers(c),
                            options.staging});
  plan.kept_per_layer.assign(options.n_layers, options.kept);
  plan.lent_per_layer.assign(options.n_layers, options.lent);
  return plan;
}

class TierRig {
 public:
  explicit TierRig(const RigOptions& options)
      : layout_(layout_of(options)),
        file_(TempFile::random(file_bytes(options), 7)),
        plan_(slots_of(layout_, options)),
        index_(HashIndex::in_memory(
            std::vector<uint32_t>(options.n_layers * kExpertMatrices, options.n_experts))),
        workers_(2, notices_),
        policy_(std::move(*make_policy(
            options.policy, {options.n_layers, options.n_experts, 2, plan_.kept_per_layer}))),
        timer_(clock_) {
    auto pool = SlotPool::create(plan_, notices_);
    CHECK(pool.has_value());
    pool_.emplace(std::move(*pool));
    IoEngineOptions io;
    io.paths = {file_.path()};
    io.kind = options.engine;
    io.direct = options.direct;
    io.depth = options.depth;
    io.buffers = {pool_->memory()};
    auto engine = open_io_engine(io, notices_);
    if (!engine) return;  // ok() says so
    auto faults = parse_fault_plan(options.faults);
    CHECK(faults.has_value());
    engine_ = std::move(*engine);
    if (!faults->rules.empty())
      engine_ = std::make_unique<FaultEngine>(std::move(engine_), std::move(*faults), clock_);
    ReadSchedulerOptions reads;
    reads.deadline_ns = options.deadline_ns;
    reads_.emplace(*engine_, std::vector{file_.path()}, clock_, reads, 2 * options.reads_max);
    if (options.complete_index) confirm_all();
    RamTierParts parts = {layout_,  plan_,  *pool_,   *reads_,        index_,           workers_,
                          *policy_, timer_, notices_, {file_.path()}, options.reads_max};
    parts.is_elsewhere = [this](LayerIndex layer, ExpertId expert) {
      return elsewhere.count({layer.value, expert.value}) != 0;
    };
    tier_.emplace(std::move(parts));
  }

  bool ok() const { return engine_ != nullptr; }
  RamTier& tier() { return *tier_; }
  const SlotPool& pool() const { return *pool_; }
  HashIndex& index() { return index_; }
  const ExpertLayout& layout() const { return layout_; }
  const IoEngine& engine() const { return *engine_; }
  const ReadScheduler& reads() const { return *reads_; }
  const Notices& notices() const { return notices_; }
  const std::string& path() const { return file_.path(); }
  const SlotPlan& plan() const { return plan_; }

  std::span<const std::byte> truth(LayerIndex layer, ExpertId expert, ExpertMatrix matrix) const {
    const Extent extent = layout_.extent(layer, expert, matrix);
    return file_.bytes().subspan(extent.offset, extent.bytes);
  }

  struct Event {
    Status status;
    std::vector<std::vector<uint32_t>> batches;  // experts as they were handed out
    size_t wrong_bytes = 0;                      // matrices unlike the file
    std::set<SlotIndex> slots;

    std::vector<uint32_t> experts() const {
      std::vector<uint32_t> all;
      for (const auto& batch : batches) all.insert(all.end(), batch.begin(), batch.end());
      return all;
    }
    std::vector<uint32_t> sorted() const {
      std::vector<uint32_t> all = experts();
      std::sort(all.begin(), all.end());
      return all;
    }
  };

  std::set<std::pair<uint32_t, uint32_t>> elsewhere;  // (layer, expert) that a faster tier has
  std::function<void()> on_begin;                     // called within the event

  // One event from begin() to end().
  Event visit(uint32_t layer, const std::vector<ExpertCall>& calls, Phase phase) {
    Event event;
    tier_->begin(LayerIndex(layer), calls, phase);
    if (on_begin) on_begin();
    while (true) {
      auto pinned = tier_->next();
      if (!pinned) {
        event.status = tl::unexpected(pinned.error());
        break;
      }
      if (pinned->experts().empty()) break;
      event.batches.emplace_back();
      for (const ReadyExpert& ready : pinned->experts()) {
        event.batches.back().push_back(ready.expert.value);
        event.slots.insert(ready.slot);
        event.wrong_bytes += wrong_matrices(LayerIndex(layer), ready);
        EXPECT_TRUE((*pool_)[ready.slot].state == SlotState::kInUse);
      }
    }
    tier_->end();
    return event;
  }
  Event decode(uint32_t layer, const std::vector<uint32_t>& experts) {
    std::vector<ExpertCall> calls;
    for (const uint32_t e : experts) calls.push_back({ExpertId(e), 1});
    return visit(layer, calls, Phase::kDecode);
  }
  // Every expert of the layer, called by as many rows as given (1 each beyond that).
  Event prefill(uint32_t layer, const std::vector<uint32_t>& uses = {}) {
    std::vector<ExpertCall> calls;
    for (uint32_t e = 0; e < layout_.n_experts(); ++e)
      calls.push_back({ExpertId(e), e < uses.size() ? uses[e] : 1});
    return visit(layer, calls, Phase::kPrefill);
  }

  // An event that must go well: every expert called once, with the file's bytes.
  void expect_decode(uint32_t layer, const std::vector<uint32_t>& experts) {
    const Event event = decode(layer, experts);
    ASSERT_TRUE(event.status) << event.status.error().message;
    std::vector<uint32_t> called = experts;
    std::sort(called.begin(), called.end());
    EXPECT_EQ(event.sorted(), called);
    EXPECT_EQ(event.wrong_bytes, 0u);
  }
  void expect_prefill(uint32_t layer) {
    const Event event = prefill(layer);
    ASSERT_TRUE(event.status) << event.status.error().message;
    std::vector<uint32_t> all(layout_.n_experts());
    for (uint32_t e = 0; e < all.size(); ++e) all[e] = e;
    EXPECT_EQ(event.sorted(), all);
    EXPECT_EQ(event.wrong_bytes, 0u);
  }

  // Lets reads that a failed event gave up come back. Events without calls collect them.
  void settle() {
    for (int attempt = 0; attempt < 1000 && is_reading(); ++attempt) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      EXPECT_TRUE(decode(0, {}).status);
    }
  }

  // Between events: no slot is pinned or being read, and those that aren't resident are empty.
  void expect_baseline() const {
    uint32_t empty = 0, resident = 0;
    for (uint32_t c = 0; c < layout_.n_classes(); ++c) empty += pool_->empty_count(c);
    for (uint32_t l = 0; l < layout_.n_layers(); ++l) {
      EXPECT_LE(tier_->resident_count(LayerIndex(l)), plan_.kept_per_layer[l]) << "layer " << l;
      resident += tier_->resident_count(LayerIndex(l));
    }
    EXPECT_EQ(empty + resident, pool_->size());
    for (uint32_t i = 0; i < pool_->size(); ++i) {
      EXPECT_EQ((*pool_)[SlotIndex(i)].pins, 0u);
      EXPECT_EQ((*pool_)[SlotIndex(i)].reads_outstanding, 0u);
    }
  }

  bool has_notice(const std::string& subject) const {
    const auto list = notices_.list();
    return std::any_of(list.begin(), list.end(),
                       [&](const Notice& notice) { return notice.subject == subject; });
  }

 private:
  static uint64_t file_bytes(const RigOptions& options) {
    const ExpertTensorFacts last = facts_of(options).back()[2];
    return last.offset + last.bytes_per_expert * options.n_experts;
  }
  bool is_reading() const {
    for (uint32_t i = 0; i < pool_->size(); ++i)
      if ((*pool_)[SlotIndex(i)].reads_outstanding != 0) return true;
    return false;
  }
  void confirm_all() {
    for (uint32_t l = 0; l < layout_.n_layers(); ++l)
      for (uint32_t e = 0; e < layout_.n_experts(); ++e)
        for (uint32_t m = 0; m < kExpertMatrices; ++m) {
          const auto matrix = static_cast<ExpertMatrix>(m);
          index_.confirm(layout_.piece(LayerIndex(l), ExpertId(e), matrix),
                         hash_piece(truth(LayerIndex(l), ExpertId(e), matrix)));
        }
    CHECK(index_.complete());
  }
  size_t wrong_matrices(LayerIndex layer, const ReadyExpert& ready) const {
    const std::byte* const found[] = {ready.gate, ready.up, ready.down};
    size_t wrong = 0;
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const auto expected = truth(layer, ready.expert, static_cast<ExpertMatrix>(m));
      wrong += std::memcmp(found[m], expected.data(), expected.size()) != 0 ? 1 : 0;
    }
    return wrong;
  }

  SteadyClock clock_;
  Notices notices_;
  ExpertLayout layout_;
  TempFile file_;
  SlotPlan plan_;
  HashIndex index_;
  ThreadPool workers_;
  std::unique_ptr<EvictionPolicy> policy_;
  CauseTimer timer_;
  std::optional<SlotPool> pool_;
  std::unique_ptr<IoEngine> engine_;
  std::optional<ReadScheduler> reads_;
  std::optional<RamTier> tier_;
};

}  // namespace offstage::testing
