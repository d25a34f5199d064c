#include "app/bench_run.h"

#include <algorithm>
#include <cmath>

#include "app/record_json.h"
#include "base/rng.h"

namespace offstage {

std::string BenchTest::name() const {
  const std::string what = n_gen == 0 ? fmt::format("pp{}", n_prompt) : fmt::format("tg{}", n_gen);
  return n_depth == 0 ? what : fmt::format("{} @ d{}", what, n_depth);
}

std::vector<TokenId> BenchTokens::take(uint32_t n, uint32_t repetition) const {
  std::vector<TokenId> tokens(n);
  Rng rng(seed + repetition);
  for (uint32_t i = 0; i < n; ++i)
    tokens[i] = text.empty() ? static_cast<TokenId>(rng.below(n_vocab)) : text[i % text.size()];
  return tokens;
}

double BenchResult::tokens_per_s(int64_t ns) const {
  return test.tokens() * 1e9 / static_cast<double>(std::max<int64_t>(ns, 1));
}

double mean_of(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double stddev_of(std::span<const double> values) {
  if (values.size() < 2) return 0;
  const double mean = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

double BenchResult::mean_tokens_per_s() const {
  std::vector<double> speeds;
  for (const int64_t ns : samples_ns) speeds.push_back(tokens_per_s(ns));
  return mean_of(speeds);
}

double BenchResult::stddev_tokens_per_s() const {
  std::vector<double> speeds;
  for (const int64_t ns : samples_ns) speeds.push_back(tokens_per_s(ns));
  return stddev_of(speeds);
}

Result<GenerationRecord> BenchSession::fill() {
  return session_.feed(tokens_.take(test_.n_depth, 0), {}, options_);
}

Result<GenerationRecord> BenchSession::run_once(BenchResult& result) {
  const auto repetition = static_cast<uint32_t>(result.samples_ns.size());
  const std::vector<TokenId> all = tokens_.take(test_.positions(), repetition);
  const auto own = std::span(all).subspan(test_.n_depth);
  const size_t n_first = test_.n_gen == 0 ? test_.n_prompt : 1;
  session_.rewind(test_.n_depth);
  OFFSTAGE_TRY(GenerationRecord record,
               session_.feed(own.first(n_first), own.subspan(n_first), options_));
  result.ttft_ns.push_back(record.prefill.wall_ns);
  result.samples_ns.push_back(test_.n_gen == 0 ? record.prefill.wall_ns : record.decode_ns());
  result.prompts.push_back(record.prefill);
  for (auto& json : tokens_json(record.tokens, runtime_)) {
    json["repetition"] = repetition;
    json["index"] = result.tokens_json.size();
    result.tokens_json.push_back(std::move(json));
  }
  result.tokens.insert(result.tokens.end(), record.tokens.begin(), record.tokens.end());
  return record;
}

}  // namespace offstage
