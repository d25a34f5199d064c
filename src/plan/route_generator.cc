#include "plan/route_generator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace offstage {

RouteGenerator::RouteGenerator(const RouteShape& shape, const RouteHabits& habits, uint64_t seed)
    : shape_(shape), habits_(habits), rng_(seed) {
  CHECK_GE(shape.n_used, 1u);
  CHECK_GE(shape.n_experts, shape.n_used);
  CHECK_GE(habits.word_classes, 1u);
  CHECK_GE(habits.conversation_tokens, 1u);
  shape_.has_probs = shape_.has_tokens = false;
  const size_t places = size_t{shape.n_layers} * shape.n_experts;
  const auto fill = [this](std::vector<float>& out, size_t n, double deviation) {
    out.resize(n);
    for (float& value : out) value = static_cast<float>(deviation) * bell();
  };
  fill(popularity_, places, habits.popularity);
  fill(words_, places * habits.word_classes, habits.word);
  topic_.resize(places);
  fill(mood_, places, habits.mood);
  // Two tokens' parts make a whim: their deviations add up to its own.
  const double each = habits.whim * std::sqrt(.5);
  fill(whim_, places, each);
  whim_each_ = static_cast<float>(each);
  const double kept = std::exp2(-1 / std::max(habits.mood_half_life, 1e-3));
  mood_kept_ = static_cast<float>(kept);
  // So that the mood's deviation stays what it is.
  mood_fresh_ = static_cast<float>(habits.mood * std::sqrt(1 - kept * kept));
  double sum = 0;
  for (uint32_t r = 1; r <= habits.word_classes; ++r)
    class_bounds_.push_back(sum += std::pow(r, -habits.word_exponent));
  for (double& bound : class_bounds_) bound /= sum;
  scores_.resize(shape.n_experts);
}

// Nearly normal with deviation 1: four 16-bit uniforms, whose sum has a variance of 4/12. Cheap,
// because a token takes one of them for every expert of every layer.
float RouteGenerator::bell() {
  const uint64_t bits = rng_.next_u64();
  const uint64_t sum =
      (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
  constexpr float kSqrt3 = 1.7320508f;
  return (static_cast<float>(sum) / 65536.0f - 2.0f) * kSqrt3;
}

void RouteGenerator::begin_conversation() {
  for (float& value : topic_) value = static_cast<float>(habits_.topic) * bell();
}

uint32_t RouteGenerator::draw_class() {
  const auto found = std::upper_bound(class_bounds_.begin(), class_bounds_.end(), rng_.uniform());
  return static_cast<uint32_t>(
      std::min<ptrdiff_t>(found - class_bounds_.begin(), habits_.word_classes - 1));
}

void RouteGenerator::call_layer(uint32_t layer, uint32_t word, std::vector<uint16_t>& out) {
  const size_t first = size_t{layer} * shape_.n_experts;
  const float* words = &words_[size_t{word} * shape_.n_layers * shape_.n_experts + first];
  for (uint32_t e = 0; e < shape_.n_experts; ++e) {
    float& mood = mood_[first + e];
    mood = mood_kept_ * mood + mood_fresh_ * bell();
    const float fresh = whim_each_ * bell();
    const float whim = std::exchange(whim_[first + e], fresh) + fresh;
    // In (0, 1): neither logarithm is of 0.
    const double u = (static_cast<double>(rng_.next_u64() >> 12) + 0.5) * 0x1.0p-52;
    const auto gumbel = static_cast<float>(-std::log(-std::log(u)));
    scores_[e] = {popularity_[first + e] + words[e] + topic_[first + e] + mood + whim + gumbel,
                  static_cast<uint16_t>(e)};
  }
  const auto best = scores_.begin() + shape_.n_used;
  std::partial_sort(scores_.begin(), best, scores_.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  for (auto call = scores_.begin(); call != best; ++call) out.push_back(call->second);
}

RouteLog RouteGenerator::draw(uint64_t n_tokens) {
  RouteLog log;
  log.shape = shape_;
  log.experts.reserve(n_tokens * shape_.calls_per_token());
  for (uint64_t t = 0; t < n_tokens; ++t) {
    if (t == 0 || rng_.below(habits_.conversation_tokens) == 0) {
      begin_conversation();
      log.starts.push_back(t);
    }
    const uint32_t word = draw_class();
    for (uint32_t l = 0; l < shape_.n_layers; ++l) call_layer(l, word, log.experts);
  }
  log.tokens.assign(n_tokens, -1);
  log.prefill.assign(n_tokens, 0);
  return log;
}

}  // namespace offstage
