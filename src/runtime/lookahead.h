// Which experts the coming layers will call, guessed before those layers are reached.
//
// The residual stream changes little from one layer to the next, so a layer's own norm and router,
// applied to the stream as it is one or a few layers early, name most of the experts that it will
// call. The guess starts while this layer's experts compute: its reads fill the time in which the
// drive has nothing to do, because the next layer's calls aren't known yet.
//
// How far ahead? The nearer, the truer; but a read that takes longer than a layer's arithmetic
// comes too late. So the horizon moves out while right guesses arrive late and its farthest guesses
// are worth their reads, and moves in when they come in time.
//
// Every guess is held against the truth, and only places of the guess that have proven right often
// enough are read: per distance, layer and rank, among experts that weren't resident (the resident
// ones, often called, are easy to guess and cost nothing). Often enough depends on the drive: a
// wrong read that it is still busy with when the layer calls others delays those. How much right
// reads save and wrong ones lose is measured too, and a drive that has no idle time raises the bar
// until nothing is read. A router that can't be guessed switches the reads off by itself, and most
// of the guessing too.
//
// Beside a device, what is guessed and isn't in VRAM is nominated for it: if it is in RAM and the
// device finds that its copy pays, it is there before it is called. An oracle (route_replay.h) may
// guess in the gate's place. Decode thread only; never changes a bit of a result.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/cause_timer.h"
#include "cache/ram_tier.h"
#include "model/spec.h"
#include "runtime/compute.h"
#include "runtime/device_experts.h"
#include "runtime/foresight.h"
#include "runtime/gate_guess.h"
#include "runtime/options.h"
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

// What is known of a layer's guesses from one distance.
struct LayerForesight {
  uint64_t guesses = 0;       // experts named, events × n_used
  uint64_t guessed_hits = 0;  // of them called
  RecentRate missing;         // of those that weren't resident: called?
  RecentRate nominated;       // of those that VRAM hadn't, if there is a device: called?
  uint32_t skipped = 0;       // events since the last guess
};

// Time per matrix that right guesses saved and wrong ones lost of late, from one distance.
class RecentPayback {
 public:
  void add(const GuessPayback& total);  // what is new since the last one
  // A guess that is right with this probability loses as much as it saves. 0 while little is known.
  float break_even() const;

 private:
  GuessPayback seen_;
  float right_ = 0, wrong_ = 0, saved_ = 0, lost_ = 0;
};

class Lookahead {
 public:
  // Guesses are made for steps of at most this many rows: beyond it, most experts are called
  // anyway.
  static constexpr uint32_t kRowsMax = 8;
  // A guessed read must be right at least so often, however idle the drive is.
  static constexpr float kWorthReading = 0.5f;
  static constexpr uint32_t kHorizonMax = RamTier::kGuessDistances;

  Lookahead(const ModelSpec& spec, const Compute& compute, RamTier& tier, CauseTimer& timer,
            Prefetch prefetch);
  // From now on guesses are what the oracle foretells; whoever measures prefetching apart from the
  // gate's merit wants that.
  void set_oracle(const Foresight* oracle) { oracle_ = oracle; }
  // From now on guesses are nominated for its memory.
  void set_device(DeviceExperts* device) { device_ = device; }

  // `next`, counted among the layers with experts, is the layer to be reached next; `weights` are
  // its own and those of the layers after it. Guesses the calls of as many layers as the horizon
  // has from the stream as it is now, x [n_rows][hidden], and starts reading those that are worth
  // it. Does nothing without prefetch, for wide steps, for layers whose experts can't come nearer,
  // and mostly nothing for those whose guesses fail.
  void look(LayerIndex next, std::span<const LayerWeights> weights, const float* x,
            uint32_t n_rows);
  // By expert: how many of some rows, spread over a prompt's chunk x [n_rows][hidden], would call
  // it in the layer with these weights. Valid until the next call.
  std::span<const uint16_t> poll(const LayerWeights& weights, const float* x, uint32_t n_rows);
  // What the layer called in the end; after RamTier::begin() with the same calls.
  void learn(LayerIndex layer, std::span<const ExpertCall> calls);

  uint32_t horizon() const { return horizon_; }
  // By layer, from the distance of `ahead` layers (1 … kHorizonMax).
  std::span<const LayerForesight> layers(uint32_t ahead = 1) const;

 private:
  struct Guess {
    ExpertId expert;
    uint32_t ahead = 1;     // how many layers before its layer it was made
    uint32_t rank = 0;      // place in the guess
    bool resident = false;  // when it was first named
    bool in_vram = false;   // likewise
  };
  // The guesses for one layer that is still to come, from all distances.
  struct Open {
    LayerIndex layer;
    std::vector<Guess> guesses;
  };

  bool wants(LayerIndex layer, uint32_t ahead);
  void guess(LayerIndex layer, uint32_t ahead, const LayerWeights& weights, const float* x,
             uint32_t n_rows);
  void name(LayerIndex layer, uint32_t ahead, uint32_t rank, ExpertId expert);
  void nominate(LayerIndex layer, uint32_t ahead);
  bool worth_reading(LayerIndex layer, uint32_t ahead, uint32_t rank);
  void count_late();
  void move_horizon();
  void set_horizon(uint32_t horizon);
  Open& open_for(LayerIndex layer) { return open_[layer.value % kHorizonMax]; }
  LayerForesight& foresight(LayerIndex layer, uint32_t ahead);
  const LayerForesight& foresight(LayerIndex layer, uint32_t ahead) const;
  size_t rank_place(LayerIndex layer, uint32_t ahead, uint32_t rank) const;

  const ModelSpec& spec_;
  RamTier& tier_;
  CauseTimer& timer_;
  Prefetch prefetch_;
  GateGuess gate_;
  const Foresight* oracle_ = nullptr;
  DeviceExperts* device_ = nullptr;
  uint32_t n_layers_;

  uint32_t horizon_ = 1;
  uint32_t rest_events_ = 0;                  // until it may move out again
  uint64_t seen_useful_ = 0, seen_late_ = 0;  // of the tier's counters
  RecentRate late_;                           // of the right guesses, at this horizon
  struct Distance {
    RecentRate right;  // of experts that weren't resident
    RecentPayback payback;
    uint32_t refused = 0;  // right often enough, but not for this drive
  };
  std::array<Distance, kHorizonMax> distances_;

  std::vector<LayerForesight> layers_;  // [kHorizonMax][layer]
  std::vector<RecentRate> ranks_;       // [kHorizonMax][layer][n_used]: those not resident
  std::array<Open, kHorizonMax> open_;  // by layer modulo kHorizonMax
  std::vector<ExpertId> reads_;         // scratch of guess()
  std::vector<Nominee> nominees_;       // scratch of nominate()
  std::vector<uint8_t> is_called_;      // scratch of learn(), by expert
  std::vector<uint16_t> votes_;         // scratch of poll(), by expert
};

}  // namespace offstage
