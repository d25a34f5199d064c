#include "runtime/session.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {

std::string_view stop_reason_name(StopReason reason) {
  switch (reason) {
    case StopReason::kMaxTokens: return "length";
    case StopReason::kEndOfGeneration: return "stop";
    case StopReason::kContextFull: return "context_full";
    case StopReason::kCancelled: return "cancelled";
    case StopReason::kCallback: return "caller";
  }
  return "unknown";
}

Status Session::append(std::span<const TokenId> tokens, bool all_logits, const LogitsSink& sink,
                       const GenerateOptions& options) {
  const uint32_t rows_max = runtime_.forward().rows_max();
  const auto total = static_cast<uint32_t>(tokens.size());
  std::vector<Row> rows;
  rows.reserve(std::min(rows_max, total));
  for (uint32_t done = 0; done < total;) {
    if (options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed))
      return make_error(ErrorCode::kCancelled, "cancelled after {} of {} tokens", done, total);
    rows.clear();
    const uint32_t n = std::min(rows_max, total - done);
    const auto position = static_cast<uint32_t>(history_.size());
    for (uint32_t i = 0; i < n; ++i)
      rows.push_back(
          {sequence_, position + i, tokens[done + i], all_logits || done + i + 1 == total});
    // Before the forward: the sink (a sampler's repeat penalty) looks back at these tokens too.
    history_.insert(history_.end(), tokens.begin() + done, tokens.begin() + done + n);
    const Phase phase = total > 1 ? Phase::kPrefill : Phase::kDecode;
    OFFSTAGE_TRY_VOID(runtime_.forward().run(
        rows, phase, [&](size_t row, std::span<const float> logits) { sink(done + row, logits); }));
    done += n;
    if (options.on_prefill && total > 1) options.on_prefill(done, total);
  }
  return {};
}

TokenRecord Session::close_record(TokenId token) {
  TokenRecord record;
  record.token = token;
  record.causes = runtime_.timer().take();
  record.wall_ns = record.causes.total_ns();
  const TierCounters& tier = runtime_.tier().counters();
  const uint64_t bytes = runtime_.reads().counters().bytes_read;
  record.ram_hits = tier.ram_hits - seen_tier_.ram_hits;
  record.drive_reads = tier.drive_reads - seen_tier_.drive_reads;
  record.bytes_read = bytes - seen_bytes_;
  record.prefetched = tier.prefetches_useful - seen_tier_.prefetches_useful;
  record.prefetch_wasted_bytes = tier.prefetch_wasted_bytes - seen_tier_.prefetch_wasted_bytes;
  seen_tier_ = tier;
  seen_bytes_ = bytes;
  return record;
}

Result<Generation> Session::generate(std::span<const TokenId> prompt, Sampler& sampler,
                                     const GenerateOptions& options) {
  if (prompt.empty())
    return make_error(ErrorCode::kInvalidArgument,
                      "the prompt is empty: at least one token is "
                      "needed to start");
  const uint32_t context = runtime_.options().context;
  if (history_.size() + prompt.size() > context)
    return make_error(ErrorCode::kBudget,
                      "{} tokens of conversation and {} of prompt don't fit the context of {}; "
                      "raise -c",
                      history_.size(), prompt.size(), context);
  Generation generation;
  generation.record.prompt_tokens = static_cast<uint32_t>(prompt.size());
  generation.record.tokens.reserve(std::min(options.max_tokens, context));
  close_record(kNoToken);  // what came before isn't this generation's

  TokenId next = kNoToken;
  const LogitsSink sample = [&](size_t, std::span<const float> logits) {
    const CauseScope scope(runtime_.timer(), Cause::kSample);
    next = sampler.sample(logits, history_);
  };
  const auto cancelled = [&](const Status& status) {
    return !status && status.error().code == ErrorCode::kCancelled;
  };
  Status status = append(prompt, false, sample, options);
  generation.record.prefill = close_record(kNoToken);
  while (status) {
    if (generation.tokens.size() >= options.max_tokens) break;
    if (!options.ignore_eos &&
        (runtime_.tokenizer().is_end_of_generation(next) ||
         std::find(options.stops.begin(), options.stops.end(), next) != options.stops.end())) {
      generation.stop = StopReason::kEndOfGeneration;
      break;
    }
    generation.tokens.push_back(next);
    const bool go_on = !options.on_token || options.on_token(next);
    if (!go_on) generation.stop = StopReason::kCallback;
    if (!go_on || generation.tokens.size() >= options.max_tokens) break;
    if (history_.size() >= context) {
      generation.stop = StopReason::kContextFull;
      break;
    }
    const TokenId current = next;
    status = append({&current, 1}, false, sample, options);
    if (status) generation.record.tokens.push_back(close_record(current));
  }
  if (cancelled(status)) {
    generation.stop = StopReason::kCancelled;
    return generation;
  }
  OFFSTAGE_TRY_VOID(std::move(status));
  return generation;
}

void Session::rewind(size_t n) {
  CHECK_LE(n, history_.size());
  history_.resize(n);
}

Status Session::score(std::span<const TokenId> tokens, const LogitsSink& sink,
                      const std::atomic<bool>* cancel) {
  GenerateOptions options;
  options.cancel = cancel;
  return append(tokens, true, sink, options);
}

}  // namespace offstage
