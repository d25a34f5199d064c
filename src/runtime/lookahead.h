// Which experts a coming layer will call, guessed before that layer is reached.
//
// The residual stream changes little from one layer to the next, so a layer's own norm and router,
// applied to the stream as it is one layer early, name most of the experts that it will call. The
// guess starts while this layer's experts compute: its reads fill the time in which the drive has
// nothing to do, because the next layer's calls aren't known yet.
//
// Every guess is held against the truth, and only places of the guess that have proven right often
// enough are read: per layer and rank, among experts that weren't resident (the resident ones,
// often called, are easy to guess and cost nothing). A router that can't be guessed switches the
// reads off by itself, and most of the guessing too. An oracle (route_replay.h) may guess in the
// gate's place. Decode thread only; never changes a bit of a result.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/cause_timer.h"
#include "cache/ram_tier.h"
#include "model/spec.h"
#include "runtime/compute.h"
#include "runtime/gate_guess.h"
#include "runtime/options.h"
#include "runtime/route_replay.h"
#include "runtime/weights.h"

namespace offstage {

// A rate that forgets: about the last 32 samples count.
class RecentRate {
 public:
  void add(bool hit);
  // With `weight` samples' worth of belief in `prior`.
  float estimate(float prior, float weight) const {
    return (hits_ + prior * weight) / (n_ + weight);
  }
  float samples() const { return n_; }

 private:
  float hits_ = 0, n_ = 0;
};

// What is known of a layer's guesses.
struct LayerForesight {
  uint64_t guesses = 0;       // experts named, events × n_used
  uint64_t guessed_hits = 0;  // of them called
  RecentRate missing;         // of those that weren't resident: called?
};

class Lookahead {
 public:
  // Guesses are made for steps of at most this many rows: beyond it, most experts are called
  // anyway.
  static constexpr uint32_t kRowsMax = 8;
  // A guessed read must be right at least so often: then it saves more bytes of waiting than it
  // adds.
  static constexpr float kWorthReading = 0.5f;

  Lookahead(const ModelSpec& spec, const Compute& compute, RamTier& tier, CauseTimer& timer,
            Prefetch prefetch);
  // From now on guesses are what the oracle foretells; whoever measures prefetching apart from the
  // gate's merit wants that.
  void set_oracle(const RouteReplay* oracle) { oracle_ = oracle; }

  // Is a guess for this event wanted? False without prefetch, for wide steps, for a layer that is
  // wholly resident, and mostly for one whose guesses fail.
  bool wants(LayerIndex layer, uint32_t n_rows);
  // Guesses `layer`'s calls from the stream as it is now, x [n_rows][hidden], and starts reading
  // those that are worth it. `layer` counts layers with experts; `weights` are its own.
  void guess(LayerIndex layer, const LayerWeights& weights, const float* x, uint32_t n_rows);
  // What the layer called in the end.
  void learn(LayerIndex layer, std::span<const ExpertCall> calls);

  const std::vector<LayerForesight>& layers() const { return layers_; }

 private:
  struct Guess {
    ExpertId expert;
    uint32_t rank = 0;      // place in the guess
    bool resident = false;  // when it was made
  };
  void name(LayerIndex layer, uint32_t rank, ExpertId expert);
  bool worth_reading(LayerIndex layer, uint32_t rank) const;

  const ModelSpec& spec_;
  RamTier& tier_;
  CauseTimer& timer_;
  Prefetch prefetch_;
  GateGuess gate_;
  const RouteReplay* oracle_ = nullptr;

  std::vector<LayerForesight> layers_;
  std::vector<RecentRate> ranks_;   // [layer][n_used]: those not resident, by place in the guess
  std::vector<uint32_t> skipped_;   // by layer: events since the last guess
  std::vector<Guess> open_;         // the guess whose layer is still to come
  std::vector<ExpertId> reads_;     // scratch of guess()
  std::vector<uint8_t> is_called_;  // scratch of learn(), by expert
  LayerIndex open_layer_;
};

}  // namespace offstage
