// One measurement of offstage bench: a prompt of so many tokens, or so many tokens one by one,
// repeated.
#pragma once

#include <atomic>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "plan/forecast_history.h"
#include "runtime/ceilings.h"
#include "runtime/session.h"
#include "runtime/spikes.h"

namespace offstage {

// As llama-bench has them: ppN is a prompt of N tokens, tgN a prompt of one token and N more, each
// given and not sampled. Exactly one of the two is not 0. With "@ dN" N others are in front, which
// don't count.
struct BenchTest {
  uint32_t n_prompt = 0, n_gen = 0, n_depth = 0;
  std::string name() const;
  uint32_t positions() const { return n_depth + n_prompt + n_gen + (n_gen == 0 ? 0 : 1); }
  uint32_t tokens() const { return n_prompt + n_gen; }  // that speed counts
};

// What is read: a text's tokens over and over, or seeded random ones.
struct BenchTokens {
  std::vector<TokenId> text;  // empty: random
  uint64_t seed = 1;
  uint32_t n_vocab = 0;
  // The first n tokens of repetition r. A text is the same in all of them.
  std::vector<TokenId> take(uint32_t n, uint32_t repetition) const;
};

struct BenchResult {
  BenchTest test;
  std::string ram;                     // as asked for; "default"
  std::vector<int64_t> samples_ns;     // by repetition
  std::vector<int64_t> ttft_ns;        // by repetition
  std::vector<TokenRecord> prompts;    // by repetition
  std::vector<TokenRecord> tokens;     // of all repetitions, one after another
  nlohmann::ordered_json tokens_json;  // `index` counts through all repetitions
  Ceilings ceilings;
  SpikeReport spikes;  // of the tokens
  std::optional<KeptForecast> forecast;

  double tokens_per_s(int64_t ns) const;
  double mean_tokens_per_s() const;
  double stddev_tokens_per_s() const;  // of the samples (n − 1); 0 for one
};

// A test's repetitions, one after another in one sequence of a runtime.
class BenchSession {
 public:
  // Everything outlives it.
  BenchSession(Runtime& runtime, const BenchTokens& tokens, const BenchTest& test,
               const std::atomic<bool>& cancel)
      : runtime_(runtime), tokens_(tokens), test_(test), session_(runtime, SequenceId(0)) {
    options_.cancel = &cancel;
  }
  // The test's `n_depth` tokens (not 0), before the first repetition; they stay for all of them.
  // Errors: the session's; kCancelled.
  Result<GenerationRecord> fill();
  // Runs the test once more and adds what it took. Errors as above.
  Result<GenerationRecord> run_once(BenchResult& result);

 private:
  Runtime& runtime_;
  const BenchTokens& tokens_;
  const BenchTest test_;
  GenerateOptions options_;
  Session session_;
};

double mean_of(std::span<const double> values);
double stddev_of(std::span<const double> values);  // of a sample: n − 1

}  // namespace offstage
