#include "runtime/session.h"

#include <algorithm>

#include "base/check.h"

namespace offstage {
namespace {

// What a generation does when it does nothing that has a cause of its own; so none of its time is
// nobody's.
constexpr Cause kBetweenForwards = Cause::kSample;

// What the caller does with a token is the caller's time. False if it wants no more.
bool tell(const GenerateOptions& options, TokenId token, CauseTimer& timer) {
  const CauseScope scope(timer, Cause::kCaller);
  return !options.on_token || options.on_token(token);
}

void tell(const GenerateOptions& options, const TokenRecord& record, CauseTimer& timer) {
  const CauseScope scope(timer, Cause::kCaller);
  if (options.on_record) options.on_record(record);
}

void tell_prefill(const GenerateOptions& options, uint32_t done, uint32_t total,
                  CauseTimer& timer) {
  const CauseScope scope(timer, Cause::kCaller);
  if (options.on_prefill) options.on_prefill(done, total);
}

}  // namespace

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
    if (total > 1) tell_prefill(options, done, total, runtime_.timer());
  }
  return {};
}

TokenRecord Session::close_record(TokenId token, uint32_t next) {
  TokenRecord record;
  record.token = token;
  // The next interval begins at the reading that ends this one; writing this one down is in it.
  const CauseScope scope(runtime_.timer(), Cause::kRecord);
  record.causes = runtime_.timer().take();
  record.wall_ns = record.causes.total_ns();
  record.began_ns = runtime_.timer().since_ns() - record.wall_ns;
  record.trace = runtime_.trace().take(next);
  const ProcessLoad load = runtime_.load();
  record.load = load - seen_load_;
  seen_load_ = load;
  const std::span<const int16_t> celsius = runtime_.drive_celsius();
  std::copy_n(celsius.begin(), std::min(celsius.size(), record.drive_celsius.size()),
              record.drive_celsius.begin());
  const TierCounters& tier = runtime_.tier().counters();
  const uint64_t bytes = runtime_.reads().counters().bytes_read;
  const DeviceExperts* device = runtime_.device_experts();
  const uint64_t vram_hits = device == nullptr ? 0 : device->hits();
  record.vram_hits = vram_hits - seen_vram_hits_;
  seen_vram_hits_ = vram_hits;
  record.ram_hits = tier.ram_hits - seen_tier_.ram_hits;
  record.drive_reads = tier.drive_reads - seen_tier_.drive_reads;
  record.bytes_read = bytes - seen_bytes_;
  record.prefetched = tier.prefetches_useful - seen_tier_.prefetches_useful;
  record.prefetch_useful_bytes = tier.prefetch_useful_bytes - seen_tier_.prefetch_useful_bytes;
  record.prefetch_wasted_bytes = tier.prefetch_wasted_bytes - seen_tier_.prefetch_wasted_bytes;
  seen_tier_ = tier;
  seen_bytes_ = bytes;
  return record;
}

void Session::add_record(GenerationRecord& record, TokenId token) {
  const CauseScope scope(runtime_.timer(), Cause::kRecord);
  record.tokens.push_back(close_record(token, static_cast<uint32_t>(record.tokens.size() + 1)));
}

Status Session::check_prompt(size_t n_tokens) const {
  if (n_tokens == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "the prompt is empty: at least one token is "
                      "needed to start");
  const uint32_t context = runtime_.options().context;
  if (history_.size() + n_tokens > context)
    return make_error(ErrorCode::kBudget,
                      "{} tokens of conversation and {} of prompt don't fit the context of {}; "
                      "raise -c",
                      history_.size(), n_tokens, context);
  return {};
}

void Session::begin_record(GenerationRecord& record, size_t n_prompt, size_t n_max) {
  record.prompt_tokens = static_cast<uint32_t>(n_prompt);
  record.tokens.reserve(std::min<size_t>(n_max, runtime_.options().context));
  close_record(kNoToken, kPromptToken);  // what came before isn't this generation's
  runtime_.trace().clear_rings();
  runtime_.workers().clear_spans();
}

Result<GenerationRecord> Session::feed(std::span<const TokenId> prompt,
                                       std::span<const TokenId> then,
                                       const GenerateOptions& options) {
  const CauseScope scope(runtime_.timer(), kBetweenForwards);
  OFFSTAGE_TRY_VOID(check_prompt(prompt.empty() ? 0 : prompt.size() + then.size()));
  GenerationRecord record;
  begin_record(record, prompt.size(), then.size());
  const LogitsSink ignore = [](size_t, std::span<const float>) {};
  OFFSTAGE_TRY_VOID(append(prompt, false, ignore, options));
  record.prefill = close_record(kNoToken, 0);
  for (const TokenId token : then) {
    OFFSTAGE_TRY_VOID(append({&token, 1}, false, ignore, options));
    add_record(record, token);
    tell(options, record.tokens.back(), runtime_.timer());
  }
  return record;
}

Result<Generation> Session::generate(std::span<const TokenId> prompt, Sampler& sampler,
                                     const GenerateOptions& options) {
  const CauseScope scope(runtime_.timer(), kBetweenForwards);
  OFFSTAGE_TRY_VOID(check_prompt(prompt.size()));
  const uint32_t context = runtime_.options().context;
  Generation generation;
  begin_record(generation.record, prompt.size(), options.max_tokens);

  TokenId next = kNoToken;
  const LogitsSink sample = [&](size_t, std::span<const float> logits) {
    const CauseScope scope(runtime_.timer(), Cause::kSample);
    next = sampler.sample(logits, history_);
  };
  const auto cancelled = [&](const Status& status) {
    return !status && status.error().code == ErrorCode::kCancelled;
  };
  Status status = append(prompt, false, sample, options);
  generation.record.prefill = close_record(kNoToken, 0);
  while (status) {
    if (generation.tokens.size() >= options.max_tokens) break;
    if (!options.ignore_eos &&
        (runtime_.tokenizer().is_end_of_generation(next) ||
         std::find(options.stops.begin(), options.stops.end(), next) != options.stops.end())) {
      generation.stop = StopReason::kEndOfGeneration;
      break;
    }
    generation.tokens.push_back(next);
    const bool go_on = tell(options, next, runtime_.timer());
    if (!go_on) generation.stop = StopReason::kCallback;
    if (!go_on || generation.tokens.size() >= options.max_tokens) break;
    if (history_.size() >= context) {
      generation.stop = StopReason::kContextFull;
      break;
    }
    const TokenId current = next;
    status = append({&current, 1}, false, sample, options);
    if (!status) break;
    add_record(generation.record, current);
    tell(options, generation.record.tokens.back(), runtime_.timer());
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
