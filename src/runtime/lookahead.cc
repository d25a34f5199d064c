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

}  // namespace

void RecentRate::add(bool hit) {
  hits_ = hits_ * kForget + (hit ? 1 : 0);
  n_ = n_ * kForget + 1;
}

Lookahead::Lookahead(const ModelSpec& spec, const Compute& compute, RamTier& tier,
                     CauseTimer& timer, Prefetch prefetch)
    : spec_(spec),
      tier_(tier),
      timer_(timer),
      prefetch_(prefetch),
      gate_(spec, compute, kRowsMax),
      layers_(spec.n_layers - spec.n_dense_layers),
      ranks_(layers_.size() * spec.router.n_used),
      skipped_(layers_.size(), 0),
      is_called_(spec.router.n_experts, 0) {
  open_.reserve(size_t{kRowsMax} * spec.router.n_used);
  reads_.reserve(open_.capacity());
}

bool Lookahead::wants(LayerIndex layer, uint32_t n_rows) {
  if (prefetch_ == Prefetch::kOff || n_rows > kRowsMax) return false;
  if (tier_.resident_count(layer) == spec_.router.n_experts) return false;
  const RecentRate& missing = layers_[layer.value].missing;
  const bool fails = prefetch_ == Prefetch::kAuto && missing.samples() >= kRestSamples &&
                     missing.estimate(kPriorRate, kPriorWeight) < kWorthReading / 2;
  if (fails && ++skipped_[layer.value] < kRestEvents) return false;
  skipped_[layer.value] = 0;
  return true;
}

void Lookahead::guess(LayerIndex layer, const LayerWeights& weights, const float* x,
                      uint32_t n_rows) {
  const CauseScope scope(timer_, Cause::kLookahead);
  const Routing* routing = oracle_ == nullptr ? &gate_.route(weights, x, n_rows) : nullptr;

  open_layer_ = layer;
  open_.clear();
  reads_.clear();
  for (uint32_t rank = 0; rank < spec_.router.n_used; ++rank) {
    for (uint32_t row = 0; row < n_rows; ++row) {
      if (routing != nullptr) {
        name(layer, rank, routing->experts[size_t{row} * spec_.router.n_used + rank]);
      } else if (const auto expert = oracle_->foretold(layer, row, rank)) {
        name(layer, rank, *expert);
      }
    }
  }
  tier_.prefetch(layer, reads_);
}

void Lookahead::name(LayerIndex layer, uint32_t rank, ExpertId expert) {
  const auto same = [&](const Guess& guess) { return guess.expert == expert; };
  if (std::any_of(open_.begin(), open_.end(), same)) return;
  const bool resident = tier_.is_resident(layer, expert);
  open_.push_back({expert, rank, resident});
  if (!resident && worth_reading(layer, rank)) reads_.push_back(expert);
}

bool Lookahead::worth_reading(LayerIndex layer, uint32_t rank) const {
  if (prefetch_ == Prefetch::kAlways) return true;
  const float of_layer = layers_[layer.value].missing.estimate(kPriorRate, kPriorWeight);
  const RecentRate& of_rank = ranks_[size_t{layer.value} * spec_.router.n_used + rank];
  return of_rank.estimate(of_layer, kPriorWeight) >= kWorthReading;
}

void Lookahead::learn(LayerIndex layer, std::span<const ExpertCall> calls) {
  if (open_.empty() || open_layer_ != layer) return;
  for (const ExpertCall& call : calls) is_called_[call.expert.value] = 1;
  LayerForesight& foresight = layers_[layer.value];
  for (const Guess& guess : open_) {
    const bool hit = is_called_[guess.expert.value] != 0;
    ++foresight.guesses;
    foresight.guessed_hits += hit ? 1 : 0;
    if (guess.resident) continue;
    foresight.missing.add(hit);
    ranks_[size_t{layer.value} * spec_.router.n_used + guess.rank].add(hit);
  }
  for (const ExpertCall& call : calls) is_called_[call.expert.value] = 0;
  open_.clear();
}

}  // namespace offstage
