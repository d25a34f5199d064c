#include "runtime/chunk_forecast.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace offstage {
namespace {

// Classes forget: about this many experts' fates count.
constexpr double kSamplesMax = 4096;
// A prior is worth this many of them.
constexpr double kPriorSamples = 8;
constexpr double kForgetLately = 7.0 / 8;  // per event
constexpr double kVotePriors[] = {0.5, 0.85, 0.95, 0.98, 0.99};

}  // namespace

ChunkForecast::ChunkForecast(const ExpertUsage& usage, uint32_t n_used, bool enabled)
    : usage_(usage), n_used_(n_used), enabled_(enabled), class_of_(usage.n_experts) {
  likely_.reserve(usage.n_experts);
}

// Calls come in bursts: half as many as expected, as if independent. Of the unknown: even chances.
double ChunkForecast::prior(size_t c) {
  if (c == 0) return 0.5;
  if (c >= kPastClasses) return kVotePriors[c - kPastClasses];
  const double expected = std::exp2(static_cast<double>(c) - 4);  // the class's least, c ≥ 2
  return 1 - std::exp(-expected / 2);
}

double ChunkForecast::probability(size_t c) const {
  return (classes_[c].called + prior(c) * kPriorSamples) / (classes_[c].n + kPriorSamples);
}

double ChunkForecast::calls_of(LayerIndex layer) const {
  const auto calls = std::span(usage_.calls).subspan(size_t{layer.value} * usage_.n_experts);
  return std::accumulate(calls.begin(), calls.begin() + usage_.n_experts, 0.0);
}

bool ChunkForecast::has_past(LayerIndex layer) const { return calls_of(layer) > 0; }

size_t ChunkForecast::class_of_past(double expected) {
  const double step = std::floor(std::log2(std::max(expected, 0.125))) + 4;
  return static_cast<size_t>(std::clamp(step, 1.0, double{kPastClasses - 1}));
}

size_t ChunkForecast::class_of_votes(uint16_t votes) {
  return kPastClasses + std::min<size_t>(std::bit_width(votes), kVoteClasses - 1);
}

std::span<const ExpertId> ChunkForecast::foretell(LayerIndex layer, uint32_t n_rows,
                                                  std::span<const uint16_t> votes) {
  likely_.clear();
  if (!enabled_) return likely_;
  open_ = true;
  open_layer_ = layer;
  const float* calls = &usage_.calls[size_t{layer.value} * usage_.n_experts];
  const bool is_pausing = lately_wrong_ > kWasteMax * lately_called_;
  const double total = calls_of(layer);
  for (uint32_t e = 0; e < usage_.n_experts; ++e) {
    size_t c = 0;
    if (total > 0) {
      c = class_of_past(static_cast<double>(calls[e]) / total * n_used_ * n_rows);
    } else if (!votes.empty()) {
      c = class_of_votes(votes[e]);
    }
    class_of_[e] = static_cast<uint8_t>(c);
    if (!is_pausing && probability(class_of_[e]) >= kSure) likely_.push_back(ExpertId(e));
  }
  return likely_;
}

void ChunkForecast::learn(LayerIndex layer, std::span<const ExpertCall> calls) {
  if (!open_ || layer != open_layer_) return;
  open_ = false;
  for (const uint8_t c : class_of_) ++classes_[c].n;
  for (const ExpertCall& call : calls) ++classes_[class_of_[call.expert.value]].called;
  lately_called_ = lately_called_ * kForgetLately + static_cast<double>(calls.size());
  lately_wrong_ *= kForgetLately;
  std::vector<bool> is_called(class_of_.size());
  for (const ExpertCall& call : calls) is_called[call.expert.value] = true;
  for (const ExpertId expert : likely_) lately_wrong_ += is_called[expert.value] ? 0 : 1;
  for (Class& c : classes_) {
    if (c.n <= kSamplesMax) continue;
    c.called *= kSamplesMax / c.n;
    c.n = kSamplesMax;
  }
}

}  // namespace offstage
