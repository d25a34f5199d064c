// Which experts a layer will call for a prompt's chunk, foretold from how often they were called.
//
// A chunk of hundreds of rows calls nearly every expert, so what a layer misses can be read before
// it is reached. "Nearly" is measured: experts are put into classes by the calls that their past
// makes expected of this chunk, or while a layer has none by how many of the chunk's rows would
// call them if the layer's router saw their stream as it is one layer early (Lookahead::poll()). Of
// every class it is counted how many were called. Only classes that have proven sure are named, so
// that at most one byte in twenty of those read ahead is read in vain. Decode thread only; never
// changes a bit of a result.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/types.h"
#include "cache/eviction.h"
#include "cache/usage.h"

namespace offstage {

class ChunkForecast {
 public:
  // Read ahead from this probability of a call on; and not while more than this share of what was
  // called lately was read in vain, because the text has changed.
  static constexpr double kSure = 0.96, kWasteMax = 0.03;

  // `usage` is kept up to date by the tier's policy. Not enabled: nothing is ever foretold.
  ChunkForecast(const ExpertUsage& usage, uint32_t n_used, bool enabled);

  bool enabled() const { return enabled_; }
  // Has the layer been called before?
  bool has_past(LayerIndex layer) const;
  // The experts of `layer` that a chunk of n_rows will almost certainly call, ascending; valid
  // until the next call. Before the layer's event. `votes` (of a layer without a past, by expert):
  // rows of a sample that would call it.
  std::span<const ExpertId> foretell(LayerIndex layer, uint32_t n_rows,
                                     std::span<const uint16_t> votes = {});
  // What the layer called in the end. (Of layers that nothing was foretold for: no effect.)
  void learn(LayerIndex layer, std::span<const ExpertCall> calls);

 private:
  // Unknown; expected calls below 1/4, 1/2, 1 … 64, and above; votes: none, 1, 2 … 3, 4 … 7, more.
  static constexpr size_t kPastClasses = 11, kVoteClasses = 5;
  static constexpr size_t kClasses = kPastClasses + kVoteClasses;
  struct Class {
    double called = 0, n = 0;
  };
  static double prior(size_t c);
  double calls_of(LayerIndex layer) const;
  static size_t class_of_past(double expected);
  static size_t class_of_votes(uint16_t votes);
  double probability(size_t c) const;

  const ExpertUsage& usage_;
  const uint32_t n_used_;
  const bool enabled_;
  std::array<Class, kClasses> classes_;
  std::vector<uint8_t> class_of_;  // by expert, of the open forecast
  std::vector<ExpertId> likely_;
  double lately_called_ = 0, lately_wrong_ = 0;
  LayerIndex open_layer_;
  bool open_ = false;
};

}  // namespace offstage
