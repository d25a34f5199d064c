// A conversation: tokens in, tokens out, with a record of what each one cost.
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "runtime/runtime.h"
#include "runtime/sampler.h"
#include "runtime/token_record.h"

namespace offstage {

enum class StopReason { kMaxTokens, kEndOfGeneration, kContextFull, kCancelled, kCallback };
std::string_view stop_reason_name(StopReason reason);  // published in JSON

struct GenerateOptions {
  uint32_t max_tokens = 128;
  bool ignore_eos = false;
  std::span<const TokenId> stops = {};        // end a generation too, unless ignore_eos
  const std::atomic<bool>* cancel = nullptr;  // looked at between forwards
  // Rows done of rows to do, after each prefill chunk.
  std::function<void(uint32_t done, uint32_t total)> on_prefill;
  // Every token as soon as it is known; false ends the generation.
  std::function<bool(TokenId)> on_token;
  // What a token cost, as soon as that is known.
  std::function<void(const TokenRecord&)> on_record;
};

struct Generation {
  std::vector<TokenId> tokens;
  StopReason stop = StopReason::kMaxTokens;
  GenerationRecord record;
};

class Session {
 public:
  Session(Runtime& runtime, SequenceId sequence) : runtime_(runtime), sequence_(sequence) {}
  ~Session() { runtime_.kv().release(sequence_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Appends the prompt (at least one token, kInvalidArgument otherwise; kBudget if it doesn't fit
  // the context) and generates. The first token counts as decode's; prefill ends with its logits.
  Result<Generation> generate(std::span<const TokenId> prompt, Sampler& sampler,
                              const GenerateOptions& options);

  // For measurements: the prompt (as generate() takes it), then each of `then` as if it had been
  // sampled. Errors: generate()'s, and kCancelled.
  Result<GenerationRecord> feed(std::span<const TokenId> prompt, std::span<const TokenId> then,
                                const GenerateOptions& options);

  // Appends tokens and hands out logits after each: `sink(i, logits)` after tokens[i].
  Status score(std::span<const TokenId> tokens, const LogitsSink& sink,
               const std::atomic<bool>* cancel);

  std::span<const TokenId> history() const { return history_; }

  // Forgets all but the first n tokens (at most those there are): the next ones take their place,
  // and nobody looks beyond the last.
  void rewind(size_t n);

 private:
  Status check_prompt(size_t n_tokens) const;
  void begin_record(GenerationRecord& record, size_t n_prompt, size_t n_max);
  Status append(std::span<const TokenId> tokens, bool all_logits, const LogitsSink& sink,
                const GenerateOptions& options);
  // Of what happened since the last one; `next` is the index of the token that follows.
  TokenRecord close_record(TokenId token, uint32_t next);
  // The same of the token that was just decoded, behind the others.
  void add_record(GenerationRecord& record, TokenId token);

  Runtime& runtime_;
  SequenceId sequence_;
  std::vector<TokenId> history_;
  TierCounters seen_tier_;
  uint64_t seen_vram_hits_ = 0;
  uint64_t seen_bytes_ = 0;
  ProcessLoad seen_load_;
};

}  // namespace offstage
