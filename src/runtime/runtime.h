// Everything a model needs to run, put together and owned: one per process.
//
// Order of life: header → spec → plan (refused here if the budget is below the floor) → arenas →
// io engine with those arenas registered → dense weights read and verified → tier, KV, forward.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cause_timer.h"
#include "base/clock.h"
#include "base/notices.h"
#include "base/process_load.h"
#include "base/result.h"
#include "base/trace.h"
#include "cache/ram_tier.h"
#include "cache/usage.h"
#include "io/drive_temperature.h"
#include "io/drives.h"
#include "io/engine.h"
#include "io/gguf.h"
#include "io/hash_index.h"
#include "io/read_scheduler.h"
#include "io/store.h"
#include "model/spec.h"
#include "model/tensors.h"
#include "model/tokenizer.h"
#include "runtime/device_choice.h"
#include "runtime/device_dense.h"
#include "runtime/device_experts.h"
#include "runtime/device_logits.h"
#include "runtime/forward.h"
#include "runtime/kv_cache.h"
#include "runtime/memory_plan.h"
#include "runtime/moe_block.h"
#include "runtime/options.h"
#include "runtime/read_ahead.h"
#include "runtime/routing_watchers.h"
#include "runtime/token_record.h"
#include "runtime/weights.h"

namespace offstage {

// A model's header and what it means; no weights. Enough for inspect and tokenize.
struct ModelFile {
  GgufModel gguf;
  ModelSpec spec;
  ModelTensors tensors;
  std::optional<Store> store;  // where the experts are read from, if not from the file itself
  // `drives`: the folders of a store that `offstage pack` made; none: the file in place.
  static Result<std::unique_ptr<ModelFile>> open(const std::string& path,
                                                 const std::vector<std::string>& drives = {});

  ExpertLayout expert_layout() const;
  // Of a store over so many drives. Errors: the header can't be read any more.
  Result<StoreLayout> store_layout(uint32_t n_drives) const;
  std::vector<uint32_t> pieces_per_tensor() const;  // for HashIndex
  // The index, with the store's hashes. kHashMismatch if they contradict each other.
  Result<HashIndex> open_index(Notices& notices) const;
  std::vector<std::string> paths() const;    // by shard, then the store's by drive
  std::vector<uint64_t> file_bytes() const;  // by shard
  uint64_t total_params() const;
  uint64_t active_params() const;  // per token (model/tensors.h)
};

class Runtime {
 public:
  // `on_plan` sees the plan before anything is allocated; `on_load` the dense weights' progress.
  // `longest_prompt` says before the plan how many tokens no prompt will exceed (0: not known):
  // chunks needn't be wider, and their scratch is slots.
  struct Hooks {
    std::function<uint32_t(const Tokenizer&)> longest_prompt;
    std::function<void(const MemoryPlan&, const ModelFile&)> on_plan;
    std::function<void(uint64_t done, uint64_t total)> on_load;
    std::function<void(uint64_t done, uint64_t total)> on_preload;  // the experts', in bytes
    // In the place of choose_device(), for tests.
    std::function<ChosenDevice(const Kernels&, const SteadyClock&)> choose_device;
  };
  // What was read before anybody called it, and how long that took.
  struct Preloaded {
    uint64_t experts = 0, bytes = 0;
    int64_t ns = 0;
  };
  static Result<std::unique_ptr<Runtime>> open(const RuntimeOptions& options, Notices& notices,
                                               const Hooks& hooks);
  ~Runtime();

  const ModelSpec& spec() const { return file_->spec; }
  const ModelFile& file() const { return *file_; }
  std::shared_ptr<const ModelFile> shared_file() const { return file_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const MemoryPlan& plan() const { return plan_; }
  const RuntimeOptions& options() const { return options_; }
  const Kernels& kernels() const { return *kernels_; }
  const DenseWeights& weights() const { return dense_->weights(); }
  Forward& forward() { return *forward_; }
  KvCache& kv() { return *kv_; }
  RamTier& tier() { return *tier_; }
  const Lookahead& lookahead() const { return *lookahead_; }
  IoEngine& io() { return *engine_; }
  const ReadScheduler& reads() const { return *reads_; }
  const DriveMap& drives() const { return drives_; }
  CauseTimer& timer() { return timer_; }
  Trace& trace() { return *trace_; }
  const std::vector<std::string>& drive_names() const { return drive_names_; }
  const std::string& drive_name(uint32_t drive) const { return drive_names_[drive]; }
  uint32_t drive_count() const;  // that records tell apart
  // By drive; read from the drives every few seconds. Decode thread.
  std::span<const int16_t> drive_celsius() { return thermometers_->read(clock_.now_ns()); }
  ProcessLoad load() const { return load_->read(); }
  double stolen_share() const { return load_->stolen_share(); }  // of CPU time, since the start
  const Clock& clock() const { return clock_; }
  uint32_t threads() const { return workers_->size(); }
  ThreadPool& workers() { return *workers_; }
  // Dense weights and verified slots, between forwards: what was read and stays.
  std::vector<std::span<const std::byte>> resident_memory() const;
  HashIndex::Counts hash_counts() const { return index_->counts(); }

  // Writes what this run learned (hashes, use of the experts) beside the model.
  Status save_index(Notices& notices);
  // From now on every forward's routing goes into a trace at `path`, which is there after the
  // second call. Errors: the path's, kInvalidArgument for a model without experts.
  Status record_routes(const std::string& path);
  Status close_route_record();
  const RouteReplay* route_replay() const { return replay_ ? &*replay_ : nullptr; }
  const RouteRecorder* route_recorder() const { return recorder_.get(); }
  // The last tokens' routing, from RecordLevel::kLayer on; nullptr otherwise, or without experts.
  const RouteMemory* route_memory() const { return routes_ ? &*routes_ : nullptr; }
  // With RuntimeOptions::keep_first_routes, else nullptr: what all rows called since the start, or
  // its restart().
  FirstRoutes* first_routes() { return first_routes_ ? &*first_routes_ : nullptr; }
  const ExpertUsage& usage() const { return usage_; }  // of the experts, earlier runs' included
  // From now on the next-layer gate is held against every layer's calls.
  const GateAccuracy& measure_gate();
  // Tokens of earlier runs whose use of the experts this one began with; 0: a cold start.
  uint64_t warm_start_tokens() const { return warm_start_tokens_; }
  const DriveChoice& drive() const { return drive_; }
  const Preloaded& preloaded() const { return preloaded_; }
  // What --vram is for; nullptr: no device is in use, or was until it failed.
  const Device* device() const { return device_.device.get(); }
  // nullptr: no device computes experts, the dense part, or logits of decoded tokens.
  const DeviceExperts* device_experts() const { return device_experts_.get(); }
  const DeviceDense* device_dense() const { return device_dense_.get(); }
  const DeviceLogits* device_logits() const { return device_logits_.get(); }
  VramState vram_state() const;

 private:
  explicit Runtime(RuntimeOptions options)
      : options_(std::move(options)), timer_(clock_, &run_delay_) {}
  Status take_replay(Notices& notices);
  Status check_kv_types(Notices& notices) const;
  Status start_trace(Notices& notices);
  void limit_chunks(uint32_t longest_prompt);
  uint64_t process_bytes() const;
  Status plan(Notices& notices, const Hooks& hooks);
  Status open_drive(HostArena& dense_arena, Notices& notices);
  Status add_faults_and_pace(Notices& notices);
  Status make_cache_policy(Notices& notices);
  Status load(HostArena dense_arena, Notices& notices, const Hooks& hooks);
  Status lock(std::string_view purpose, std::span<std::byte> memory) const;
  void preload(const Hooks& hooks);
  Status choose_device(const Hooks& hooks, Notices& notices);
  void open_vram(Notices& notices);
  Status open_on_device(Notices& notices);
  std::span<std::byte> scratch_memory() const { return {scratch_->data(), scratch_->size_bytes()}; }
  Status open_device_dense(uint64_t vram_bytes, Notices& notices);
  Result<uint64_t> room_for_logits(uint64_t vram_bytes) const;
  uint32_t logit_rows() const;
  Status open_device_logits(const Result<uint64_t>& room, Notices& notices);
  Status open_device_experts(uint64_t vram_bytes, Notices& notices);
  void make_forward(const Scratch& scratch);

  RuntimeOptions options_;
  SteadyClock clock_;
  KernelRunDelay run_delay_;
  CauseTimer timer_;
  std::vector<std::string> drive_names_;  // as the trace counts them
  std::optional<Trace> trace_;
  std::optional<RouteMemory> routes_;
  std::optional<FirstRoutes> first_routes_;
  std::optional<LoadProbe> load_;
  std::optional<DriveThermometers> thermometers_;
  std::shared_ptr<ModelFile> file_;
  std::optional<RouteReplay> replay_;
  std::unique_ptr<Tokenizer> tokenizer_;
  const Kernels* kernels_ = nullptr;
  std::unique_ptr<ThreadPool> workers_;
  std::optional<ExpertLayout> layout_;
  MemoryPlan plan_;
  DriveChoice drive_;
  std::optional<SlotPool> slots_;
  std::optional<HostArena> scratch_;
  std::optional<HashIndex> index_;
  DriveMap drives_;
  std::unique_ptr<IoEngine> engine_;
  std::unique_ptr<ReadScheduler> reads_;
  std::optional<DenseStore> dense_;
  IndexIdentity identity_;
  ExpertUsage usage_;
  uint64_t warm_start_tokens_ = 0;
  std::unique_ptr<EvictionPolicy> policy_;
  std::optional<Compute> compute_;
  std::optional<RotaryTable> rotary_;
  std::optional<KvCache> kv_;
  std::unique_ptr<RamTier> tier_;
  ChosenDevice device_;
  std::unique_ptr<DeviceDense> device_dense_;
  std::unique_ptr<DeviceExperts> device_experts_;
  std::unique_ptr<DeviceLogits> device_logits_;
  Preloaded preloaded_;
  std::unique_ptr<Lookahead> lookahead_;
  std::optional<ChunkForecast> forecast_;
  std::optional<ReadAhead> read_ahead_;
  std::unique_ptr<RouteRecorder> recorder_;
  std::unique_ptr<GateAccuracy> gate_accuracy_;
  RoutingWatchers watchers_;
  std::optional<MoeBlock> moe_;
  std::unique_ptr<Forward> forward_;
};

}  // namespace offstage
