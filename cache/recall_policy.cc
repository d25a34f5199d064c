#include "cache/recall_policy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace offstage {
namespace {

// Exponential means of the calls over about 1, 4, 16, 64 and 256 tokens: e^(−1/τ).
constexpr std::array kMeanKeeps = {0.36787944f, 0.77880078f, 0.93941306f, 0.98449644f, 0.99610137f};
constexpr size_t kMeans = kMeanKeeps.size();
constexpr size_t kGateMean = 1;       // the mean whose horizon the router weights share
constexpr size_t kRootMean = 3;       // the mean that also enters as its root
constexpr float kLongKeep = 0.9998f;  // half after 3,466 tokens
constexpr float kLongSeed = 1024;     // tokens that an earlier run is worth
constexpr float kLongStart = 16;      // tokens that the uniform start is worth

// The past: tokens kept, what likeness keeps per layer and per token, its tokens' horizons.
constexpr uint32_t kPastTokens = 256;
constexpr float kLikenessPerLayer = 0.9f;
constexpr float kLikenessPerToken = 0.5f;
constexpr std::array kHorizons = {0.0f, 0.6f, 0.85f, 0.95f};
constexpr float kUniformShare = 1e-4f;  // of an even spread, so that no past is no division by 0

// Temporal difference.
constexpr float kDiscount = 0.8f;
constexpr float kRate = 0.02f;
constexpr float kSquaresKeep = 0.9995f;

enum Feature : uint32_t {
  kOne,
  kMean0,
  kRecency = kMean0 + kMeans,
  kGateNow,
  kGateMeanOf,
  kLong,
  kRootOfMean,
  kNext,  // horizons 0 and 0.6 with their roots, then 0.85 and 0.95
  kNextRoot,
  kSoon,
  kSoonRoot,
  kLater,
  kMuchLater,
  kFeatures
};
// Fitted by least squares on 3,000 tokens of gpt-oss-20b, all layers pooled.
constexpr std::array<float, kFeatures> kStart = {
    -0.021f, -0.140f, -0.136f, 0.354f,  -0.377f, -0.147f, 0.191f,  -0.080f, 0.493f,
    0.144f,  0.217f,  0.258f,  -0.173f, 0.068f,  0.765f,  -0.190f, -0.058f};

using Features = std::array<float, kFeatures>;

float dot(const Features& a, const Features& b) {
  float sum = 0;
  for (uint32_t i = 0; i < kFeatures; ++i) sum += a[i] * b[i];
  return sum;
}

float power(float base, uint32_t exponent) {
  float result = 1;
  for (; exponent != 0; exponent >>= 1, base *= base)
    if ((exponent & 1) != 0) result *= base;
  return result;
}

// Which experts were called, for the latest tokens: one bit each, [token % kPastTokens][layer].
class Past {
 public:
  Past(uint32_t n_layers, uint32_t n_experts)
      : n_layers_(n_layers),
        words_((n_experts + 63) / 64),
        bits_(size_t{kPastTokens} * n_layers * words_, 0),
        likeness_(kPastTokens, 0) {}

  // A forward of `n_rows` tokens starts: they take the oldest ones' places.
  void advance(uint32_t n_rows) {
    for (uint32_t i = 0; i < std::min(n_rows, kPastTokens); ++i) {
      const uint64_t token = n_tokens_ + n_rows - 1 - i;
      std::fill_n(words_of(token, 0), size_t{n_layers_} * words_, 0);
    }
    // Like the present so far: as the token before each was like the token before this one.
    if (n_rows == 1)
      for (uint64_t t = n_tokens_; t-- > oldest(n_tokens_);)
        likeness(t) = t == oldest(n_tokens_) ? 0 : kLikenessPerToken * likeness(t - 1);
    else
      std::fill(likeness_.begin(), likeness_.end(), 0.0f);
    n_rows_ = n_rows;
    n_tokens_ += n_rows;
  }
  void set(uint32_t layer, uint32_t row, ExpertId expert) {
    if (row >= n_rows_ || n_rows_ - row > kPastTokens) return;
    words_of(n_tokens_ - n_rows_ + row, layer)[expert.value / 64] |= uint64_t{1}
                                                                     << (expert.value % 64);
  }

  // For each expert, per horizon, the share of the like tokens' followers that called it.
  void followers(uint32_t layer, uint32_t n_used, std::span<std::array<float, 4>> shares) {
    const float spread =
        kUniformShare * static_cast<float>(n_used) / static_cast<float>(shares.size());
    for (auto& share : shares) share.fill(spread);
    float total = kUniformShare;
    std::array<float, 4> followed{};  // by likeness: weight of the tokens before, per horizon
    const uint64_t now = n_tokens_ - 1;
    for (uint64_t t = oldest(now); t < now; ++t) {
      const float weight = compare(layer, t, now, n_used);
      total += weight;
      for (size_t h = 0; h < 4; ++h)
        followed[h] = kHorizons[h] * followed[h] + (1 - kHorizons[h]) * weight;
      const uint64_t* next = words_of(t + 1, layer);
      for (uint32_t w = 0; w < words_; ++w)
        for (uint64_t left = next[w]; left != 0; left &= left - 1) {
          auto& share = shares[w * 64 + static_cast<uint32_t>(std::countr_zero(left))];
          for (size_t h = 0; h < 4; ++h) share[h] += followed[h];
        }
    }
    const float scale = 1 / total;
    for (auto& share : shares)
      for (float& s : share) s *= scale;
  }

 private:
  // The present takes one of the places, so kPastTokens − 1 are before it.
  static uint64_t oldest(uint64_t now) { return now - std::min<uint64_t>(now, kPastTokens - 1); }
  uint64_t* words_of(uint64_t token, uint32_t layer) {
    return &bits_[(token % kPastTokens * n_layers_ + layer) * words_];
  }
  float& likeness(uint64_t token) { return likeness_[token % kPastTokens]; }
  float compare(uint32_t layer, uint64_t token, uint64_t now, uint32_t n_used) {
    const uint64_t* a = words_of(token, layer);
    const uint64_t* b = words_of(now, layer);
    uint32_t same = 0;
    for (uint32_t w = 0; w < words_; ++w) same += static_cast<uint32_t>(std::popcount(a[w] & b[w]));
    float& like = likeness(token);
    like = kLikenessPerLayer * like + static_cast<float>(same) / static_cast<float>(n_used);
    const float share = like * (1 - kLikenessPerLayer);
    const float squared = share * share;
    return squared * squared * squared * squared;
  }

  uint32_t n_layers_, words_;
  std::vector<uint64_t> bits_;
  std::vector<float> likeness_;  // to the newest token
  uint64_t n_tokens_ = 0;
  uint32_t n_rows_ = 0;  // of the forward under way: the newest tokens
};

// What a layer's experts did, and the model that reads it.
class LayerModel {
 public:
  LayerModel(uint32_t n_experts, uint32_t n_used)
      : n_experts_(n_experts),
        experts_(n_experts),
        features_(n_experts),
        values_(n_experts, 0),
        weights_(kStart) {
    squares_.fill(1);
    const float uniform = static_cast<float>(n_used) / static_cast<float>(n_experts);
    for (Expert& expert : experts_) {
      expert.means.fill(uniform);
      expert.long_calls = uniform * kLongStart;
    }
  }

  void seed(std::span<const float> shares) {
    for (uint32_t e = 0; e < n_experts_; ++e) experts_[e].long_calls = shares[e] * kLongSeed;
    long_tokens_ = kLongSeed;
  }

  void count(const LayerEvent& event) {
    const auto rows = static_cast<float>(event.n_rows);
    std::array<float, kMeans> keeps;
    for (size_t m = 0; m < kMeans; ++m) keeps[m] = power(kMeanKeeps[m], event.n_rows);
    const float long_keep = power(kLongKeep, event.n_rows);
    for (Expert& expert : experts_) {
      for (size_t m = 0; m < kMeans; ++m) expert.means[m] *= keeps[m];
      expert.gate_mean *= keeps[kGateMean];
      expert.long_calls *= long_keep;
      expert.is_called = false;
      expert.gate_now = 0;
    }
    long_tokens_ = long_tokens_ * long_keep + rows;
    tokens_ += event.n_rows;
    float weight_sum = 0;
    for (const ExpertCall& call : event.calls) weight_sum += call.weight;
    for (const ExpertCall& call : event.calls) {
      Expert& expert = experts_[call.expert.value];
      const float share = static_cast<float>(call.uses) / rows;
      for (size_t m = 0; m < kMeans; ++m) expert.means[m] += (1 - keeps[m]) * share;
      expert.gate_now = weight_sum > 0 ? call.weight / weight_sum : 0;
      expert.gate_mean += (1 - keeps[kGateMean]) * expert.gate_now;
      expert.long_calls += static_cast<float>(call.uses);
      expert.last = tokens_;
      expert.is_called = true;
    }
  }

  void value(std::span<const std::array<float, 4>> followers, bool learns) {
    std::array<float, kFeatures> gradient{};
    for (uint32_t e = 0; e < n_experts_; ++e) {
      const Features now = features_of(experts_[e], followers[e]);
      if (learns) {
        const float reached =
            experts_[e].is_called ? 1 : std::clamp(dot(weights_, now), 0.0f, 1.0f);
        const float error = kDiscount * reached - dot(weights_, features_[e]);
        for (uint32_t i = 0; i < kFeatures; ++i) gradient[i] += error * features_[e][i];
      }
      features_[e] = now;
    }
    if (learns) learn(gradient);
    for (uint32_t e = 0; e < n_experts_; ++e) values_[e] = dot(weights_, features_[e]);
  }
  float value_of(uint32_t expert) const { return values_[expert]; }

 private:
  struct Expert {
    std::array<float, kMeans> means{};
    float gate_mean = 0, gate_now = 0;
    float long_calls = 0;
    uint64_t last = 0;  // tokens_ at the last call
    bool is_called = false;
  };

  Features features_of(const Expert& expert, const std::array<float, 4>& followers) const {
    Features f;
    f[kOne] = 1;
    for (size_t m = 0; m < kMeans; ++m) f[kMean0 + m] = expert.means[m];
    const uint64_t ago = expert.last == 0 ? 1000 : tokens_ - expert.last;
    f[kRecency] = 1 / (1 + static_cast<float>(ago));
    f[kGateNow] = expert.gate_now;
    f[kGateMeanOf] = expert.gate_mean;
    f[kLong] = expert.long_calls / long_tokens_;
    f[kRootOfMean] = std::sqrt(expert.means[kRootMean]);
    f[kNext] = followers[0];
    f[kNextRoot] = std::sqrt(followers[0]);
    f[kSoon] = followers[1];
    f[kSoonRoot] = std::sqrt(followers[1]);
    f[kLater] = followers[2];
    f[kMuchLater] = followers[3];
    return f;
  }
  // Each weight's step is scaled by its gradient's usual size; steps shrink as tokens pass.
  void learn(const std::array<float, kFeatures>& gradient) {
    const float step = kRate / std::sqrt(1 + 0.002f * static_cast<float>(tokens_));
    for (uint32_t i = 0; i < kFeatures; ++i) {
      squares_[i] = kSquaresKeep * squares_[i] + (1 - kSquaresKeep) * gradient[i] * gradient[i];
      weights_[i] += step * gradient[i] / (std::sqrt(squares_[i]) + 1e-9f);
    }
  }

  uint32_t n_experts_;
  std::vector<Expert> experts_;
  std::vector<Features> features_;  // at the last event
  std::vector<float> values_;
  Features weights_;
  std::array<float, kFeatures> squares_;
  uint64_t tokens_ = 0;
  float long_tokens_ = kLongStart;
};

class RecallPolicy final : public EvictionPolicy {
 public:
  explicit RecallPolicy(const PolicyShape& shape)
      : n_used_(shape.n_used),
        past_(shape.n_layers, shape.n_experts),
        layers_(shape.n_layers, LayerModel(shape.n_experts, shape.n_used)),
        followers_(shape.n_experts),
        was_single_(shape.n_layers, 0) {}

  std::string_view name() const override { return "recall"; }

  void on_event(const LayerEvent& event) override {
    const uint32_t l = event.layer.value;
    if (l <= last_layer_) past_.advance(event.n_rows);  // a new forward
    last_layer_ = l;
    for (size_t i = 0; i < event.row_experts.size(); ++i)
      past_.set(l, static_cast<uint32_t>(i / n_used_), event.row_experts[i]);
    if (event.row_experts.empty() && event.n_rows == 1)
      for (const ExpertCall& call : event.calls) past_.set(l, 0, call.expert);
    layers_[l].count(event);
    past_.followers(l, n_used_, followers_);
    const bool is_single = event.n_rows == 1;
    layers_[l].value(followers_, is_single && was_single_[l] != 0);
    was_single_[l] = is_single;
  }
  void seed(LayerIndex layer, std::span<const float> shares) override {
    layers_[layer.value].seed(shares);
  }
  double value(LayerIndex layer, ExpertId expert) const override {
    return static_cast<double>(layers_[layer.value].value_of(expert.value));
  }

 private:
  uint32_t n_used_;
  uint32_t last_layer_ = UINT32_MAX;
  Past past_;
  std::vector<LayerModel> layers_;
  std::vector<std::array<float, 4>> followers_;  // of the event
  std::vector<uint8_t> was_single_;              // by layer: the last event had one row
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_recall_policy(const PolicyShape& shape) {
  return std::make_unique<RecallPolicy>(shape);
}

}  // namespace offstage
