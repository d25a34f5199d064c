#include "runtime/runtime.h"

#include <algorithm>

#include "base/check.h"
#include "base/process_memory.h"
#include "io/drive_name.h"
#include "io/fault.h"
#include "model/vocabulary.h"
#include "runtime/start_probe.h"
#include "runtime/tier_limits.h"

namespace offstage {
namespace {
// Workers' shares in jobs, of all workers together, where reads are recorded.
constexpr size_t kSpansKept = 1 << 16;
// Tokens whose routing is kept where layers are recorded. To replay them at one size costs a look
// at every kept expert for every call: a few seconds for all sizes of a large model, at this many.
constexpr uint64_t kRoutesKeptMin = 256, kRoutesKeptMax = 2048, kReplayedLooks = 1ull << 26;

uint32_t routes_kept(const RouteShape& shape) {
  const uint64_t looks = uint64_t{shape.calls_per_token()} * shape.n_experts;
  return static_cast<uint32_t>(std::clamp(kReplayedLooks / looks, kRoutesKeptMin, kRoutesKeptMax));
}

}  // namespace

Result<std::unique_ptr<Runtime>> Runtime::open(const RuntimeOptions& options, Notices& notices,
                                               const Hooks& hooks) {
  std::unique_ptr<Runtime> runtime(new Runtime(options));
  OFFSTAGE_TRY(runtime->file_, ModelFile::open(options.model_path, options.drives));
  OFFSTAGE_TRY_VOID(runtime->take_replay(notices));
  OFFSTAGE_TRY(VocabularyFacts facts, vocabulary_from_gguf(runtime->file_->gguf));
  if (facts.tokens.size() > runtime->spec().n_vocab)
    return make_error(ErrorCode::kCorrupt,
                      "{}: key 'tokenizer.ggml.tokens': {} tokens, but the embedding has only {} "
                      "rows",
                      options.model_path, facts.tokens.size(), runtime->spec().n_vocab);
  OFFSTAGE_TRY(runtime->tokenizer_, Tokenizer::create(std::move(facts), &notices));
  if (hooks.longest_prompt) runtime->limit_chunks(hooks.longest_prompt(*runtime->tokenizer_));
  OFFSTAGE_TRY(runtime->kernels_, choose_kernels(options.isa));
  OFFSTAGE_TRY_VOID(apply_numa(options.numa, notices));  // before threads and arenas
  runtime->workers_ = std::make_unique<ThreadPool>(options.threads, notices);
  OFFSTAGE_TRY_VOID(runtime->check_kv_types(notices));
  OFFSTAGE_TRY_VOID(runtime->start_trace(notices));  // before the plan, which counts its memory
  OFFSTAGE_TRY_VOID(runtime->choose_device(hooks, notices));  // likewise
  OFFSTAGE_TRY_VOID(runtime->plan(notices, hooks));

  OFFSTAGE_TRY(HostArena dense,
               HostArena::create("dense weights", runtime->plan_.dense_bytes, notices));
  OFFSTAGE_TRY_VOID(runtime->open_drive(dense, notices));
  OFFSTAGE_TRY_VOID(runtime->load(std::move(dense), notices, hooks));
  return runtime;
}

Runtime::~Runtime() = default;

// Before the plan: the trace's k is the model's from here on, and its memory is the process's.
Status Runtime::take_replay(Notices& notices) {
  if (options_.replay_routing.empty()) {
    if (!options_.oracle_prefetch) return {};
    return make_error(ErrorCode::kInvalidArgument,
                      "an oracle needs a trace to foretell calls from: --oracle-prefetch goes with "
                      "--replay-routing");
  }
  if (options_.oracle_prefetch && options_.prefetch == Prefetch::kOff)
    return make_error(ErrorCode::kInvalidArgument,
                      "--oracle-prefetch: with --prefetch off nobody asks the oracle");
  RouterSpec& router = file_->spec.router;
  OFFSTAGE_TRY(replay_,
               RouteReplay::open(options_.replay_routing, router, file_->spec.n_moe_layers(),
                                 options_.oracle_prefetch, notices));
  notices.add("replay_routing",
              fmt::format("{}: its {} tokens choose the experts (top-{}, {} weights), not the "
                          "model's router (top-{}): the text means nothing, and the use of the "
                          "experts is neither read nor kept for warm starts",
                          replay_->path(), replay_->n_tokens(), replay_->n_used(),
                          replay_->has_weights() ? "the trace's" : "equal", router.n_used));
  if (options_.oracle_prefetch)
    notices.add("oracle_prefetch",
                fmt::format("the prefetcher is told {:g} % of the coming layer's true calls; no "
                            "gate guesses",
                            100 * *options_.oracle_prefetch));
  router.n_used = replay_->n_used();
  options_.warm_start = false;
  return {};
}

Status Runtime::check_kv_types(Notices& notices) const {
  const AttentionSpec& attention = spec().attention;
  if (attention.mla.kv_rank != 0 && options_.v_type != options_.k_type)
    notices.add("kv",
                "this model's values are a part of its keys: -ctk is the type of both, -ctv has "
                "no effect");
  return offstage::check_kv_types(spec(), options_.k_type, options_.v_type);
}

Status Runtime::start_trace(Notices& notices) {
  TraceOptions trace;
  trace.level = options_.record;
  trace.first_moe_layer = spec().n_dense_layers;
  const std::vector<std::string> paths = file_->paths();
  OFFSTAGE_TRY(drives_, group_by_drive(paths, options_.drive_grouping));
  drive_names_ = drives_.names;
  std::vector<std::string> on_drive(drive_names_.size());  // a file of each
  for (size_t file = paths.size(); file-- > 0;) {
    const uint32_t drive = drives_.drive_of_file[file];
    on_drive[drive] = paths[file];
    if (options_.drive_grouping == DriveGrouping::kDevice)
      drive_names_[drive] = offstage::drive_name(paths[file]);
    trace.drive_of_file.insert(trace.drive_of_file.begin(), Trace::drive_index(drive));
  }
  if (drive_names_.size() > kDrivesMax)
    notices.add("drives", fmt::format("{} drives hold this model; records tell {} apart",
                                      drive_names_.size(), kDrivesMax));
  trace_.emplace(trace, timer_);
  const RouteShape shape = {spec().n_moe_layers(), spec().router.n_experts, spec().router.n_used};
  if (options_.record >= RecordLevel::kLayer && shape.n_layers != 0)
    routes_.emplace(shape, routes_kept(shape));
  if (options_.keep_first_routes) first_routes_.emplace(shape, FirstRoutes::rows_for(shape));
  if (options_.record >= RecordLevel::kRead)
    workers_->record_spans(kSpansKept / workers_->size(),
                           [this] { return static_cast<uint8_t>(timer_.cause()); });
  load_.emplace(notices);
  if (!run_delay_.is_known())
    notices.add("cpu_taken",
                "no /proc/thread-self/schedstat: time in which others had the CPU stays in the "
                "causes it interrupted");
  thermometers_.emplace(on_drive);
  return {};
}

void Runtime::limit_chunks(uint32_t longest_prompt) {
  if (longest_prompt != 0)
    options_.chunk_rows_max = std::min(options_.chunk_rows_max, longest_prompt);
}

uint64_t Runtime::process_bytes() const {
  const uint64_t record_bytes = options_.context * sizeof(TokenRecord);
  if (options_.process_bytes) return *options_.process_bytes + record_bytes;
  return std::max(resident_bytes() + record_bytes,
                  expected_process_bytes(file_->spec, options_.context));
}

Status Runtime::plan(Notices& notices, const Hooks& hooks) {
  layout_.emplace(file_->expert_layout());
  PlanInputs inputs = {file_->spec,       file_->tensors,      *layout_, options_, process_bytes(),
                       available_bytes(), cgroup_limit_bytes()};
  drive_.depth = options_.io_depth.value_or(drive_.depth);
  // A first plan says whether anything will come from the drive; then it is worth asking how.
  Notices unsaid;
  OFFSTAGE_TRY(plan_, plan_memory(inputs, unsaid));
  if (!plan_.all_resident(*layout_)) {
    drive_ = choose_drive(*file_, options_, plan_.slot_bytes, clock_, notices);
    inputs.drive_bytes_per_s = drive_.bytes_per_s * drives_.n_drives();
    if (drive_.bytes_per_s > 0)
      inputs.row_ns = estimate_row_ns(*file_, *kernels_, *workers_, clock_);
  }
  OFFSTAGE_TRY(plan_, plan_memory(inputs, notices));
  if (hooks.on_plan) hooks.on_plan(plan_, *file_);
  return {};
}

uint32_t Runtime::drive_count() const {
  return std::min(static_cast<uint32_t>(drive_names_.size()), kDrivesMax);
}

std::vector<std::span<const std::byte>> Runtime::resident_memory() const {
  std::vector<std::span<const std::byte>> memory = {dense_->memory()};
  for (uint32_t i = 0; i < slots_->size(); ++i) {
    const Slot& slot = (*slots_)[SlotIndex(i)];
    if (slot.state == SlotState::kVerified)
      memory.push_back({slot.memory, layout_->class_bytes(slot.slot_class)});
  }
  return memory;
}

Status Runtime::open_drive(HostArena& dense_arena, Notices& notices) {
  OFFSTAGE_TRY(slots_, SlotPool::create(plan_.slots, notices));
  OFFSTAGE_TRY_VOID(lock("expert slots", slots_->memory()));
  OFFSTAGE_TRY_VOID(lock("dense weights", {dense_arena.data(), dense_arena.size_bytes()}));
  OFFSTAGE_TRY(index_, file_->open_index(notices));
  IoEngineOptions io;
  io.paths = file_->paths();
  io.drive_of_file = drives_.drive_of_file;
  io.kind = options_.io_engine;
  io.direct = options_.direct_io;
  io.depth = drive_.depth * drives_.n_drives();
  io.buffers = {slots_->memory(), {dense_arena.data(), dense_arena.size_bytes()}};
  OFFSTAGE_TRY(engine_, open_io_engine(io, notices));
  OFFSTAGE_TRY_VOID(add_faults_and_pace(notices));
  ReadSchedulerOptions scheduling;
  scheduling.drive_of_file = drives_.drive_of_file;
  scheduling.deadline_ns = options_.read_deadline_ns;
  scheduling.block_bytes = drive_.block_bytes;
  scheduling.prefetch_depth = prefetch_depth(drive_.depth);
  reads_ = std::make_unique<ReadScheduler>(*engine_, file_->paths(), clock_, scheduling,
                                           2 * tier_reads_max(*layout_));
  // A long matmul doesn't leave the drive without its next reads.
  workers_->set_between_chunks([reads = reads_.get()] {
    if (reads->unfinished() != 0) reads->reap({}, 0);
  });
  return {};
}

Status Runtime::record_routes(const std::string& path) {
  const RouteShape shape = {spec().n_moe_layers(), spec().router.n_experts, spec().router.n_used};
  OFFSTAGE_TRY(recorder_, RouteRecorder::create(path, shape, forward_->rows_max()));
  watchers_.recorder = recorder_.get();
  return {};
}

Status Runtime::close_route_record() {
  watchers_.recorder = nullptr;
  return recorder_ == nullptr ? Status() : recorder_->close();
}

const GateAccuracy& Runtime::measure_gate() {
  gate_accuracy_ =
      std::make_unique<GateAccuracy>(spec(), *compute_, dense_->weights(), forward_->rows_max());
  watchers_.gate_accuracy = gate_accuracy_.get();
  return *gate_accuracy_;
}

Status Runtime::add_faults_and_pace(Notices& notices) {
  if (options_.io_fault.empty() && options_.pace_bytes_per_s == 0) return {};
  OFFSTAGE_TRY(FaultPlan faults, parse_fault_plan(options_.io_fault));
  if (!options_.io_fault.empty())
    notices.add("io_fault", "faults are injected into reads: " + describe_fault_plan(faults));
  if (options_.pace_bytes_per_s != 0) {
    faults.pace_bytes_per_s = options_.pace_bytes_per_s;
    const uint32_t n_drives = drives_.n_drives();
    notices.add("pace",
                fmt::format("{} {} bytes per second; the reads themselves are real",
                            n_drives == 1
                                ? "the model's drive answers as if it gave"
                                : fmt::format("each of the model's {} drives answers as if it gave",
                                              n_drives),
                            options_.pace_bytes_per_s));
  }
  engine_ = std::make_unique<FaultEngine>(std::move(engine_), std::move(faults), clock_,
                                          drives_.drive_of_file);
  return {};
}

Status Runtime::lock(std::string_view purpose, std::span<std::byte> memory) const {
  if (!options_.mlock || memory.empty()) return {};
  return lock_memory(purpose, memory, plan_.planned_bytes() - plan_.process_bytes);
}

// The newest usage that fits wins by its place: beside the model, then in the cache folder.
Status Runtime::make_cache_policy(Notices& notices) {
  const uint32_t n_layers = spec().n_moe_layers(), n_experts = spec().router.n_experts;
  OFFSTAGE_TRY(auto policy,
               make_policy(options_.cache_policy, {n_layers, n_experts, spec().router.n_used,
                                                   plan_.slots.kept_per_layer}));
  OFFSTAGE_TRY(identity_, identify(file_->gguf, file_->pieces_per_tensor()));
  usage_ = {n_layers, n_experts, 0, std::vector<float>(size_t{n_layers} * n_experts, 0)};
  for (const std::string& path : usage_places(options_.model_path)) {
    if (!options_.warm_start) break;
    auto usage = read_usage(path, identity_, n_layers, n_experts);
    if (usage) {
      usage_ = std::move(*usage);
      warm_start_tokens_ = static_cast<uint64_t>(usage_.tokens);
      break;
    }
    if (usage.error().code != ErrorCode::kNotFound)
      notices.add("warm_start", usage.error().message + "; it is left alone until this run ends");
  }
  policy_ = make_counting_policy(std::move(policy), usage_);
  return {};
}

Status Runtime::save_index(Notices& notices) {
  OFFSTAGE_TRY_VOID(index_->save(notices));
  if (!options_.warm_start || usage_.tokens == 0) return {};
  Status status;
  for (const std::string& path : usage_places(options_.model_path)) {
    status = write_usage(path, identity_, usage_);
    if (status) return {};
  }
  notices.add("warm_start", status.error().message + "; the next run starts cold");
  return {};
}

Status Runtime::load(HostArena dense_arena, Notices& notices, const Hooks& hooks) {
  const DenseStore::Loader loader = {spec(),    file_->gguf, *reads_, *index_,
                                     *workers_, *kernels_,   notices, hooks.on_load};
  OFFSTAGE_TRY(dense_, DenseStore::load(file_->tensors, std::move(dense_arena), loader));

  OFFSTAGE_TRY(scratch_,
               HostArena::create("scratch", plan_.scratch_bytes + plan_.rotary_bytes, notices));
  const Scratch scratch = Scratch::take(spec(), plan_.chunk_rows, *scratch_);
  rotary_.emplace(spec().rotary, options_.context,
                  dense_->weights().rope_factors_for(spec().rotary, options_.context), *scratch_);
  OFFSTAGE_TRY(kv_, KvCache::create(KvCache::shape_of(spec(), options_.k_type, options_.v_type),
                                    plan_.kv_pages, options_.n_sequences, notices));
  OFFSTAGE_TRY_VOID(lock("scratch", {scratch_->data(), scratch_->size_bytes()}));
  OFFSTAGE_TRY_VOID(lock("KV", kv_->memory()));
  OFFSTAGE_TRY_VOID(make_cache_policy(notices));
  compute_.emplace(*kernels_, *workers_);
  RamTierParts tier = {*layout_,
                       plan_.slots,
                       *slots_,
                       *reads_,
                       *index_,
                       *workers_,
                       *policy_,
                       timer_,
                       notices,
                       file_->paths(),
                       tier_reads_max(*layout_),
                       &*trace_};
  tier.is_elsewhere = [this](LayerIndex layer, ExpertId expert) {
    return device_experts_ != nullptr && device_experts_->is_resident(layer, expert);
  };
  tier_ = std::make_unique<RamTier>(std::move(tier));
  lookahead_ = std::make_unique<Lookahead>(spec(), *compute_, *tier_, timer_, options_.prefetch);
  forecast_.emplace(usage_, spec().router.n_used, options_.prefetch != Prefetch::kOff);
  if (replay_ && replay_->oracle_recall()) lookahead_->set_oracle(&*replay_);
  preload(hooks);
  open_vram(notices);
  make_forward(scratch);
  return {};
}

void Runtime::make_forward(const Scratch& scratch) {
  const DenseWeights& weights = dense_->weights();
  read_ahead_.emplace(
      ReadAhead::Parts{spec(), weights, *tier_, *lookahead_, *forecast_, device_experts_.get()});
  if (routes_) watchers_.last_routes = &*routes_;
  watchers_.first_routes = first_routes();
  moe_.emplace(MoeBlock::Parts{spec(), *compute_, *tier_, timer_, scratch.moe, plan_.chunk_rows,
                               replay_ ? &*replay_ : nullptr, device_experts_.get(),
                               device_dense_.get()});
  forward_ = std::make_unique<Forward>(
      Forward::Parts{spec(), weights, *compute_, *rotary_, *kv_, options_.k_type, options_.v_type,
                     *moe_, *read_ahead_, watchers_, timer_, *trace_, scratch, plan_.chunk_rows,
                     device_dense_.get(), device_logits_.get()});
}

void Runtime::preload(const Hooks& hooks) {
  if (!options_.preload) return;
  const int64_t begin_ns = clock_.now_ns();
  tier_->preload(experts_to_preload(*layout_, plan_.slots, usage_), hooks.on_preload);
  const TierCounters& counters = tier_->counters();
  preloaded_ = {counters.preloads, counters.preload_bytes, clock_.now_ns() - begin_ns};
}

}  // namespace offstage
