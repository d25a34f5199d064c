// The next token from logits: repeat penalty, top-k, top-p, min-p, temperature, draw; in that
// order, with llama.cpp's meanings and defaults.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/rng.h"
#include "base/types.h"

namespace offstage {

struct SamplerOptions {
  float temperature = 0.8f;     // ≤ 0: greedy
  int32_t top_k = 40;           // ≤ 0: all
  float top_p = 0.95f;          // ≥ 1: off
  float min_p = 0.05f;          // ≤ 0: off
  float repeat_penalty = 1.0f;  // 1: off
  int32_t repeat_last_n = 64;   // tokens looked back at; −1: all, 0: off
  uint64_t seed = 0;

  // kInvalidArgument naming the flag: NaN, a penalty ≤ 0, top_p < 0 …
  Status check() const;
};

class Sampler {
 public:
  Sampler(const SamplerOptions& options, uint32_t n_vocab);

  // Greedy takes the lowest id among equal logits. `history`: prompt and answer so far.
  TokenId sample(std::span<const float> logits, std::span<const TokenId> history);

 private:
  struct Candidate {
    TokenId id;
    float logit;
    double probability;
  };
  void penalise(std::span<const TokenId> history);
  void keep_top_k();
  void keep_top_p();
  void keep_min_p();
  void normalise(double temperature);

  SamplerOptions options_;
  Rng rng_;
  std::vector<float> logits_;
  std::vector<Candidate> candidates_;  // by falling logit once top-k has run
  std::vector<uint8_t> penalised_;     // by token id: already penalised in this call
};

TokenId argmax(std::span<const float> logits);

}  // namespace offstage
