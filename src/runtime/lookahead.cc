#include "runtime/lookahead.h"

#include <algorithm>

namespace offstage {
namespace {

constexpr float kForget = 31.0f / 32;
// Before there is evidence a guess is believed to be right this often: too seldom to be read.
constexpr float kPriorRate = 0.25f;
constexpr float kPriorWeight = 2;
// A layer whose guesses fail is guessed at every so many events, in case the text changes.
constexpr uint32_t kRestEvents = 16;
constexpr float kRestSamples = 16;
// Of the right guesses: above it they come too late, below it they needn't be made so early.
constexpr float kLate = 0.5f;
constexpr float kInTime = 0.1f;
// After the farthest guesses failed, they aren't tried again for so many events.
constexpr uint32_t kHorizonRestEvents = 4096;

// Groups of kRowsMax rows that a chunk is polled by.
constexpr uint32_t kPollGroups = 8;
// Reads of matrices, for the payback: so many are remembered, so many are needed to judge.
constexpr float kForgetReads = 255.0f / 256;
constexpr float kReadsKnown = 12;
// Every so many guesses that don't pay, one is read.
constexpr uint32_t kRefusedMax = 64;

}  // namespace

void RecentRate::add(bool hit) {
  hits_ = hits_ * kForget + (hit ? 1 : 0);
  n_ = n_ * kForget + 1;
}

void RecentPayback::add(const GuessPayback& total) {
  const auto right = static_cast<float>(total.right - seen_.right);
  const auto wrong = static_cast<float>(total.wrong - seen_.wrong);
  for (float n = right + wrong; n > 0; --n)
    for (float* sum : {&right_, &wrong_, &saved_, &lost_}) *sum *= kForgetReads;
  right_ += right;
  wrong_ += wrong;
  saved_ += static_cast<float>(total.saved_ns - seen_.saved_ns);
  lost_ += static_cast<float>(total.lost_ns - seen_.lost_ns);
  seen_ = total;
}

float RecentPayback::break_even() const {
  if (right_ < kReadsKnown || wrong_ < kReadsKnown) return 0;
  const float saved = saved_ / right_, lost = lost_ / wrong_;
  return lost == 0 ? 0 : lost / (saved + lost);
}

Lookahead::Lookahead(const ModelSpec& spec, const Compute& compute, RamTier& tier,
                     CauseTimer& timer, Prefetch prefetch)
    : spec_(spec),
      tier_(tier),
      timer_(timer),
      prefetch_(prefetch),
      gate_(spec, compute, kRowsMax),
      n_layers_(spec.n_layers - spec.n_dense_layers),
      layers_(size_t{kHorizonMax} * n_layers_),
      ranks_(layers_.size() * spec.router.n_used),
      is_called_(spec.router.n_experts, 0) {
  const size_t named_max = size_t{kRowsMax} * spec.router.n_used;
  for (Open& open : open_) open.guesses.reserve(kHorizonMax * named_max);
  reads_.reserve(named_max);
  nominees_.reserve(named_max);
}

std::span<const LayerForesight> Lookahead::layers(uint32_t ahead) const {
  return std::span(layers_).subspan(size_t{ahead - 1} * n_layers_, n_layers_);
}

LayerForesight& Lookahead::foresight(LayerIndex layer, uint32_t ahead) {
  return layers_[size_t{ahead - 1} * n_layers_ + layer.value];
}

const LayerForesight& Lookahead::foresight(LayerIndex layer, uint32_t ahead) const {
  return layers_[size_t{ahead - 1} * n_layers_ + layer.value];
}

size_t Lookahead::rank_place(LayerIndex layer, uint32_t ahead, uint32_t rank) const {
  return (size_t{ahead - 1} * n_layers_ + layer.value) * spec_.router.n_used + rank;
}

// The nearest layer first: its reads are the most urgent, and the likeliest to be right.
void Lookahead::look(LayerIndex next, std::span<const LayerWeights> weights, const float* x,
                     uint32_t n_rows) {
  if (prefetch_ == Prefetch::kOff || n_rows > kRowsMax) return;
  const CauseScope scope(timer_, Cause::kLookahead);
  if (next.value == 0)  // a forward that ended early may have left guesses
    for (Open& open : open_) open.guesses.clear();
  for (uint32_t ahead = 1; ahead <= std::min<size_t>(horizon_, weights.size()); ++ahead) {
    const LayerIndex layer(next.value + ahead - 1);
    if (wants(layer, ahead)) guess(layer, ahead, weights[ahead - 1], x, n_rows);
  }
}

std::span<const uint16_t> Lookahead::poll(const LayerWeights& weights, const float* x,
                                          uint32_t n_rows) {
  const CauseScope scope(timer_, Cause::kLookahead);
  votes_.assign(spec_.router.n_experts, 0);
  const uint32_t n_groups = std::min(kPollGroups, (n_rows + kRowsMax - 1) / kRowsMax);
  for (uint32_t group = 0; group < n_groups; ++group) {
    const auto first = static_cast<uint32_t>(uint64_t{group} * n_rows / n_groups);
    const uint32_t n = std::min(kRowsMax, n_rows - first);
    const Routing& routing = gate_.route(weights, x + size_t{first} * spec_.hidden, n);
    const auto named = std::span(routing.experts).first(size_t{n} * spec_.router.n_used);
    for (const ExpertId expert : named) ++votes_[expert.value];
  }
  return votes_;
}

bool Lookahead::wants(LayerIndex layer, uint32_t ahead) {
  const bool can_read = tier_.resident_count(layer) != spec_.router.n_experts;
  const bool can_copy = device_ != nullptr && device_->wants_nominees(layer);
  if (!can_read && !can_copy) return false;
  LayerForesight& known = foresight(layer, ahead);
  const auto fails = [](const RecentRate& rate) {
    return rate.samples() >= kRestSamples &&
           rate.estimate(kPriorRate, kPriorWeight) < kWorthReading / 2;
  };
  const bool is_vain = (!can_read || fails(known.missing)) && (!can_copy || fails(known.nominated));
  if (prefetch_ == Prefetch::kAuto && is_vain && ++known.skipped < kRestEvents) return false;
  known.skipped = 0;
  return true;
}

void Lookahead::guess(LayerIndex layer, uint32_t ahead, const LayerWeights& weights, const float* x,
                      uint32_t n_rows) {
  const Routing* routing = oracle_ == nullptr ? &gate_.route(weights, x, n_rows) : nullptr;
  Open& open = open_for(layer);
  if (open.layer != layer) open.guesses.clear();
  open.layer = layer;
  reads_.clear();
  for (uint32_t rank = 0; rank < spec_.router.n_used; ++rank) {
    for (uint32_t row = 0; row < n_rows; ++row) {
      if (routing != nullptr) {
        name(layer, ahead, rank, routing->experts[size_t{row} * spec_.router.n_used + rank]);
      } else if (const auto expert = oracle_->foretold(layer, row, rank, ahead)) {
        name(layer, ahead, rank, *expert);
      }
    }
  }
  tier_.prefetch(layer, reads_, ahead);
  if (device_ != nullptr) nominate(layer, ahead);
}

// All that is named: what is in VRAM already shouldn't leave it for another.
void Lookahead::nominate(LayerIndex layer, uint32_t ahead) {
  const float right = foresight(layer, ahead).nominated.estimate(kPriorRate, kPriorWeight);
  nominees_.clear();
  for (const Guess& guess : open_for(layer).guesses)
    if (guess.ahead == ahead) nominees_.push_back({guess.expert, right});
  device_->nominate(layer, nominees_);
}

void Lookahead::name(LayerIndex layer, uint32_t ahead, uint32_t rank, ExpertId expert) {
  std::vector<Guess>& guesses = open_for(layer).guesses;
  bool resident = tier_.is_at_hand(layer, expert);
  bool in_vram = device_ != nullptr && device_->is_resident(layer, expert);
  const bool has_slot = resident;
  for (const Guess& guess : guesses) {
    if (guess.expert != expert) continue;
    if (guess.ahead == ahead) return;  // another row named it
    resident = guess.resident;         // if it has a slot now, the earlier guess gave it that
    in_vram = guess.in_vram;
  }
  guesses.push_back({expert, ahead, rank, resident, in_vram});
  if (!has_slot && worth_reading(layer, ahead, rank)) reads_.push_back(expert);
}

// What the drive makes unprofitable is read all the same now and then, to see whether it still is.
bool Lookahead::worth_reading(LayerIndex layer, uint32_t ahead, uint32_t rank) {
  if (prefetch_ == Prefetch::kAlways) return true;
  const float of_layer = foresight(layer, ahead).missing.estimate(kPriorRate, kPriorWeight);
  const float right = ranks_[rank_place(layer, ahead, rank)].estimate(of_layer, kPriorWeight);
  if (right < kWorthReading) return false;
  Distance& distance = distances_[ahead - 1];
  return right >= distance.payback.break_even() || ++distance.refused % kRefusedMax == 0;
}

void Lookahead::learn(LayerIndex layer, std::span<const ExpertCall> calls) {
  Open& open = open_for(layer);
  if (open.layer != layer || open.guesses.empty()) return;
  for (const ExpertCall& call : calls) is_called_[call.expert.value] = 1;
  for (const Guess& guess : open.guesses) {
    const bool hit = is_called_[guess.expert.value] != 0;
    LayerForesight& known = foresight(layer, guess.ahead);
    ++known.guesses;
    known.guessed_hits += hit ? 1 : 0;
    if (device_ != nullptr && !guess.in_vram) known.nominated.add(hit);
    if (guess.resident) continue;
    known.missing.add(hit);
    ranks_[rank_place(layer, guess.ahead, guess.rank)].add(hit);
    distances_[guess.ahead - 1].right.add(hit);
  }
  for (const ExpertCall& call : calls) is_called_[call.expert.value] = 0;
  open.guesses.clear();
  count_late();
  move_horizon();
}

void Lookahead::count_late() {
  const TierCounters& counters = tier_.counters();
  const uint64_t late = counters.prefetches_late - seen_late_;
  for (uint64_t i = 0; i < counters.prefetches_useful - seen_useful_; ++i) late_.add(i < late);
  seen_useful_ = counters.prefetches_useful;
  seen_late_ = counters.prefetches_late;
  for (uint32_t ahead = 1; ahead <= kHorizonMax; ++ahead)
    distances_[ahead - 1].payback.add(tier_.payback(ahead));
}

// Out while right guesses come late, or so late that they aren't read at all; in when they needn't
// be made so early. Back where it began when the farthest guesses are mostly wrong, or when even
// from there none pays.
void Lookahead::move_horizon() {
  if (rest_events_ > 0) --rest_events_;
  const Distance& farthest = distances_[horizon_ - 1];
  if (farthest.right.samples() < kRestSamples) return;
  const float right = farthest.right.estimate(kPriorRate, kPriorWeight);
  const bool is_refused = right >= kWorthReading && right < farthest.payback.break_even();
  if (horizon_ > 1 && (right < kWorthReading || (is_refused && horizon_ == kHorizonMax))) {
    rest_events_ = kHorizonRestEvents;
    return set_horizon(right < kWorthReading ? horizon_ - 1 : 1);
  }
  const bool knows_late = late_.samples() >= kRestSamples;
  const bool is_late = is_refused || (knows_late && late_.estimate(0, 0) > kLate);
  if (is_late && right >= kWorthReading && horizon_ < kHorizonMax && rest_events_ == 0)
    return set_horizon(horizon_ + 1);
  if (knows_late && late_.estimate(0, 0) < kInTime && horizon_ > 1) set_horizon(horizon_ - 1);
}

void Lookahead::set_horizon(uint32_t horizon) {
  horizon_ = horizon;
  late_ = {};
  distances_[horizon - 1].right = {};
}

}  // namespace offstage
