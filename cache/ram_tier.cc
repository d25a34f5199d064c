#include "cache/ram_tier.h"

#include <algorithm>

#include "base/check.h"
#include "cache/read_cookie.h"
#include "io/drives.h"

namespace offstage {
namespace {

constexpr uint8_t kAllMatrices = (1u << kExpertMatrices) - 1;
constexpr int64_t kReapTimeoutNs = 1'000'000'000;  // the scheduler's deadline ends a wait, not this
// While a prompt's misses stream through the staging slots, at most this many experts, and this
// share of the slots, are computed at a time: the others go on being read.
constexpr uint32_t kStreamBatchMax = 16;
constexpr uint32_t kStreamBatchShare = 4;

constexpr uint8_t bit(ExpertMatrix matrix) {
  return static_cast<uint8_t>(1u << static_cast<unsigned>(matrix));
}

}  // namespace

PinnedExperts::PinnedExperts(PinnedExperts&& other) noexcept
    : tier_(std::exchange(other.tier_, nullptr)), experts_(other.experts_) {}

PinnedExperts::~PinnedExperts() {
  if (tier_ != nullptr) tier_->unpin(experts_);
}

RamTier::RamTier(RamTierParts parts)
    : parts_(std::move(parts)),
      slot_of_(size_t{parts_.layout.n_layers()} * parts_.layout.n_experts(), kAbsent),
      reading_(parts_.pool.size()),
      needed_(parts_.layout.n_experts(), 0),
      keep_(parts_.layout.n_experts(), 0),
      residents_(parts_.layout.n_layers(), 0),
      held_(parts_.layout.n_layers(), 0),
      adopting_(parts_.layout.n_layers(), 0),
      done_(parts_.reads_max),
      hashes_(parts_.reads_max) {
  CHECK_GE(parts_.reads_max, kExpertMatrices);
  ready_.reserve(parts_.layout.n_experts());
  handed_.reserve(parts_.layout.n_experts());
  burst_.reserve(parts_.reads_max);
}

size_t RamTier::place(LayerIndex layer, ExpertId expert) const {
  return size_t{layer.value} * parts_.layout.n_experts() + expert.value;
}

bool RamTier::is_resident(LayerIndex layer, ExpertId expert) const {
  return slot_of_[place(layer, expert)] != kAbsent;
}

uint32_t RamTier::resident_count(LayerIndex layer) const { return residents_[layer.value]; }

void RamTier::begin(const LayerEvent& event, std::span<const ExpertCall> here, Phase phase) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  CHECK(!in_event_);
  in_event_ = true;
  begun_ns_ = scope.entered_ns();
  const LayerIndex layer = event.layer;
  layer_ = layer;
  phase_ = phase;
  parts_.policy.on_event(event);

  std::vector<ExpertCall> newcomers = take_calls(here);
  if (phase == Phase::kPrefill) plan_what_stays(newcomers);
  start_missing(newcomers);
  give_up_wrong_guesses();
  ahead_.clear();
  start_reads();
}

// Residents are ready at once. What comes new to the slots: misses, and guesses that turn out to be
// right.
std::vector<ExpertCall> RamTier::take_calls(std::span<const ExpertCall> calls) {
  std::vector<ExpertCall> newcomers;
  for (const ExpertCall& call : calls) {
    CHECK(!needed_[call.expert.value]);
    needed_[call.expert.value] = 1;
    keep_[call.expert.value] = 1;
    const int32_t slot = slot_of_[place(layer_, call.expert)];
    if (slot != kAbsent && !reading_[static_cast<uint32_t>(slot)].guessed) {
      ++counters_.ram_hits;
      ready_.push_back(ready_expert(SlotIndex(static_cast<uint32_t>(slot))));
      continue;
    }
    ++counters_.drive_reads;
    trace_miss(call.expert);
    newcomers.push_back(call);
  }
  return newcomers;
}

void RamTier::start_missing(std::span<const ExpertCall> newcomers) {
  for (const ExpertCall& call : newcomers) {
    const int32_t slot = slot_of_[place(layer_, call.expert)];
    if (slot == kAbsent) {
      missing_.push_back(call.expert);
    } else {
      take_over_guess(SlotIndex(static_cast<uint32_t>(slot)));
    }
  }
}

// Of what a prompt's chunk brings, the most called stay, as many as the layer has unused slots for;
// and it is read in the order of the file.
void RamTier::plan_what_stays(std::vector<ExpertCall>& newcomers) {
  uint32_t residents = 0;
  for (uint32_t e = 0; e < parts_.layout.n_experts(); ++e) {
    const int32_t slot = slot_of_[place(layer_, ExpertId(e))];
    if (slot != kAbsent && !reading_[static_cast<uint32_t>(slot)].guessed) ++residents;
  }
  const size_t room = share(layer_) - std::min(share(layer_), residents);
  std::stable_sort(newcomers.begin(), newcomers.end(),
                   [](const ExpertCall& a, const ExpertCall& b) { return a.uses > b.uses; });
  for (size_t i = room; i < newcomers.size(); ++i) keep_[newcomers[i].expert.value] = 0;
  std::sort(newcomers.begin(), newcomers.end(),
            [](const ExpertCall& a, const ExpertCall& b) { return a.expert < b.expert; });
}

uint32_t RamTier::share(LayerIndex layer) const {
  const uint32_t kept = parts_.plan.kept_per_layer[layer.value] - adopting_[layer.value];
  return phase_ == Phase::kPrefill ? kept - parts_.plan.lent_in_prefill(layer) : kept;
}

// As many missing experts as there are slots and reads for, handed to the engine in one burst; when
// none is missing any more, those that the next layer will call.
void RamTier::start_reads() {
  burst_.clear();
  while (!missing_.empty() && has_reads_for_an_expert() && take_slot_for(missing_.front()))
    missing_.pop_front();
  if (missing_.empty()) take_slots_ahead();
  if (!burst_.empty()) parts_.reads.start(burst_);
}

bool RamTier::has_reads_for_an_expert() const {
  return matrices_in_flight_ + parts_.reads.quarantined() + kExpertMatrices <= parts_.reads_max;
}

bool RamTier::take_slot_for(ExpertId expert) {
  const std::optional<SlotIndex> slot = acquire_slot();
  if (!slot) return false;
  ++experts_reading_;
  queue_reads(*slot, layer_, expert, {});
  return true;
}

// An empty slot becomes the expert's; its reads are added to the burst.
void RamTier::queue_reads(SlotIndex slot, LayerIndex layer, ExpertId expert, Reading reading) {
  parts_.pool.begin_read(slot, layer, expert);
  slot_of_[place(layer, expert)] = static_cast<int32_t>(slot.value);
  ++residents_[layer.value];
  reading_[slot.value] = reading;
  for (uint32_t m = 0; m < kExpertMatrices; ++m)
    burst_.push_back(read_job(slot, static_cast<ExpertMatrix>(m)));
}

std::optional<SlotIndex> RamTier::acquire_slot() {
  const uint32_t slot_class = parts_.layout.slot_class(layer_);
  if (const auto slot = parts_.pool.take_empty(slot_class)) return slot;
  // Prefill waits for a staging slot as long as one will come back; decode would evict the same
  // victim at end() anyway.
  const bool one_comes_back = experts_reading_ != 0 || !ready_.empty() || !handed_.empty();
  if (phase_ == Phase::kPrefill && one_comes_back) return std::nullopt;
  if (!evict_one(layer_) && !evict_guess(slot_class)) return std::nullopt;
  return parts_.pool.take_empty(slot_class);
}

// Counts the read as outstanding: the caller starts it.
ReadJob RamTier::read_job(SlotIndex slot, ExpertMatrix matrix) {
  const Slot& s = parts_.pool[slot];
  ReadJob job;
  job.extent = parts_.layout.extent(s.layer, s.expert, matrix);
  job.buffer = s.memory + parts_.layout.span_in_slot(s.layer, matrix);
  job.cookie = make_cookie(slot, s.generation, matrix);
  job.lane = reading_[slot.value].lane;
  parts_.pool.read_started(slot);
  ++matrices_in_flight_;
  return job;
}

Result<PinnedExperts> RamTier::next() {
  CHECK(in_event_);
  CHECK(handed_.empty());  // one batch at a time
  while (true) {
    // What has arrived by now, without waiting; with nothing to compute, asleep until something
    // arrives. Reads that an earlier event gave up count too: they hold slots that come back.
    const bool over = missing_.empty() && experts_reading_ == 0;
    const bool wait = ready_.empty() && !over && matrices_in_flight_ != 0;
    size_t n_done = 0;
    if (matrices_in_flight_ != 0 || parts_.reads.quarantined() != 0) n_done = take_arrivals(wait);
    OFFSTAGE_TRY_VOID(absorb({done_.data(), n_done}));
    const CauseScope scope(parts_.timer, Cause::kCache);
    release_quarantined();
    start_reads();
    if (!ready_.empty() || (missing_.empty() && experts_reading_ == 0)) break;
    if (matrices_in_flight_ == 0)
      return make_error(ErrorCode::kDeadline,
                        "layer {}: every expert slot is held by a read that never completed",
                        layer_.value);
  }
  hand_out();
  return PinnedExperts(handed_.empty() ? nullptr : this, handed_);
}

// A wait is charged to the read whose completion ended it: the first that came.
size_t RamTier::take_arrivals(bool wait) {
  const CauseScope scope(parts_.timer, wait ? Cause::kWaitDrive : Cause::kCache);
  const size_t n_done = parts_.reads.reap(done_, wait ? kReapTimeoutNs : 0);
  if (parts_.trace == nullptr) return n_done;
  for (size_t i = 0; i < n_done; ++i) trace_arrival(done_[i]);
  if (wait) {
    const int64_t woken_ns = parts_.timer.enter(Cause::kCache);
    const ReadRecord first = n_done == 0 ? ReadRecord() : record_of(done_[0]);
    parts_.trace->waited(scope.entered_ns(), woken_ns, matrices_in_flight_,
                         n_done == 0 ? nullptr : &first);
  }
  return n_done;
}

// All that is ready. While a prompt streams: a few, those first whose slots go back to reading, so
// that the drive has slots to fill while they compute.
void RamTier::hand_out() {
  size_t n = ready_.size();
  if (phase_ == Phase::kPrefill && !(missing_.empty() && ahead_.empty())) {
    const uint32_t slots = parts_.plan.streaming_slots(parts_.layout, layer_);
    n = std::min<size_t>(n, std::clamp(slots / kStreamBatchShare, 1u, kStreamBatchMax));
    std::stable_partition(ready_.begin(), ready_.end(),
                          [&](const ReadyExpert& e) { return keep_[e.expert.value] == 0; });
  }
  const auto end = ready_.begin() + static_cast<ptrdiff_t>(n);
  handed_.assign(ready_.begin(), end);
  ready_.erase(ready_.begin(), end);
  for (const ReadyExpert& expert : handed_) parts_.pool.pin(expert.slot);
}

void RamTier::hash_all(std::span<const ReadDone> done) {
  if (parts_.hash) return parts_.hash(done, std::span(hashes_).first(done.size()));
  parts_.workers.parallel_for(static_cast<uint32_t>(done.size()), 1,
                              [&](uint32_t begin, uint32_t end, uint32_t) {
                                for (uint32_t i = begin; i < end; ++i)
                                  if (done[i].status)
                                    hashes_[i] = hash_piece({done[i].data, done[i].extent.bytes});
                              });
}

Status RamTier::absorb(std::span<const ReadDone> done) {
  if (done.empty()) return {};
  const CauseScope scope(parts_.timer, Cause::kHash);
  hash_all(done);
  Status first_error;
  for (size_t i = 0; i < done.size(); ++i) {
    --matrices_in_flight_;
    const SlotIndex slot = cookie_slot(done[i].cookie);
    CHECK_EQ(cookie_generation(done[i].cookie), parts_.pool[slot].generation);
    if (done[i].buffer_free) parts_.pool.read_returned(slot);
    account(reading_[slot.value], done[i]);
    // A slot whose event was given up: emptied once the drive let go of it.
    const bool given_up = slot_of_[place(parts_.pool[slot].layer, parts_.pool[slot].expert)] !=
                          static_cast<int32_t>(slot.value);
    if (given_up) {
      if (reading_[slot.value].guessed && done[i].status)
        counters_.prefetch_wasted_bytes += done[i].extent.bytes;
      if (parts_.pool[slot].reads_outstanding == 0) parts_.pool.clear(slot);
      continue;
    }
    Status status = done[i].status ? judge(done[i], hashes_[i]) : done[i].status;
    if (!status && !is_of_event(slot)) {
      drop_guess(slot, status.error());
    } else if (!status && first_error) {
      first_error = std::move(status);
    }
  }
  return first_error;
}

Status RamTier::judge(const ReadDone& done, PieceHash hash) {
  const SlotIndex slot = cookie_slot(done.cookie);
  const ExpertMatrix matrix = cookie_matrix(done.cookie);
  const Slot& s = parts_.pool[slot];
  Reading& reading = reading_[slot.value];
  const PieceId piece = parts_.layout.piece(s.layer, s.expert, matrix);
  const HashVerdict verdict = parts_.index.judge(piece, hash);
  const std::string& tensor = parts_.layout.tensor_name(s.layer, matrix);

  if (verdict == HashVerdict::kConflict || verdict == HashVerdict::kMismatch) {
    const std::string path = names_of(parts_.paths, done.extent);
    if (verdict == HashVerdict::kMismatch && (reading.reread_mask & bit(matrix)) != 0)
      return make_error(ErrorCode::kHashMismatch,
                        "{}: tensor '{}' expert {} at offset {}: {} bytes were read twice and "
                        "don't match the index (found {:016x})",
                        path, tensor, s.expert.value, done.extent.offset, done.extent.bytes, hash);
    parts_.notices.add(
        "hash", fmt::format("{}: tensor '{}' expert {} at offset {}: {}; reading it again", path,
                            tensor, s.expert.value, done.extent.offset,
                            verdict == HashVerdict::kConflict
                                ? "two reads gave different bytes, a third decides"
                                : "bytes don't match the index"));
    if (verdict == HashVerdict::kMismatch) reading.reread_mask |= bit(matrix);
    ++counters_.rereads;
    parts_.reads.start(read_job(slot, matrix));
    return {};
  }
  reading.verified_mask |= bit(matrix);
  if (reading.verified_mask != kAllMatrices) return {};
  const bool called = is_of_event(slot);
  parts_.pool.verified(slot);
  if (called) {
    --experts_reading_;
    ready_.push_back(ready_expert(slot));
  }
  return {};
}

void RamTier::release_quarantined() {
  for (const uint64_t cookie : parts_.reads.take_released()) {
    const SlotIndex slot = cookie_slot(cookie);
    CHECK_EQ(cookie_generation(cookie), parts_.pool[slot].generation);
    parts_.pool.read_returned(slot);
    if (parts_.pool[slot].reads_outstanding == 0 &&
        slot_of_[place(parts_.pool[slot].layer, parts_.pool[slot].expert)] !=
            static_cast<int32_t>(slot.value))
      parts_.pool.clear(slot);
  }
}

ReadyExpert RamTier::ready_expert(SlotIndex slot) const {
  const ExpertId expert = parts_.pool[slot].expert;
  return {expert, slot, matrix_bytes(slot, ExpertMatrix::kGate).data(),
          matrix_bytes(slot, ExpertMatrix::kUp).data(),
          matrix_bytes(slot, ExpertMatrix::kDown).data()};
}

std::span<const std::byte> RamTier::matrix_bytes(SlotIndex slot, ExpertMatrix matrix) const {
  const Slot& s = parts_.pool[slot];
  const Extent extent = parts_.layout.extent(s.layer, s.expert, matrix);
  return {s.memory + parts_.layout.span_in_slot(s.layer, matrix) + span_head(extent), extent.bytes};
}

void RamTier::unpin(std::span<const ReadyExpert> experts) {
  const CauseScope scope(parts_.timer, Cause::kCache);
  for (const ReadyExpert& expert : experts) {
    parts_.pool.unpin(expert.slot);
    needed_[expert.expert.value] = 0;
    if (!keep_[expert.expert.value]) evict(layer_, expert.slot);
  }
  handed_.clear();
  start_reads();
}

void RamTier::evict(LayerIndex layer, SlotIndex slot) {
  slot_of_[place(layer, parts_.pool[slot].expert)] = kAbsent;
  --residents_[layer.value];
  ++counters_.evictions;
  parts_.pool.clear(slot);
}

void RamTier::end() {
  const CauseScope scope(parts_.timer, Cause::kCache);
  CHECK(in_event_);
  CHECK(handed_.empty());
  in_event_ = false;
  const bool failed = !missing_.empty() || experts_reading_ != 0;
  if (failed) ahead_.clear();  // nobody will come to the next layer
  missing_.clear();
  ready_.clear();
  experts_reading_ = 0;
  std::fill(needed_.begin(), needed_.end(), 0);
  // After an error some slots are still being read: given up, they empty when the drive lets go.
  const bool any_reading = failed || matrices_in_flight_ != 0;
  for (uint32_t e = 0; any_reading && e < parts_.layout.n_experts(); ++e) {
    const int32_t slot = slot_of_[place(layer_, ExpertId(e))];
    if (slot == kAbsent) continue;
    const SlotIndex index(static_cast<uint32_t>(slot));
    if (parts_.pool[index].state != SlotState::kReading) continue;
    give_up(index);
  }
  while (residents_[layer_.value] > share(layer_)) CHECK(evict_one(layer_));
  start_reads();  // slots came back
}

}  // namespace offstage
