#include "runtime/chunk_forecast.h"

#include <algorithm>
#include <cmath>

namespace offstage {
namespace {

// Classes forget: about this many experts' fates count.
constexpr double kSamplesMax = 4096;
// A prior is worth this many of them.
constexpr double kPriorSamples = 8;
constexpr double kForgetLately = 7.0 / 8;  // per event

}  // namespace

ChunkForecast::ChunkForecast(const ExpertUsage& usage, uint32_t n_used, bool enabled)
    : usage_(usage), n_used_(n_used), enabled_(enabled), class_of_(usage.n_experts) {
  likely_.reserve(usage.n_experts);
}

// Calls come in bursts: half as many as expected, as if independent. Of the unknown: even chances.
double ChunkForecast::prior(size_t c) {
  if (c == 0) return 0.5;
  const double expected = std::exp2(static_cast<double>(c) - 4);  // the class's least, c ≥ 2
  return 1 - std::exp(-expected / 2);
}

double ChunkForecast::probability(size_t c) const {
  return (classes_[c].called + prior(c) * kPriorSamples) / (classes_[c].n + kPriorSamples);
}

std::span<const ExpertId> ChunkForecast::foretell(LayerIndex layer, uint32_t n_rows) {
  likely_.clear();
  if (!enabled_) return likely_;
  open_ = true;
  open_layer_ = layer;
  const float* calls = &usage_.calls[size_t{layer.value} * usage_.n_experts];
  const bool is_pausing = lately_wrong_ > kWasteMax * lately_called_;
  double total = 0;
  for (uint32_t e = 0; e < usage_.n_experts; ++e) total += static_cast<double>(calls[e]);
  for (uint32_t e = 0; e < usage_.n_experts; ++e) {
    const double expected =
        total == 0 ? 0 : static_cast<double>(calls[e]) / total * n_used_ * n_rows;
    const double step = std::floor(std::log2(std::max(expected, 0.125))) + 4;
    class_of_[e] =
        total == 0 ? 0 : static_cast<uint8_t>(std::clamp(step, 1.0, double{kClasses - 1}));
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
