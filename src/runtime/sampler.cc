#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace offstage {

Status SamplerOptions::check() const {
  const auto finite = [](const char* flag, float value) -> Status {
    if (std::isfinite(value)) return {};
    return make_error(ErrorCode::kInvalidArgument, "{}: expected a finite number, found {}", flag,
                      value);
  };
  OFFSTAGE_TRY_VOID(finite("--temp", temperature));
  OFFSTAGE_TRY_VOID(finite("--top-p", top_p));
  OFFSTAGE_TRY_VOID(finite("--min-p", min_p));
  OFFSTAGE_TRY_VOID(finite("--repeat-penalty", repeat_penalty));
  if (repeat_penalty <= 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "--repeat-penalty: expected a number > 0, found {}", repeat_penalty);
  if (top_p < 0)
    return make_error(ErrorCode::kInvalidArgument, "--top-p: expected 0 to 1, found {}", top_p);
  if (min_p > 1)
    return make_error(ErrorCode::kInvalidArgument, "--min-p: expected 0 to 1, found {}", min_p);
  return {};
}

TokenId argmax(std::span<const float> logits) {
  TokenId best = 0;
  float top = -std::numeric_limits<float>::infinity();  // NaN never beats anything
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > top)) continue;
    top = logits[i];
    best = static_cast<TokenId>(i);
  }
  return best;
}

Sampler::Sampler(const SamplerOptions& options, uint32_t n_vocab)
    : options_(options), rng_(options.seed), logits_(n_vocab), penalised_(n_vocab, 0) {
  candidates_.reserve(n_vocab);
}

TokenId Sampler::sample(std::span<const float> logits, std::span<const TokenId> history) {
  CHECK_EQ(logits.size(), logits_.size());
  // A damaged model's NaN counts as impossible: compared as it is, it would break every order.
  std::transform(logits.begin(), logits.end(), logits_.begin(), [](float logit) {
    return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
  });
  penalise(history);
  if (options_.temperature <= 0) return argmax(logits_);
  keep_top_k();
  keep_top_p();
  keep_min_p();
  normalise(options_.temperature);
  double left = rng_.uniform();
  for (const Candidate& candidate : candidates_) {
    left -= candidate.probability;
    if (left < 0) return candidate.id;
  }
  return candidates_.back().id;  // rounding left a crumb
}

void Sampler::penalise(std::span<const TokenId> history) {
  if (options_.repeat_penalty == 1.0f || options_.repeat_last_n == 0) return;
  const size_t look_back =
      options_.repeat_last_n < 0
          ? history.size()
          : std::min<size_t>(history.size(), static_cast<size_t>(options_.repeat_last_n));
  const auto recent = history.subspan(history.size() - look_back);
  for (const TokenId id : recent) {
    if (penalised_[static_cast<size_t>(id)]) continue;
    penalised_[static_cast<size_t>(id)] = 1;
    float& logit = logits_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
  }
  for (const TokenId id : recent) penalised_[static_cast<size_t>(id)] = 0;
}

void Sampler::keep_top_k() {
  candidates_.clear();
  for (size_t i = 0; i < logits_.size(); ++i)
    candidates_.push_back({static_cast<TokenId>(i), logits_[i], 0});
  const size_t k = options_.top_k <= 0
                       ? candidates_.size()
                       : std::min(candidates_.size(), static_cast<size_t>(options_.top_k));
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(k),
                    candidates_.end(), [](const Candidate& a, const Candidate& b) {
                      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
                    });
  candidates_.resize(k);
}

// The smallest set whose probability (at temperature 1) reaches top_p; at least one.
void Sampler::keep_top_p() {
  if (options_.top_p >= 1) return;
  normalise(1);
  double sum = 0;
  size_t n = 0;
  while (n < candidates_.size() && sum < static_cast<double>(options_.top_p))
    sum += candidates_[n++].probability;
  candidates_.resize(std::max<size_t>(n, 1));
}

// Those at least min_p times as likely as the likeliest (at temperature 1).
void Sampler::keep_min_p() {
  if (options_.min_p <= 0) return;
  const float least = candidates_.front().logit + std::log(options_.min_p);
  size_t n = 1;
  while (n < candidates_.size() && candidates_[n].logit >= least) ++n;
  candidates_.resize(n);
}

void Sampler::normalise(double temperature) {
  const double top = static_cast<double>(candidates_.front().logit);
  double sum = 0;
  for (Candidate& candidate : candidates_) {
    candidate.probability = std::exp((static_cast<double>(candidate.logit) - top) / temperature);
    sum += candidate.probability;
  }
  for (Candidate& candidate : candidates_) candidate.probability /= sum;
}

}  // namespace offstage
