#include "plan/token_simulation.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/checked_math.h"
#include "cpu/kernels.h"
#include "io/fault.h"
#include "runtime/start_probe.h"
#include "runtime/tier_limits.h"

namespace offstage {
namespace {

// A simulated drive answers in the end, however slow it is; a wait has a bound all the same.
constexpr int64_t kDeadlineNs = 3'600'000'000'000;
// The scheduler is asked so often while the workers compute (ThreadPool::set_between_chunks).
constexpr double kBetweenChunksNs = 50'000;
constexpr double kChunksMax = 64;

// How the run asked the drives, or how it would: as its probe chose, or as it does where it doesn't
// probe.
DriveChoice drive_choice(const TokenSimulation::Parts& parts) {
  if (parts.options.drive) return *parts.options.drive;
  DriveChoice choice;
  const bool probed = parts.model.experts_bytes() >= kProbedExpertBytesMin &&
                      parts.profile.pace_bytes_per_s == 0;  // a run with --pace doesn't probe
  for (const DriveSpeed& drive : parts.profile.drives) {
    if (!probed || drive.block_bytes == 0) return choice;
    choice.block_bytes = std::min(choice.block_bytes, drive.block_bytes);
  }
  choice.depth = parts.profile.drives.front().depth;
  for (const DriveSpeed& drive : parts.profile.drives)
    choice.depth = std::max(choice.depth, drive.depth);
  return choice;
}

SimOptions simulated_drives(const TokenSimulation::Parts& parts, uint32_t depth) {
  SimOptions options;
  options.drives.clear();
  options.seed = parts.options.seed;
  const PlannedModel& model = parts.model;
  const uint32_t n_drives = model.n_drives();
  CHECK_LE(n_drives, parts.profile.drives.size());
  for (uint32_t d = 0; d < n_drives; ++d)
    options.drives.push_back(parts.profile.drives[d].simulated());
  options.wake_ns = parts.profile.wake_ns;
  options.depth = depth * n_drives;  // the scheduler gives every drive an equal share
  for (uint32_t f = 0; f < model.file_bytes.size(); ++f)
    options.files.push_back({.bytes = round_up(model.file_bytes[f], kSectorBytes) + kSectorBytes,
                             .drive = f < model.drive_of_file.size() ? model.drive_of_file[f] : 0});
  return options;
}

std::vector<uint32_t> pieces_of(const ExpertLayout& layout) {
  std::vector<uint32_t> pieces;
  for (uint32_t l = 0; l < layout.n_layers(); ++l)
    for (uint32_t m = 0; m < kExpertMatrices; ++m) {
      const uint32_t tensor =
          layout.piece(LayerIndex(l), ExpertId(0), static_cast<ExpertMatrix>(m)).tensor;
      if (tensor >= pieces.size()) pieces.resize(tensor + size_t{1}, 1);
      pieces[tensor] = layout.n_experts();
    }
  return pieces;
}

}  // namespace

TokenSimulation::TokenSimulation(const Parts& parts)
    : parts_(parts),
      spec_(parts.model.spec),
      cost_(parts.model, parts.profile, parts.options.runtime.k_type, parts.options.runtime.v_type,
            parts.notices),
      evicts_(!parts.plan.all_resident(parts.model.layout)),
      timer_(clock_),
      worker_(1, parts.notices),
      foresight_(parts.options.guess_accuracy, parts.options.seed),
      no_weights_(spec_.n_layers),
      uses_(spec_.router.n_experts) {}

TokenSimulation::~TokenSimulation() = default;

Result<std::unique_ptr<TokenSimulation>> TokenSimulation::create(const Parts& parts) {
  std::unique_ptr<TokenSimulation> simulation(new TokenSimulation(parts));
  OFFSTAGE_TRY_VOID(simulation->make_tier());
  return simulation;
}

Status TokenSimulation::make_tier() {
  const PlannedModel& model = parts_.model;
  const uint32_t n_layers = spec_.n_moe_layers(), n_experts = spec_.router.n_experts;
  const SlotPlan& plan = parts_.plan.slots;
  Notices unheard;  // of huge pages: nothing is ever written there
  OFFSTAGE_TRY(slots_, SlotPool::create_shared(plan, unheard));
  index_.emplace(HashIndex::in_memory(pieces_of(model.layout)));
  const DriveChoice choice = drive_choice(parts_);
  SimOptions drives = simulated_drives(parts_, choice.depth);
  ReadSchedulerOptions scheduling;
  scheduling.deadline_ns = kDeadlineNs;
  scheduling.block_bytes = choice.block_bytes;
  scheduling.prefetch_depth = prefetch_depth(choice.depth);
  for (const SimFile& file : drives.files) scheduling.drive_of_file.push_back(file.drive);
  const std::vector<std::string> paths(drives.files.size(), "a simulated drive");
  engine_ = std::make_unique<SimEngine>(std::move(drives), clock_);
  if (parts_.profile.pace_bytes_per_s != 0) {  // as the run does it
    FaultPlan pace;
    pace.pace_bytes_per_s = parts_.profile.pace_bytes_per_s;
    engine_ = std::make_unique<FaultEngine>(std::move(engine_), std::move(pace), clock_,
                                            scheduling.drive_of_file);
  }
  const uint32_t reads_max = tier_reads_max(model.layout);
  reads_ = std::make_unique<ReadScheduler>(*engine_, paths, clock_, scheduling, 2 * reads_max);
  OFFSTAGE_TRY(auto policy,
               make_policy(parts_.options.runtime.cache_policy,
                           {n_layers, n_experts, spec_.router.n_used, plan.kept_per_layer}));
  if (parts_.usage != nullptr) {
    usage_ = *parts_.usage;
  } else {
    usage_ = {n_layers, n_experts, 0, std::vector<float>(size_t{n_layers} * n_experts, 0)};
  }
  policy_ = make_counting_policy(std::move(policy), usage_);
  RamTierParts tier = {model.layout, plan,   *slots_,        *reads_, *index_,  worker_,
                       *policy_,     timer_, parts_.notices, paths,   reads_max};
  tier.hash = [this](std::span<const ReadDone> done, std::span<PieceHash> hashes) {
    hash(done, hashes);
  };
  tier_ = std::make_unique<RamTier>(std::move(tier));
  OFFSTAGE_TRY(const Kernels* kernels, choose_kernels("scalar"));  // asked for nothing
  compute_ = std::make_unique<Compute>(*kernels, worker_);
  const Prefetch prefetch =
      parts_.options.guess_accuracy.guesses() ? parts_.options.runtime.prefetch : Prefetch::kOff;
  lookahead_ = std::make_unique<Lookahead>(spec_, *compute_, *tier_, timer_, prefetch);
  lookahead_->set_oracle(&foresight_);
  chunks_.emplace(usage_, spec_.router.n_used, parts_.options.runtime.prefetch != Prefetch::kOff);
  return {};
}

void TokenSimulation::preload() {
  tier_->preload(experts_to_preload(parts_.model.layout, parts_.plan.slots, usage_), {});
  timer_.take();
}

CauseTimes TokenSimulation::run_prompt(const RouteLog& log, uint64_t first, uint32_t n_rows) {
  const uint32_t chunk = std::max(parts_.plan.chunk_rows, 1u);
  for (uint32_t done = 0; done < n_rows;) {
    const uint32_t n = std::min(chunk, n_rows - done);
    run_rows(log, first + done, n, done, n_rows > 1 ? Phase::kPrefill : Phase::kDecode);
    done += n;
  }
  return end_step();
}

CauseTimes TokenSimulation::run_token(const RouteLog& log, uint64_t token, uint32_t position) {
  run_rows(log, token, 1, position, Phase::kDecode);
  return end_step();
}

void TokenSimulation::run_rows(const RouteLog& log, uint64_t first, uint32_t n, uint32_t position,
                               Phase phase) {
  forward({log, first, n, position + n - 1, phase});
}

CauseTimes TokenSimulation::end_step() {
  spend(cost_.output_ns(), Cause::kOutput);
  if (parts_.options.samples) spend(cost_.sample_ns(), Cause::kSample);
  return timer_.take();
}

// Forward::run(), without the arithmetic.
void TokenSimulation::forward(const Rows& rows) {
  if (spec_.n_moe_layers() != 0) foresight_.look_at(rows.log, rows.first);
  look_ahead(0, rows);
  for (uint32_t layer = 0; layer < spec_.n_layers; ++layer) {
    spend(cost_.attention_ns(layer, rows.n, rows.position), Cause::kAttention);
    if (!spec_.is_dense_layer(layer)) {
      visit(LayerIndex(layer - spec_.n_dense_layers), rows);
      continue;
    }
    look_ahead(layer + 1, rows);
    spend(cost_.ffn_ns(layer, rows.n), Cause::kExperts);
  }
}

// MoeBlock::call() and compute().
void TokenSimulation::visit(LayerIndex layer, const Rows& rows) {
  const uint32_t block = layer.value + spec_.n_dense_layers;
  spend(cost_.router_ns(block, rows.n), Cause::kRouter);
  gather_calls(layer, rows);
  const uint64_t reads_before = tier_->counters().drive_reads;
  tier_->begin({layer, calls_, rows.n, row_experts_, {}}, rows.phase);
  lookahead_->learn(layer, calls_);
  chunks_->learn(layer, calls_);
  look_ahead(block + 1, rows);
  spend(cost_.ffn_ns(block, rows.n), Cause::kExperts);
  while (true) {
    const Result<PinnedExperts> pinned = tier_->next();
    CHECK(pinned.has_value());  // simulated drives have no faults here
    if (pinned->experts().empty()) break;
    batch_rows_.clear();
    for (const ReadyExpert& expert : pinned->experts())
      batch_rows_.push_back(uses_[expert.expert.value]);
    spend(cost_.batch_ns(block, batch_rows_), Cause::kExperts);
  }
  tier_->end();
  spend(cost_.event_ns(tier_->counters().drive_reads - reads_before, evicts_), Cause::kCache);
}

void TokenSimulation::gather_calls(LayerIndex layer, const Rows& rows) {
  for (const ExpertCall& call : calls_) uses_[call.expert.value] = 0;
  calls_.clear();
  row_experts_.clear();
  for (uint32_t row = 0; row < rows.n; ++row)
    for (const uint16_t expert : rows.log.calls(rows.first + row, layer.value)) {
      row_experts_.push_back(ExpertId(expert));
      if (uses_[expert]++ == 0) calls_.push_back({ExpertId(expert)});
    }
  for (ExpertCall& call : calls_) call.uses = uses_[call.expert.value];
}

void TokenSimulation::look_ahead(uint32_t layer, const Rows& rows) {
  if (layer >= spec_.n_layers || spec_.is_dense_layer(layer)) return;
  const LayerIndex moe_layer(layer - spec_.n_dense_layers);
  if (rows.phase == Phase::kPrefill)
    return tier_->read_ahead(moe_layer, chunks_->foretell(moe_layer, rows.n));
  if (!parts_.options.guess_accuracy.guesses()) return;
  lookahead_->look(moe_layer, std::span(no_weights_).subspan(layer), nullptr, rows.n);
  spend(lookahead_->horizon() * cost_.router_ns(layer, rows.n), Cause::kLookahead);
}

void TokenSimulation::spend(double ns, Cause cause) {
  const CauseScope scope(timer_, cause);
  advance(ns);
}

// Every thread takes its matrices in turn.
void TokenSimulation::hash(std::span<const ReadDone> done, std::span<PieceHash> hashes) {
  double bytes = 0;
  for (const ReadDone& read : done) bytes += static_cast<double>(read.extent.bytes);
  std::fill(hashes.begin(), hashes.end(), 0);
  const double n = static_cast<double>(done.size());
  const double turns = std::ceil(n / std::max(parts_.profile.threads, 1u));
  const bool asleep = clock_.now_ns() - worked_until_ns_ > ThreadPool::kSpinNs;
  const int64_t hand_out_ns = parts_.profile.dispatch_ns + (asleep ? parts_.profile.asleep_ns : 0);
  advance(bytes / n * turns * 1e9 / parts_.profile.hash_bytes_per_s +
          static_cast<double>(hand_out_ns));
}

// While reads fly, the workers are slower, and the scheduler is asked between their chunks.
void TokenSimulation::advance(double ns) {
  pass(ns);
  worked_until_ns_ = clock_.now_ns();
}

void TokenSimulation::pass(double ns) {
  if (reads_->unfinished() == 0) return clock_.advance_ns(std::llround(ns));
  ns *= parts_.profile.slowdown_beside_reads;
  const double pieces = std::clamp(std::ceil(ns / kBetweenChunksNs), 1.0, kChunksMax);
  for (double piece = 0; piece < pieces; ++piece) {
    clock_.advance_ns(std::llround(ns / pieces));
    reads_->reap({}, 0);
  }
}

}  // namespace offstage
