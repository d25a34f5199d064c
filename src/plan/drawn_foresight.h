// The next-layer gate of a forecast: right as often as the model's own, where that was measured.
//
// Each place of a guess names the expert that will be called there with the probability that the
// distance has, and else one that won't be: one that another token called, since a gate errs
// towards experts that are often called. The same word for the same token, layer and place every
// time.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cache/route_log.h"
#include "runtime/foresight.h"

namespace offstage {

// How much of what a layer calls is foretold, by how many layers before it the guess is made.
class GuessAccuracy {
 public:
  // From n layers before: the nth power of what it is from one.
  GuessAccuracy(double nearest = 0) : by_distance_{nearest} {}
  // From one layer before, two, …; at least one. Beyond the last it falls on as it did before.
  explicit GuessAccuracy(std::vector<double> by_distance);

  double at(uint32_t ahead) const;
  bool guesses() const { return by_distance_.front() > 0; }

 private:
  std::vector<double> by_distance_;
};

class DrawnForesight final : public Foresight {
 public:
  DrawnForesight(GuessAccuracy accuracy, uint64_t seed)
      : accuracy_(std::move(accuracy)), seed_(seed) {}

  // Guesses are for this token's rows from now on; the log must live as long.
  void look_at(const RouteLog& log, uint64_t token) {
    log_ = &log;
    token_ = token;
  }
  std::optional<ExpertId> foretold(LayerIndex layer, uint32_t row, uint32_t rank,
                                   uint32_t ahead) const override;

 private:
  GuessAccuracy accuracy_;
  uint64_t seed_;
  const RouteLog* log_ = nullptr;
  uint64_t token_ = 0;
};

}  // namespace offstage
